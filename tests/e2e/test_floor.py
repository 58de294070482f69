"""One GPU that is given around between chats, pictures and fine-tunes; rules that change; simulated GPUs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import httpx
import pytest

from helix_es.core import events as e
from tests.e2e.shop import Client, Shop, ended, facts, helix, until_fact
from tests.e2e.test_finetune import QUICK, curve, tune

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(400)]

CONFIG = """
[models.smollm2]
context_tokens = 512
[sessions]
idle_after_s = 0.5
[scheduling]
switch_after_s = 0.5
[batch]
yield_s = 60
"""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def floor(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    runners = "any:smollm2+scenes+batch,simulated:mistral@a100-80*50"
    running = Shop(tmp_path_factory.mktemp("floor"), runners=runners, config=CONFIG)
    try:
        await asyncio.to_thread(running.start)
        yield running
    finally:
        await asyncio.to_thread(running.stop)


async def test_one_gpu_does_what_is_waited_for(floor: Shop) -> None:
    async with Client(floor.url) as client:
        sid = (await client.open("Hello", params={"max_tokens": 4}))["session_id"]
        assert (await ended(client, sid))["state"] == "completed"
        picture = await client.http.post(
            "/sessions",
            json={"model": "scenes", "type": "image", "prompt": "a house", "params": {"steps": 2}},
        )
        assert (await ended(client, picture.json()["session_id"]))["state"] == "completed"
        assert (await client.session(sid))["state"] == "released", "it was silent, and others waited"
        await client.say(sid, "And again", params={"max_tokens": 4})
        assert (await ended(client, sid, 2))["state"] == "completed"


async def test_a_fine_tune_borrows_the_gpu_and_gives_it_back_with_a_checkpoint(floor: Shop) -> None:
    async with Client(floor.url) as client:
        job = await tune(client, "borrowed", **{**QUICK, "checkpoint_steps": 1000})

        def stepped(records: list[e.Recorded]) -> bool:
            return len(curve(records)) >= 2

        await until_fact(floor, f"session.{job}.>", stepped)
        sid = (await client.open("Hello", params={"max_tokens": 4}))["session_id"]
        assert (await ended(client, sid))["state"] == "completed"
        found = await facts(floor.nats_url, f"session.{job}.>")
        assert any(isinstance(r.event, e.TurnYielding) for r in found)
        assert [r.event.reason for r in found if isinstance(r.event, e.SessionReleased)] == ["preempted"]
        await client.http.delete(f"/sessions/{sid}")
        assert (await ended(client, job))["state"] == "completed"
        steps = [step for _, step, _ in curve(await facts(floor.nats_url, f"session.{job}.>"))]
        assert steps == list(range(1, QUICK["max_steps"] + 1)), "no step twice, none left out"


async def test_a_coefficient_holds_as_soon_as_it_is_saved(floor: Shop) -> None:
    def slots() -> set[int]:
        gpus = httpx.get(f"{floor.url}/api/v1/gpus").json()["data"]
        return {gpu["slots"] for gpu in gpus if gpu["kind"] == "a100-80"}

    assert await asyncio.to_thread(slots) == {16}
    saved = CONFIG + '[coefficients]\n"a100-80/mistral" = 3\n'
    (floor.folder / "helix.toml").write_text(saved)
    await asyncio.to_thread(floor.until, lambda: slots() == {3}, "lowered slots", 20)
    explained = (await helix(floor, "models", "--explain", "--model", "mistral")).stdout
    assert "[coefficients] says 3 for a100-80/mistral" in explained
    assert "150" in (await helix(floor, "top", "--once")).stdout


async def test_simulated_gpus_serve_and_are_lost_like_any_other(floor: Shop) -> None:
    async with Client(floor.url) as client:
        sid = (await client.open("Hello", model="mistral", params={"max_tokens": 400}))["session_id"]
        await until_fact(floor, f"session.{sid}.turn.started.*", lambda found: len(found) == 1)
        os.kill(floor.pid("runner-1"), signal.SIGKILL)
        assert (await client.answer(sid))["attempt"] == 2


async def test_whoever_would_rather_fail_than_wait_does(floor: Shop) -> None:
    async with Client(floor.url) as client:
        body = {"model": "sdxl", "type": "image", "prompt": "a house"}
        refused = await client.http.post("/sessions", json={**body, "max_wait_s": -1})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
        opened = await client.http.post("/sessions", json={**body, "max_wait_s": 1})
        turn = await ended(client, opened.json()["session_id"])
        assert (turn["state"], turn["error"]["code"]) == ("failed", "wait_exceeded")
