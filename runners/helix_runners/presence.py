"""What the shop hears of a GPU: the facts of its life behind their fence, and its heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.errors import Conflict, HelixError, Unavailable
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.log import JetStreamLog
from helix_runners.devices import facts
from helix_runners.offer import Offer

log = structlog.get_logger(__name__)

ATTEMPTS = 20  # at a fact about our own GPU, which only the scheduler writes about too
LEAVE_S = 5.0


class Doing(msgspec.Struct, frozen=True, kw_only=True):
    """What a heartbeat tells beside what is measured."""

    model: str | None
    slots_used: int
    stalled_ms: int
    detail: dict[str, Any]


class Presence:
    """One GPU in the log, life after life."""

    def __init__(
        self, connection: Connection, source: JetStreamLog, offer: Offer, new_incarnation: Callable[[], str]
    ) -> None:
        self._log = source
        self._beats = Beats(connection)
        self._offer = offer
        self._new_incarnation = new_incarnation
        self.incarnation = ""

    async def join(self) -> int:
        """Begin a new life and return the sequence that it begins at."""
        self.incarnation = self._new_incarnation()
        offer = self._offer
        joined = e.GpuJoined(
            gpu=offer.gpu,
            incarnation=self.incarnation,
            kind=offer.device.kind,
            memory_total_bytes=offer.device.memory_total_bytes,
            workloads=offer.workloads,
            slots=offer.slots,
            pool=offer.pool,
        )
        seq = await self._append(joined, "")
        log.info("joined", gpu=offer.gpu, incarnation=self.incarnation, pool=offer.pool)
        return seq

    async def ready(self, assigned: e.GpuAssigned, assigned_seq: int, load_ms: int) -> None:
        """Say that the assignment which stands at `assigned_seq` is in force."""
        ready = e.GpuReady(
            gpu=assigned.gpu,
            incarnation=assigned.incarnation,
            model=assigned.model,
            load_ms=load_ms,
            assigned_seq=assigned_seq,
        )
        await self._append(ready, f":{assigned_seq}")

    async def leave(self, failed: e.Workload | None = None) -> None:
        """Say that this life ends in order, and what could not be loaded; otherwise the silence will say it."""
        try:
            async with asyncio.timeout(LEAVE_S):
                left = e.GpuLeft(gpu=self._offer.gpu, incarnation=self.incarnation, failed=failed)
                await self._append(left, "")
        except (HelixError, TimeoutError) as error:
            log.warning("left_without_saying_so", error=str(error))

    async def _append(self, event: e.GpuJoined | e.GpuReady | e.GpuLeft, which: str) -> int:
        """Append a fact about our GPU behind whatever was said of it last."""
        key = f"{type_of(event)}:{event.gpu}:{event.incarnation}{which}"
        for _ in range(ATTEMPTS):
            said = await self._log.history(f"gpu.{event.gpu}.>")
            try:
                expected = said[-1].seq if said else 0
                return await self._log.append(event, expected_seq=expected, key=f"{key}:{expected}")
            except Conflict:
                continue
        raise Unavailable(f"somebody keeps writing about {event.gpu}: is another runner using its name?")

    async def beat(self, doing: Doing) -> None:
        """Measure the GPU and publish a heartbeat; one that cannot be sent is only a missed one."""
        measured = await asyncio.to_thread(facts, self._offer.device)
        beat = e.GpuHeartbeat(
            gpu=self._offer.gpu,
            incarnation=self.incarnation,
            memory_total_bytes=measured.memory_total_bytes,
            memory_used_bytes=measured.memory_used_bytes,
            utilisation=measured.utilisation,
            temperature_c=measured.temperature_c,
            power_w=measured.power_w,
            model=doing.model,
            slots_used=doing.slots_used,
            stalled_ms=doing.stalled_ms,
            detail=doing.detail,
        )
        try:
            await self._beats.publish(beat)
        except HelixError as error:
            log.warning("heartbeat_not_sent", error=str(error))
