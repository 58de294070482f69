"""The fleet process: follows the log and tells each pool's keeper what the pool should be."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NoReturn

import structlog

from helix_es.log import Log
from helix_es.replica import Replica
from helix_projections.fleet.keeper import Keeper
from helix_projections.fleet.provider import Provider
from helix_projections.fleet.sizes import orders

log = structlog.get_logger(__name__)

PACE_S = 0.2  # a busy log changes a thousand times a second, and each look costs a walk over all GPUs


class Fleet:
    """One for a shop: two would both act on the same pools."""

    def __init__(self, source: Log, most: Mapping[str, int]) -> None:
        """`most`: pool -> how many GPUs it may have."""
        self._replica = Replica(source)
        self._most = dict(most)
        self._keepers: dict[str, Keeper] = {}
        self._providers: dict[str, Provider] = {}

    def add(self, pool: str, provider: Provider) -> None:
        """Keep `pool` by `provider`."""
        self._providers[pool] = provider
        self._keepers[pool] = Keeper(pool, provider)

    def wake(self, pool: str) -> None:
        """A provider saw something change in `pool` that the log does not say, or not yet."""
        self._keepers[pool].wake()

    async def run(self) -> None:
        """Keep all pools until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._replica.run())
            await self._replica.caught_up.wait()
            log.info("fleet_keeps", pools=sorted(self._keepers), seq=self._replica.state.seq)
            for keeper in self._keepers.values():
                group.create_task(keeper.run())
            group.create_task(self._tell())

    async def _tell(self) -> NoReturn:
        while True:
            changed = self._replica.changed()
            for pool, order in orders(self._replica.state, self._most).items():
                self._keepers[pool].offer(order)
            await changed.wait()
            await asyncio.sleep(PACE_S)

    async def close(self) -> None:
        """End what lives only as long as this process, all at once."""
        async with asyncio.TaskGroup() as group:
            for provider in self._providers.values():
                group.create_task(provider.close())
