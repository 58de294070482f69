"""Where a GPU's tasks come from: the line that it shares with all who serve the same, and that of its own sessions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine

import structlog

from helix_es.core import events as e
from helix_es.core.errors import HelixError
from helix_es.core.subjects import continue_consumer, shared_consumer
from helix_es.jetstream.client import Connection
from helix_es.jetstream.tasks import Task, TaskPuller
from helix_runners.bindings import Bindings

log = structlog.get_logger(__name__)

RETRY_S = 0.5
REFUSED_S = (
    0.05  # no consumer, or no leader of it: a pull that is answered sooner, with nothing, was not waited for
)

Take = Callable[[Task], Awaitable[None]]
"""Does a task, or gives it back."""


class Pulls:
    """Pulls while `opened` is set: shared work only while a slot is free, work of our own sessions always."""

    def __init__(
        self, connection: Connection, gpu: e.GpuId, bindings: Bindings, opened: asyncio.Event, take: Take
    ) -> None:
        self._connection = connection
        self._gpu = gpu
        self._bindings = bindings
        self._opened = opened
        self._take = take
        self._workload: e.Workload | None = None
        self._shared: TaskPuller | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, workload: e.Workload, group: asyncio.TaskGroup) -> None:
        """Take new sessions of `workload` from now on, and of nothing else."""
        if workload == self._workload:
            return
        self.retire()
        if not self._tasks:
            own = TaskPuller(self._connection, continue_consumer(self._gpu), prioritized=False)
            self._begin(group, self._pull(own, shared=False))
        self._shared = TaskPuller(self._connection, shared_consumer(workload), prioritized=True)
        self._workload = workload
        self._begin(group, self._pull(self._shared, shared=True))

    def retire(self) -> None:
        """Take no new sessions; what still arrives goes back, beside whatever comes next."""
        if self._shared is not None:
            self._shared.retire()
        self._shared = self._workload = None

    def stop(self) -> None:
        """End at once."""
        for each in self._tasks:
            each.cancel()

    def _begin(self, group: asyncio.TaskGroup, pulling: Coroutine[None, None, None]) -> None:
        task = group.create_task(pulling)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pull(self, puller: TaskPuller, *, shared: bool) -> None:
        await puller.open()
        try:
            while not puller.retired:
                await self._opened.wait()
                if shared:
                    await self._bindings.room()
                begun = time.monotonic()
                try:
                    task = await puller.pull(load=self._bindings.load)
                    if task is not None:
                        await self._take(task)
                    elif not puller.retired and time.monotonic() - begun < REFUSED_S:
                        await asyncio.sleep(RETRY_S)
                except HelixError as error:
                    log.warning("pull_failed", error=str(error))
                    await asyncio.sleep(RETRY_S)
            await puller.drain()
        finally:
            await puller.close()
