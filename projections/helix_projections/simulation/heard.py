"""What a log tells of its turns and its floor: who said what when, how long GPUs took, what was used of them."""

from __future__ import annotations

import msgspec

from helix_es.core import events as e
from helix_projections.simulation.meter import Meter
from helix_projections.simulation.offer import Offer


class Run(msgspec.Struct, kw_only=True):
    """An attempt at a turn on a GPU. Times are the log's, Unix ms."""

    gpu: str
    kind: str
    asked_ms: int
    """When its task was in the log."""
    started_ms: int
    ended_ms: int | None = None
    """None: not in this log."""
    shared_ms: float = 0.0
    """Its part of the GPU's time, if all turns that ran there had equal ones."""
    kept_ms: float = 0.0
    """Of that: until its last checkpoint."""


class Said(msgspec.Struct, kw_only=True):
    """A turn. Times are the log's, Unix ms."""

    session: e.SessionId
    turn: int
    owner: str
    priority: int
    workload: e.Workload
    said_ms: int
    straight: bool
    """Its session held a slot, so it went straight to its GPU."""
    asked_ms: int
    """When its last task was in the log."""
    max_wait_ms: int | None = None
    admitted_ms: int | None = None
    """For the first time."""
    runs: list[Run] = msgspec.field(default_factory=list)
    ended_ms: int | None = None
    end: e.TurnCompleted | e.TurnFailed | e.TurnCancelled | None = None
    """None: it is open, or ended as its session was closed."""

    @property
    def work_ms(self) -> float:
        """What was computed of it and not lost, in time of a GPU that it had alone, ms."""
        last = [self.runs[-1].shared_ms] if self.runs and self.end is not None else []
        return sum(last) + sum(run.kept_ms for run in (self.runs[:-1] if last else self.runs))


class Took(msgspec.Struct, frozen=True):
    """How long a GPU took for something."""

    kind: str
    model: str
    took_ms: int


class Heard(msgspec.Struct, kw_only=True):
    """All that a log tells."""

    turns: list[Said] = msgspec.field(default_factory=list)
    """In the order in which they were said."""
    closed_ms: dict[str, int] = msgspec.field(default_factory=dict)
    """Sessions that were closed, and when."""
    offers: dict[str, Offer] = msgspec.field(default_factory=dict)
    """Of GPUs, as they joined first."""
    policies: list[e.Policy] = msgspec.field(default_factory=list)
    loads: list[Took] = msgspec.field(default_factory=list)
    checkpoints: list[Took] = msgspec.field(default_factory=list)
    """From being asked to give way to the checkpoint."""
    decided_after_ms: list[int] = msgspec.field(default_factory=list)
    """Admissions: from the newest fact or beat that was known at the decision to the fact itself."""
    losses: int = 0
    """GPUs that were lost, or left."""
    preempted: int = 0
    released: int = 0
    begun_ms: int | None = None
    """Timestamp of the first record."""
    meter: Meter
