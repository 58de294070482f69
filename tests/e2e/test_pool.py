"""A shop with no GPU at all: a burst comes, the pool grows for it, everybody is served, the pool goes back to 0."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from helix_es.core import events as e
from tests.e2e.shop import Client, Shop, ended, facts, helix, until_fact

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

BURST = 200
CONFIG = """
[models.smollm2]
context_tokens = 256
[sessions]
idle_after_s = 0.2
[pool.burst]
min = 0
max = 3
serves = ["text:smollm2"]
slots = { smollm2 = 16 }
idle = 2
wait_s = 1
"""


@pytest.fixture(scope="module")
def empty_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    running = Shop(tmp_path_factory.mktemp("pool"), runners="", config=CONFIG)
    try:
        running.start()
        yield running
    finally:
        assert running.stop() == 0


async def test_a_burst_of_200_sessions_grows_the_pool_and_nobody_is_lost(empty_shop: Shop) -> None:
    async with Client(empty_shop.url) as client:
        opened = [
            (await client.open(f"Say {n}.", params={"max_tokens": 2}))["session_id"] for n in range(BURST)
        ]
        stages = set()
        async for event in client.follow(opened[0], 1, seconds=120):
            if event.name == "queue" and event.data["cold_start"] is not None:
                stages.add(event.data["cold_start"]["stage"])
        assert stages, "whoever waits for the first GPU is told how far it is"
        several = asyncio.Semaphore(20)

        async def end(sid: str) -> str:
            async with several:
                return str((await ended(client, sid, seconds=300))["state"])

        states = Counter(await asyncio.gather(*(end(sid) for sid in opened)))
        assert states == {"completed": BURST}
        await asyncio.gather(*(client.http.delete(f"/sessions/{sid}") for sid in opened))
    resized = await until_fact(empty_shop, "fleet.burst.>", lambda found: _sizes(found)[-1] == 0)
    assert max(_sizes(resized)) == 3
    left = await until_fact(empty_shop, "gpu.*.left", lambda found: len(found) >= 3)
    assert not [r for r in await facts(empty_shop.nats_url, "gpu.*.lost") if r.event is not None]
    assert len({r.event.gpu for r in left if isinstance(r.event, e.GpuLeft)}) == 3
    async with httpx.AsyncClient() as http:
        fleet = (await http.get(f"{empty_shop.url}/api/v1/fleet")).json()["data"]
    assert [(pool["pool"], pool["wanted"], pool["present"]) for pool in fleet] == [("burst", 0, 0)]
    assert "burst" in (await helix(empty_shop, "top", "--once")).stdout


def _sizes(found: list[e.Recorded]) -> list[int]:
    return [r.event.size for r in found if isinstance(r.event, e.FleetResized)] or [-1]
