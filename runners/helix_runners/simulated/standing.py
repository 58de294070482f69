"""What simulated GPUs say of themselves: joined, ready for each assignment, left; and their heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from helix_es.core import events as e
from helix_es.core.catalogue import Model, footprint
from helix_es.core.codec import type_of
from helix_es.core.errors import Conflict, Unavailable
from helix_es.log import Log
from helix_runners.simulated.gpu import SimulatedGpu
from helix_runners.simulated.patience import Patience

ATTEMPTS = 20  # at a fact about our own GPU, which only the scheduler writes about too
AT_ONCE = 64  # of such facts: a thousand GPUs that join together must not time each other out


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """What each GPU of the process is, and what it offers."""

    kind: str
    memory_bytes: int
    workloads: tuple[e.Workload, ...]
    slots: dict[str, int]
    models: Mapping[str, Model]
    pool: str = "default"


class Standing:
    """Appends facts about GPUs of this process."""

    def __init__(
        self, log: Log, patiently: Patience, card: Card, *, new_incarnation: Callable[[], str]
    ) -> None:
        self._log = log
        self._patiently = patiently
        self._card = card
        self._new_incarnation = new_incarnation
        self._at_once = asyncio.Semaphore(AT_ONCE)
        self._takes = {slug: footprint(model, card.kind) for slug, model in card.models.items()}

    async def join(self, gpu: SimulatedGpu) -> None:
        """Begin a new life of `gpu`; what was told to earlier ones is not for it."""
        card = self._card
        gpu.incarnation = self._new_incarnation()
        joined = e.GpuJoined(
            gpu=gpu.gpu,
            incarnation=gpu.incarnation,
            kind=card.kind,
            memory_total_bytes=card.memory_bytes,
            workloads=list(card.workloads),
            slots=card.slots,
            pool=card.pool,
        )
        await self._patiently(lambda: self._append(gpu, joined))

    async def ready(self, gpu: SimulatedGpu, assigned: e.GpuAssigned, seq: int, load_ms: int) -> None:
        """Answer the assignment with that sequence."""
        ready = e.GpuReady(
            gpu=gpu.gpu,
            incarnation=assigned.incarnation,
            model=assigned.model,
            load_ms=load_ms,
            assigned_seq=seq,
        )
        await self._patiently(lambda: self._append(gpu, ready))

    async def leave(self, gpu: SimulatedGpu) -> None:
        """Say that it ended in order. Raises Unavailable where nobody hears it."""
        gpu.gone, gpu.ready = True, False
        await self._append(gpu, e.GpuLeft(gpu=gpu.gpu, incarnation=gpu.incarnation))

    async def _append(self, gpu: SimulatedGpu, event: e.GpuJoined | e.GpuReady | e.GpuLeft) -> None:
        """Append behind whatever was said of the GPU last; nothing if it has begun another life."""
        key = f"{type_of(event)}:{event.gpu}:{event.incarnation}:{getattr(event, 'assigned_seq', 0)}"
        async with self._at_once:
            for _ in range(ATTEMPTS):
                if event.incarnation != gpu.incarnation:
                    return
                expected = gpu.fence
                try:
                    seq = await self._log.append(event, expected_seq=expected, key=f"{key}:{expected}")
                except Conflict:
                    said = await self._log.history(f"gpu.{event.gpu}.>", after_seq=expected)
                    gpu.fence = max(gpu.fence, said[-1].seq if said else 0)
                else:
                    gpu.fence = max(gpu.fence, seq)
                    return
        raise Unavailable(f"somebody keeps writing about {event.gpu}: is another runner using its name?")

    def heartbeat(self, gpu: SimulatedGpu) -> e.GpuHeartbeat:
        """Return what `gpu` measures of itself."""
        card, used = self._card, 0
        if gpu.loaded is not None:
            takes = self._takes[gpu.loaded]
            used = takes.weights_bytes + gpu.taken * takes.per_session_bytes
        busy = sum(seat.attempt is not None for seat in gpu.seats.values())
        return e.GpuHeartbeat(
            gpu=gpu.gpu,
            incarnation=gpu.incarnation,
            memory_total_bytes=card.memory_bytes,
            memory_used_bytes=min(used, card.memory_bytes),
            utilisation=min(1.0, busy / gpu.slots) if gpu.slots else float(busy > 0),
            model=gpu.loaded,
            slots_used=len(gpu.seats),
            stalled_ms=gpu.stall.ms,
            detail={"simulated": True},
        )
