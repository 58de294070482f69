"""Where a worker stands in this process: who waits for it, what is pulled for it, and what wakes it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from helix_es.api.workers.pulls import Pulls
from helix_es.core import events as e
from helix_es.core.floor import Gpu
from helix_es.jetstream.client import Connection
from helix_es.replica import Replica

IDLE_S = 60.0  # after its last poll a worker's subscriptions are kept this long


class Station:
    """One worker. Its polls take turns: each would see the same free slot and the same task."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.pulls: Pulls | None = None
        self.used_s = 0.0
        self.lives = 0
        """How often the worker has left since we know it: who waits for it then waits for nobody."""
        self._started: dict[str, int] = {}
        """Sessions that this process has seated and its fold may not show yet -> sequence of their `started`."""
        self._changed: asyncio.Future[None] | None = None

    def changed(self) -> asyncio.Future[None]:
        """Return a future of the next fact about this worker. Take it before looking at the fold."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def wake(self) -> None:
        """There is a fact about this worker."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def seat(self, session: str, seq: int) -> None:
        """Note that `started` of `session` is stored."""
        self._started[session] = seq

    def seated(self, gpu: Gpu, upto_seq: int) -> int:
        """Return how many sessions hold a slot, by the fold that reaches to `upto_seq` and what we know beyond."""
        self._started = {name: seq for name, seq in self._started.items() if seq > upto_seq}
        return len(gpu.sessions) + sum(name not in gpu.sessions for name in self._started)

    def beyond(self, session: str, upto_seq: int) -> bool:
        """Whether the fold, which reaches to `upto_seq`, cannot show the session's `started` yet."""
        return self._started.get(session, 0) > upto_seq

    async def pulls_of(self, connection: Connection, worker: e.GpuId, workload: e.Workload) -> Pulls:
        """Return the worker's pulls, subscribed anew if it does something else now."""
        if self.pulls is not None and self.pulls.workload != workload:
            await self.pulls.close()
            self.pulls = None
        if self.pulls is None:
            self.pulls = Pulls(connection, worker, workload)
            await self.pulls.open()
        return self.pulls


class Stations:
    """All workers that this process has served lately."""

    def __init__(self, replica: Replica) -> None:
        self._stations: OrderedDict[str, Station] = OrderedDict()
        replica.listen(self._hear)

    def _hear(self, record: e.Recorded) -> None:
        # Every fact that changes what a worker may do says its GPU.
        station = self._stations.get(getattr(record.event, "gpu", ""))
        if station is not None:
            station.lives += isinstance(record.event, e.GpuLeft)
            station.wake()

    async def of(self, worker: e.GpuId) -> Station:
        """Return the worker's station; those that nobody used for long are closed on the way."""
        now_s = asyncio.get_running_loop().time()
        await self._close_oldest(now_s - IDLE_S)
        station = self._stations.setdefault(worker, Station())
        station.used_s = now_s
        self._stations.move_to_end(worker)
        return station

    async def _close_oldest(self, before_s: float) -> None:
        while self._stations:
            worker, station = next(iter(self._stations.items()))
            pulls = station.pulls
            if station.used_s > before_s or station.lock.locked() or (pulls is not None and not pulls.idle):
                return
            del self._stations[worker]
            if pulls is not None:
                await pulls.close()
