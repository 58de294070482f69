"""Pictures as their users ask for them; and kill -9 in the middle of one."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.shop import Client, Shop, ended, facts, helix, runner_of, tags

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(400)]

SLOW = {"steps": 50, "count": 2, "width": 96, "height": 96}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def studio(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """Two image runners."""
    running = Shop(tmp_path_factory.mktemp("studio"), runners="image:scenes*2")
    try:
        await asyncio.to_thread(running.start)
        yield running
    finally:
        await asyncio.to_thread(running.stop)


async def picture(client: Client, file: str) -> Image.Image:
    answer = (await client.http.get(f"/files/{file}/content")).raise_for_status()
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


async def test_a_prompt_gives_a_picture_and_a_second_turn_changes_it(studio: Shop, tmp_path: Path) -> None:
    out = tmp_path / "sunset.png"
    done = await helix(studio, "image", "a sunset with two suns", "-o", str(out), "--seed", "4")
    image = Image.open(out)
    assert image.size == (64, 64)
    assert "a sunset with two suns" in image.info.values()  # type: ignore[comparison-overlap]
    async with Client(studio.url) as client:
        page = (await client.http.get("/sessions", params={"type": "image", "limit": 1})).json()
        sid = page["data"][0]["session_id"]
        assert sid in done.stderr
        await client.say(sid, "a night with two moons", params={"seed": 4, "strength": 0.5})
        second = await ended(client, sid, 2)
        changed = (await picture(client, second["files"][0])).convert("RGB")
        assert changed.tobytes() != image.convert("RGB").tobytes()
        events = [event async for event in client.events(sid, 2)]
        assert events[-1].name == "turn.completed"


async def test_every_step_is_told_with_a_preview(studio: Shop) -> None:
    async with Client(studio.url) as client:
        sid = (await client.open("a red house", model="scenes", type="image", params=SLOW))["session_id"]
        told = [event async for event in client.follow(sid, 1) if event.name == "progress"]
        assert [event.data["step"] for event in told] == sorted(event.data["step"] for event in told)
        assert told[-1].data["steps"] >= SLOW["steps"]
        assert any((event.data["preview"] or "").startswith("data:image/png;base64,") for event in told)
        assert len((await client.session(sid))["turns"][0]["files"]) == SLOW["count"]


async def test_a_cancelled_picture_stops_and_the_next_one_is_made(studio: Shop) -> None:
    async with Client(studio.url) as client:
        sid = (await client.open("a red house", model="scenes", type="image", params=SLOW))["session_id"]
        async for event in client.events(sid, 1):
            if event.name == "progress":
                break
        assert (await client.http.post(f"/sessions/{sid}/turns/1/cancel")).status_code == 202
        assert (await ended(client, sid))["state"] == "cancelled"
        await client.say(sid, "a blue house", params={"steps": 2})
        assert (await ended(client, sid, 2))["state"] == "completed"


async def test_a_killed_image_runner_loses_no_picture(studio: Shop) -> None:
    params = {**SLOW, "seed": 9}
    async with Client(studio.url) as client:
        whole = (await client.open("a red house", model="scenes", type="image", params=params))["session_id"]
        first = await ended(client, whole)
        sid = (await client.open("a red house", model="scenes", type="image", params=params))["session_id"]
        async for event in client.events(sid, 1):
            if event.name == "progress":
                break
        studio.kill(await runner_of(client, sid))
        turn = await ended(client, sid)
        assert (turn["state"], turn["attempt"]) == ("completed", 2)
        names = tags(await facts(studio.nats_url, f"session.{sid}.>"))
        assert names.count("turn.completed") == 1
        for one, other in zip(first["files"], turn["files"], strict=True):
            pictures = [(await picture(client, file)).convert("RGB").tobytes() for file in (one, other)]
            assert pictures[0] == pictures[1], "the same seed, the same picture"
    await asyncio.to_thread(studio.until, studio.ready, "ready runners")
