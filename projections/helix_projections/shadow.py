"""A shadow scheduler on the live log: other rules follow it, decide beside the real ones, and append nothing."""

from __future__ import annotations

import asyncio

import structlog

from helix_es.core import events as e
from helix_es.core.shadow import Shadow
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.log import JetStreamLog

log = structlog.get_logger(__name__)


class LiveShadow:
    """Follows until cancelled. What is in the log when it begins is folded and not compared."""

    def __init__(self, connection: Connection, policy: e.Policy) -> None:
        self._log = JetStreamLog(connection)
        self._beats = Beats(connection)
        self.shadow = Shadow(policy)
        self.same = Shadow(None)
        """The log's own rules, followed in the same way: what differs here differs by chance."""
        self.caught_up = asyncio.Event()

    async def run(self) -> None:
        """Follow the log and the clock for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            await self.caught_up.wait()
            group.create_task(self._tick())

    async def _follow(self) -> None:
        last = await self._log.last_seq()
        async for batch in self._log.follow(0):
            for record in batch.records:
                for each in (self.shadow, self.same):
                    if record.seq <= last:
                        each.skip(record)
                    else:
                        each.take(record)
            if self.shadow.state.seq >= last:
                self.caught_up.set()

    async def _tick(self) -> None:
        """The log's clock is the beat of the acting scheduler: a wait can become too long without any fact."""
        async for batch in self._beats.follow(await self._beats.last_seq()):
            for record in batch.records:
                if isinstance(record.event, e.SchedulerBeat) and record.event.active:
                    self.shadow.beat(record.at_ms)
                    self.same.beat(record.at_ms)
