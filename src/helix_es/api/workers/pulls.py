"""What is pulled for one worker; a pull outlives the poll that began it, or its task could be lost for seconds."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import structlog

from helix_es.core import events as e
from helix_es.core.errors import HelixError
from helix_es.core.subjects import continue_consumer, shared_consumer
from helix_es.jetstream.client import Connection
from helix_es.jetstream.tasks import Task, TaskPuller

log = structlog.get_logger(__name__)

REFUSED_S = 0.5  # a pull that ends sooner without a task was not waited for by the broker

Source = Literal["own", "shared"]  # own goes first: somebody is in the middle of a conversation


class Pulls:
    """At most one pull under way from the worker's own consumer, and one from that of its workload."""

    def __init__(self, connection: Connection, worker: e.GpuId, workload: e.Workload) -> None:
        self.workload = workload
        self._pullers: dict[Source, TaskPuller] = {
            "own": TaskPuller(connection, continue_consumer(worker), prioritized=False),
            "shared": TaskPuller(connection, shared_consumer(workload), prioritized=True),
        }
        self._under_way: dict[Source, asyncio.Task[Task | None]] = {}
        self._wanted = False

    async def open(self) -> None:
        """Subscribe; before anything else."""
        for puller in self._pullers.values():
            await puller.open()

    def begin(self, source: Source, load: int = 0) -> asyncio.Task[Task | None]:
        """Return the pull from `source`, begun now unless one is under way."""
        self._wanted = True
        pull = self._under_way.get(source)
        if pull is None:
            pull = self._under_way[source] = asyncio.create_task(self._pull(self._pullers[source], load))
        return pull

    async def _pull(self, puller: TaskPuller, load: int) -> Task | None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        task = await puller.pull(load=load)
        if task is None and loop.time() - begun_s < REFUSED_S:
            await asyncio.sleep(
                REFUSED_S
            )  # no such consumer, or no leader: asking at once would only be refused again
        if task is not None and not self._wanted:
            await task.nak()
            return None
        return task

    def arrived(self) -> tuple[Source, Task] | None:
        """Return a task that has come, or None. Raises what a pull ran into."""
        for source in ("own", "shared"):
            pull = self._under_way.get(source)
            if pull is not None and pull.done():
                del self._under_way[source]
                task = pull.result()
                if task is not None:
                    return source, task
        return None

    async def rest(self) -> None:
        """Nobody waits now: what has come and was not taken, or comes still, goes back."""
        self._wanted = False
        for source, pull in list(self._under_way.items()):
            if pull.done():
                del self._under_way[source]
                await self._give_back(pull)

    async def _give_back(self, pull: asyncio.Task[Task | None]) -> None:
        try:
            task = await pull
            if task is not None:
                await task.nak()
        except HelixError as error:  # the broker gives it to another when its time is over
            log.warning("task_not_given_back", error=str(error))

    @property
    def idle(self) -> bool:
        """Whether no pull is under way."""
        return all(pull.done() for pull in self._under_way.values())

    async def close(self) -> None:
        """Unsubscribe."""
        await self.rest()
        ended: list[Any] = list(self._under_way.values())
        for pull in ended:
            pull.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        for puller in self._pullers.values():
            await puller.close()
