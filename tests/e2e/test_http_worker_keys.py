"""Where keys are configured, only a worker's key is a worker, and one that names a worker is that worker alone."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.e2e.shop import Shop
from tests.e2e.worker import Hand, open_shop

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(120)]


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


CONFIG = f"""
[auth.keys]
"{digest("ann-key")}" = "ann"
[auth.workers]
"{digest("any-key")}" = "*"
"{digest("w1-key")}" = "w1"
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop with keys."""
    with open_shop(tmp_path_factory.mktemp("guarded"), CONFIG) as running:
        yield running


async def test_prompts_are_shown_to_workers_only(guarded: Shop) -> None:
    ann = httpx.AsyncClient(
        base_url=f"{guarded.url}/api/v1", headers={"Authorization": "Bearer ann-key"}, timeout=20
    )
    for key, name, status, code in (
        ("", "w1", 401, "unauthorized"),
        ("wrong", "w1", 401, "unauthorized"),
        ("ann-key", "w1", 403, "not_a_worker"),
        ("w1-key", "w2", 403, "not_a_worker"),
    ):
        hand = Hand(guarded.url, name, key)
        answers = [await hand.ask(wait_s=0), await hand.http.delete(f"/{name}")]
        answers.append(await hand.say({"task_id": f"s.1.1.{name}.http-0"}, "delta"))
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (status, code), (key, name)
        await hand.http.aclose()
    assert (await ann.get("/gpus")).json()["data"] == [], "nobody came in"

    one, two = Hand(guarded.url, "w1", "w1-key"), Hand(guarded.url, "w2", "any-key")
    polling = asyncio.create_task(one.task())
    opened = await ann.post("/sessions", json={"model": "mistral", "prompt": "a secret"})
    task = await polling
    stranger = Hand(guarded.url, "w1", "ann-key")
    answer = await stranger.say(task, "complete", output="mine now")
    assert (answer.status_code, answer.json()["code"]) == (403, "not_a_worker"), "even with the id"
    await two.nothing()
    await one.accepted(task, "complete", output="kept")
    session = (await ann.get(f"/sessions/{opened.json()['session_id']}")).json()
    assert session["turns"][0]["output"] == "kept"
    assert task["task_id"].rpartition(".")[2] not in json.dumps([session, (await ann.get("/gpus")).json()])
    for hand in (one, two, stranger):
        await hand.http.aclose()
    await ann.aclose()


async def test_a_websocket_needs_the_key_too(guarded: Shop) -> None:
    url = f"{guarded.url.replace('http', 'ws')}/api/v1/worker/ws?model_name=mistral&worker=w1"
    for key, code in (("", "unauthorized"), ("ann-key", "not_a_worker")):
        async with connect(url, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
            assert json.loads(await asyncio.wait_for(socket.recv(), 10))["code"] == code
    async with connect(url, additional_headers={"Authorization": "Bearer w1-key"}) as socket:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 0.5)
