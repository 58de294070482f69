"""The fleet follows the log and keeps every pool that it was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from helix_projections.fleet.fleet import Fleet
from helix_projections.fleet.provider import Gpus
from tests.projections.fleet.facts import Shop

pytestmark = pytest.mark.anyio


class FakeProvider:
    """Notes each state that it should make true."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[tuple[int, dict[str, str]]] = asyncio.Queue()
        self.closed = False

    async def make(self, size: int, previous: int, gpus: Gpus) -> float | None:
        self.calls.put_nowait((size, dict(gpus)))
        return None

    async def present(self) -> int | None:
        return 0

    async def close(self) -> None:
        self.closed = True

    async def until(self, size: int, gpus: dict[str, str]) -> None:
        """Wait until this is asked for."""
        async with asyncio.timeout(5):
            while await self.calls.get() != (size, gpus):
                pass


@asynccontextmanager
async def running(shop: Shop, **providers: FakeProvider) -> AsyncIterator[Fleet]:
    fleet = Fleet(shop.log, dict.fromkeys(providers, 8))
    for pool, provider in providers.items():
        fleet.add(pool, provider)
    keeping = asyncio.create_task(fleet.run())
    try:
        yield fleet
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await fleet.close()


async def test_what_was_said_before_it_started_is_made_true() -> None:
    shop, provider = Shop(), FakeProvider()
    shop.resized("burst", 3)
    shop.resized("burst", 2)
    async with running(shop, burst=provider):
        await provider.until(2, {})
    assert provider.closed


async def test_each_change_of_the_log_reaches_the_pool_that_it_is_about() -> None:
    shop, burst, night = Shop(), FakeProvider(), FakeProvider()
    async with running(shop, burst=burst, night=night):
        shop.resized("burst", 1)
        await burst.until(1, {})
        shop.joined("n-burst-0", "burst")
        await burst.until(1, {"n-burst-0": "serving"})
        shop.assigned("n-burst-0", leaving=True)
        shop.resized("burst", 0)
        await burst.until(0, {"n-burst-0": "drained"})
        shop.left("n-burst-0")
        await burst.until(0, {})
        shop.resized("night", 1)
        await night.until(1, {})
    assert night.calls.empty()


async def test_a_provider_that_woke_it_is_asked_again() -> None:
    shop, provider = Shop(), FakeProvider()
    shop.resized("burst", 1)
    async with running(shop, burst=provider) as fleet:
        await provider.until(1, {})
        fleet.wake("burst")
        await provider.until(1, {})
