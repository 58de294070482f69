"""Does what the plan says: kills and freezes processes, and brings them back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from tests.chaos.plan import DECK, Fault
from tests.chaos.processes import Process, now_ms
from tests.chaos.shop import Shop
from tests.chaos.told import Strike


class Strikes:
    """`run` until `stop`, which waits until everything is back."""

    def __init__(self, shop: Shop, faults: Iterable[Fault]) -> None:
        self._shop = shop
        self._faults = faults
        self._stopping = asyncio.Event()
        self.done: list[Strike] = []
        self.postponed = 0
        self.dealt = asyncio.Event()
        """Every kind of fault was there."""

    def stop(self) -> None:
        """No more faults."""
        self._stopping.set()

    async def run(self) -> None:
        """Carry out one fault after the other; return when the last one is over."""
        async with asyncio.TaskGroup() as group:
            for fault in self._faults:
                if await self._stopped(fault.after_s):
                    return
                await self._strike(fault, group)
                if fault.number + 1 >= DECK:
                    self.dealt.set()

    async def _stopped(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _strike(self, fault: Fault, group: asyncio.TaskGroup) -> None:
        if fault.kind == "nats" and not await self._shop.cluster.healthy():
            self.postponed += 1  # never more than one node away
            await self._shop.cluster.wait_healthy()
        process = await self._victim(fault)
        if process is None:
            return
        done = Strike(
            number=fault.number,
            action=fault.action,
            kind=fault.kind,
            process=process.name,
            role=fault.role,
            at_ms=now_ms(),
        )
        self.done.append(done)
        if fault.action == "kill":
            await process.kill()
        else:
            process.freeze()
        group.create_task(self._bring_back(fault, process, done))

    async def _bring_back(self, fault: Fault, process: Process, done: Strike) -> None:
        await asyncio.sleep(fault.lasts_s)
        if fault.action == "kill":
            await process.start()
        else:
            process.thaw()
        done.back_ms = now_ms()

    async def _victim(self, fault: Fault) -> Process | None:
        """Return the process that is meant, or the next of its kind that is up."""
        there = self._shop.processes[fault.kind]
        found: Process | None = None
        if fault.role == "active":
            found = self._shop.active_scheduler()
        elif fault.role == "leader":
            leader = await self._shop.cluster.leader()
            found = next((process for process in there if process.name == leader), None)
        if found is not None and found.up:
            return found
        ring = there[fault.index :] + there[: fault.index]
        return next((process for process in ring if process.up), None)
