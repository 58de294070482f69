"""The nouns of the shop floor: a session in its seat, a GPU, and the slots of a workload."""

from __future__ import annotations

from typing import Literal, NamedTuple

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
    deadline_ms: int | None = None
    """When it would rather fail than wait on; None once it had a slot."""
    estimated_ms: int | None = None
    """The wait that was told when it came."""
    divided_ms: int = 0
    """What `Occupancy.divided_ms` of its workload was when it came."""
    active_ms: int = 0
    """When it last did anything."""
    strikes: list[str] = msgspec.field(default_factory=list)
    """How attempts at the open turn ended that took their GPU with them, or were given back."""
    yield_ms: int | None = None
    """When it was asked to make a checkpoint and give way."""
    yielded: bool = False
    """It made one since."""


class Make(NamedTuple):
    """What GPUs have in common that can be exchanged for one another."""

    kind: str
    pool: str
    workloads: tuple[e.Workload, ...]
    fixed: bool
    """It does one thing as long as it is there: an HTTP worker."""

    @property
    def batch(self) -> e.Workload | None:
        """The first batch work that it can do."""
        return next((each for each in self.workloads if each.mode == "finetune"), None)


class Gpu(msgspec.Struct, kw_only=True):
    """A GPU whose runner is there."""

    gpu: e.GpuId
    incarnation: str
    kind: str
    memory_total_bytes: int
    workloads: list[e.Workload]
    offered: dict[str, int]
    pool: str = "default"
    state: Literal["joined", "assigned", "ready"] = "joined"
    purpose: e.Purpose | None = None
    model: str | None = None
    type: e.Kind | None = None
    slots: int = 0
    """Sessions it may take; 0 after it was assigned: it drains."""
    settled: bool = True
    """Its runner has answered the last assignment."""
    next: e.Workload | None = None
    """What it drains for."""
    leaving: bool = False
    drained_ms: int = 0
    """When it was told to drain."""
    sessions: dict[str, None] = msgspec.field(default_factory=dict)
    last_seq: int = 0
    joined_ms: int = 0
    assigned_seq: int = 0
    asked_ms: int = 0
    """When it was assigned anything last."""
    ready_ms: int = 0
    """Since when it serves what it serves."""
    vacant_ms: int = 0
    """Since when nobody is bound to it."""
    silence_ms: int = 0
    """How long it may be silent; 0: three heartbeats."""
    load_ms: int | None = None
    strained: dict[str, int] = msgspec.field(default_factory=dict)
    """`<mode>/<model>` -> sessions beyond which its memory ran out."""

    @property
    def draining(self) -> bool:
        """Whether it takes nobody any more."""
        return self.state != "joined" and self.slots == 0

    @property
    def drained(self) -> bool:
        """Whether it may be given to another workload: nobody is bound to it, and nobody will be."""
        return self.draining and self.state == "ready" and self.settled and not self.sessions

    @property
    def lent(self) -> bool:
        """Whether it is as good as gone from batch work."""
        return self.purpose == "batch" and self.draining and (self.next is None or self.next.mode == "create")

    @property
    def make(self) -> Make:
        return Make(self.kind, self.pool, tuple(self.workloads), self.silence_ms > 0)


class Capacity(msgspec.Struct, kw_only=True):
    """The slots of one workload over all ready GPUs that serve it."""

    slots: int = 0
    bound: int = 0
    room: int = 0
    """Slots that nobody is bound to. A GPU that holds more than it should has none, and takes none from others."""
    admitted: int = 0

    @property
    def free(self) -> int:
        return self.room - self.admitted

    @property
    def overdue(self) -> int:
        """Turns that were admitted and have no slot left to start on."""
        return min(self.admitted, max(0, -self.free))


def serves(gpu: Gpu) -> e.Workload | None:
    """Return the workload whose queue `gpu` serves, or None while it is assigned to none."""
    if gpu.model is None or gpu.type is None:
        return None
    return e.Workload("finetune" if gpu.purpose == "batch" else "create", gpu.type, gpu.model)


def purpose_of(workload: e.Workload) -> e.Purpose:
    """Return what a GPU is for that serves `workload`."""
    return "batch" if workload.mode == "finetune" else "chat"


def coefficient(policy: e.Policy, gpu: Gpu, workload: e.Workload) -> int:
    """Return how many sessions of `workload` the GPU may hold: the configured table first, then what it offered.

    The table is about conversations that share a model; how many fine-tunes fit at once only the runner knows. Where
    memory ran out, there are fewer.
    """
    offered = gpu.offered.get(workload.model, 1)
    if workload.mode == "finetune":
        offered = min(offered, 1) if len(gpu.workloads) > 1 else offered
    else:
        offered = policy.coefficients.get(f"{gpu.kind}/{workload.model}", offered)
    return min(offered, gpu.strained.get(f"{workload.mode}/{workload.model}", offered))
