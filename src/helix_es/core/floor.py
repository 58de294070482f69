"""The nouns of the shop floor: a session in its seat, a GPU, and the slots of a workload."""

from __future__ import annotations

from typing import Literal

import msgspec

from helix_es.core import events as e
from helix_es.core.fairqueue import Place
from helix_es.core.session import Phase


class Seat(msgspec.Struct, kw_only=True):
    """A session that waits for a slot or holds one. Others are not here: the log has them."""

    session: e.SessionId
    workload: e.Workload
    owner: str
    priority: int = 0
    phase: Phase
    last_seq: int
    """Its fence."""
    turn: int
    attempt: int = 0
    gpu: e.GpuId | None = None
    incarnation: str = ""
    place: Place | None = None
    """Its place at the door, kept for the case that its GPU is lost."""
    queued_ms: int = 0
    estimated_ms: int | None = None
    """The wait that was told when it came."""
    active_ms: int = 0
    """When it last did anything."""


class Gpu(msgspec.Struct, kw_only=True):
    """A GPU whose runner is there."""

    gpu: e.GpuId
    incarnation: str
    kind: str
    memory_total_bytes: int
    workloads: list[e.Workload]
    offered: dict[str, int]
    state: Literal["joined", "assigned", "ready"] = "joined"
    purpose: e.Purpose | None = None
    model: str | None = None
    type: e.Kind | None = None
    slots: int = 0
    sessions: dict[str, None] = msgspec.field(default_factory=dict)
    last_seq: int = 0
    joined_ms: int = 0
    silence_ms: int = 0
    """How long it may be silent; 0: three heartbeats."""
    load_ms: int | None = None


class Capacity(msgspec.Struct, kw_only=True):
    """The slots of one workload over all ready GPUs that serve it."""

    slots: int = 0
    bound: int = 0
    admitted: int = 0

    @property
    def free(self) -> int:
        return self.slots - self.bound - self.admitted


def serves(gpu: Gpu) -> e.Workload | None:
    """Return the workload whose queue `gpu` serves, or None while it is assigned to none."""
    if gpu.model is None or gpu.type is None:
        return None
    return e.Workload("finetune" if gpu.purpose == "batch" else "create", gpu.type, gpu.model)
