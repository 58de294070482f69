"""Whether the broker still makes tasks of facts: after the loss of a node its source may pause for 45 s."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from helix_es.core.errors import HelixError
from helix_es.jetstream.client import Connection

log = structlog.get_logger(__name__)

LOOK_S = 1.0
SILENT_NS = (
    2_500_000_000  # a healthy source is heard once a second; two and a half are more than a slow answer
)
TWICE = 2  # an election of LOG's own leader must have its chance first
APART_S = 5.0  # an election takes that long


def silent(info: dict[str, Any]) -> bool:
    """Return whether what STREAM.INFO says of TASKS means that nothing comes from its source any more."""
    sources = info.get("sources") or []
    if not sources:
        return False
    active_ns = int(sources[0].get("active", -1))
    return active_ns < 0 or active_ns > SILENT_NS


class Routing:
    """Watches the source of TASKS, on a cluster, while we are the scheduler that acts.

    Seen with nats-server 2.15.1 on three nodes: when the node is lost that leads LOG and TASKS, the new leader of TASKS
    tries its source again after 10 s, then 20, …: 45 s until the first task. A further election sets it up at once.
    """

    def __init__(self, connection: Connection, *, replicas: int, acts: Callable[[], bool]) -> None:
        self._connection = connection
        self._replicas = replicas
        self._acts = acts

    async def run(self) -> None:
        """Watch for ever; with one replica there is no other leader to be elected."""
        found = 0
        while self._replicas > 1:
            await asyncio.sleep(LOOK_S)
            if not self._acts():
                found = 0
                continue
            try:
                info = await self._connection.api("STREAM.INFO.TASKS")
                found = found + 1 if silent(info) else 0
                if found >= TWICE:
                    log.warning("tasks_not_sourced", sources=info.get("sources"))
                    await self._connection.api("STREAM.LEADER.STEPDOWN.TASKS")
                    found = 0
                    await asyncio.sleep(APART_S)
            except HelixError as error:  # no leader yet
                log.info("tasks_not_looked_at", error=str(error))
