"""A pool is kept at its size, whatever its provider does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from helix_projections.fleet.keeper import Keeper, Patience
from helix_projections.fleet.provider import Gpus, ProviderError
from helix_projections.fleet.sizes import Order

pytestmark = pytest.mark.anyio

FAST = Patience(first_s=0.001, most_s=0.004)


class FakeProvider:
    """Notes what it is asked for; fails as often as it is told to."""

    def __init__(
        self, *, present: int | None = None, failures: int = 0, again_s: float | None = None
    ) -> None:
        self.calls: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self.failures = failures
        self._present = present
        self._again_s = again_s

    async def make(self, size: int, previous: int, gpus: Gpus) -> float | None:
        self.calls.put_nowait((size, previous))
        if self.failures:
            self.failures -= 1
            raise ProviderError("no such machine")
        return self._again_s

    async def present(self) -> int | None:
        return self._present

    async def close(self) -> None:
        pass

    async def call(self) -> tuple[int, int]:
        return await asyncio.wait_for(self.calls.get(), 5)


@asynccontextmanager
async def kept(provider: FakeProvider) -> AsyncIterator[Keeper]:
    keeper = Keeper("burst", provider, FAST)
    running = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_each_size_is_made_and_the_one_before_is_told() -> None:
    provider = FakeProvider(present=2)
    async with kept(provider) as keeper:
        keeper.offer(Order(size=3, gpus={}))
        assert await provider.call() == (3, 2)
        keeper.offer(Order(size=1, gpus={}))
        assert await provider.call() == (1, 3)


async def test_who_cannot_know_what_it_has_is_told_what_has_joined() -> None:
    provider = FakeProvider(present=None)
    async with kept(provider) as keeper:
        keeper.offer(Order(size=3, gpus={"a": "serving"}))
        assert await provider.call() == (3, 1)


async def test_the_same_order_again_is_no_reason_to_do_anything() -> None:
    provider = FakeProvider(present=0)
    async with kept(provider) as keeper:
        for _ in range(3):
            keeper.offer(Order(size=1, gpus={}))
        await provider.call()
        keeper.offer(Order(size=1, gpus={}))
        keeper.offer(Order(size=1, gpus={"a": "serving"}))
        await provider.call()
        assert provider.calls.empty()


async def test_a_gpu_that_changes_its_standing_is_a_reason_to_look() -> None:
    provider = FakeProvider(present=0)
    async with kept(provider) as keeper:
        keeper.offer(Order(size=1, gpus={"a": "draining"}))
        await provider.call()
        keeper.offer(Order(size=1, gpus={"a": "drained"}))
        assert await provider.call() == (1, 1)


async def test_it_looks_again_when_the_provider_asked_for_it() -> None:
    provider = FakeProvider(present=0, again_s=0.001)
    async with kept(provider) as keeper:
        keeper.offer(Order(size=1, gpus={}))
        assert [await provider.call() for _ in range(3)] == [(1, 0), (1, 1), (1, 1)]


async def test_a_failure_is_repeated_until_it_succeeds_and_said_once() -> None:
    provider = FakeProvider(present=0, failures=4)
    with capture_logs() as said:
        async with kept(provider) as keeper:
            keeper.offer(Order(size=2, gpus={}))
            for _ in range(5):
                assert await provider.call() == (2, 0)
            keeper.offer(Order(size=3, gpus={}))
            assert await provider.call() == (3, 2)
    assert [line["event"] for line in said] == [
        "pool_ordered",
        "pool_failed",
        "pool_recovered",
        "pool_ordered",
    ]
    assert said[1]["error"] == "no such machine"


async def test_waits_between_failures_grow_and_have_an_end() -> None:
    keeper = Keeper("burst", FakeProvider(), Patience(first_s=1, most_s=5))
    assert [keeper._failed(ProviderError("x")) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert keeper._failed(ProviderError("x", after_s=3600)) == 5


async def test_nothing_is_made_before_a_size_was_said() -> None:
    provider = FakeProvider(present=0)
    async with kept(provider) as keeper:
        keeper.wake()
        keeper.offer(Order(size=0, gpus={}))
        assert await provider.call() == (0, 0)
        assert provider.calls.empty()
