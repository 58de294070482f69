"""One pool is kept at its size: again and again until it is, patiently where the provider fails."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
import structlog

from helix_projections.fleet.provider import Provider, ProviderError
from helix_projections.fleet.sizes import Order

log = structlog.get_logger(__name__)


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds between a failure and the next attempt, doubled each time."""

    first_s: float = 1.0
    most_s: float = 60.0


USUAL = Patience()


class Keeper:
    """Goes by the state, not by what changed: whatever was missed or undone is made true at the next look."""

    def __init__(self, pool: str, provider: Provider, patience: Patience = USUAL) -> None:
        self._pool = pool
        self._provider = provider
        self._patience = patience
        self._order: Order | None = None
        self._woken = asyncio.Event()
        self._made: int | None = None
        self._ordered: int | None = None
        self._pause_s = 0.0
        self._complaint = ""

    def offer(self, order: Order) -> None:
        """Keep to `order` from now on."""
        if order != self._order:
            self._order = order
            self.wake()

    def wake(self) -> None:
        """Look again: something is not as it was."""
        self._woken.set()

    async def run(self) -> None:
        """Keep the pool at its size until cancelled."""
        while True:
            self._woken.clear()
            try:
                again_s = await self._look()
            except ProviderError as error:
                await asyncio.sleep(self._failed(error))  # not sooner, whatever changes meanwhile
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(again_s):
                    await self._woken.wait()

    async def _look(self) -> float | None:
        order = self._order
        if order is None:
            return None  # nobody ever said how large it should be
        previous = self._made
        if previous is None:
            there = await self._provider.present()
            previous = len(order.gpus) if there is None else there
        if order.size != self._ordered:
            log.info(
                "pool_ordered", pool=self._pool, size=order.size, previous=previous, joined=len(order.gpus)
            )
            self._ordered = order.size
        again_s = await self._provider.make(order.size, previous, order.gpus)
        if self._complaint:
            log.info("pool_recovered", pool=self._pool, size=order.size)
        self._made, self._pause_s, self._complaint = order.size, 0.0, ""
        return again_s

    def _failed(self, error: ProviderError) -> float:
        """Say it once, and return how long to wait."""
        if str(error) != self._complaint:
            log.error("pool_failed", pool=self._pool, error=str(error))
            self._complaint = str(error)
        self._pause_s = min(self._patience.most_s, max(self._patience.first_s, 2 * self._pause_s))
        return max(self._pause_s, min(error.after_s, self._patience.most_s))
