"""Every fact that the log can hold, as a Struct; the tag is its name on the wire and is never reused."""

from __future__ import annotations

from typing import Any

import msgspec

from helix_es.core.values import (
    Failure as Failure,
)
from helix_es.core.values import (
    GpuId as GpuId,
)
from helix_es.core.values import (
    Kind as Kind,
)
from helix_es.core.values import (
    LossReason as LossReason,
)
from helix_es.core.values import (
    Message as Message,
)
from helix_es.core.values import (
    Mode as Mode,
)
from helix_es.core.values import (
    Policy as Policy,
)
from helix_es.core.values import (
    PoolRule as PoolRule,
)
from helix_es.core.values import (
    Purpose as Purpose,
)
from helix_es.core.values import (
    ReleaseReason as ReleaseReason,
)
from helix_es.core.values import (
    SessionId as SessionId,
)
from helix_es.core.values import (
    Usage as Usage,
)
from helix_es.core.values import (
    Workload as Workload,
)


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Base of all facts. When it happened is the server's timestamp of the stored message, not a field."""


class SessionCreated(Event, tag="session.created", frozen=True, kw_only=True):
    """Somebody came in; the first turn follows as a fact of its own."""

    session: SessionId
    owner: str
    mode: Mode
    type: Kind
    model: str
    system: str | None = None
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    adapter: str | None = None
    """Name of the adapter that answers; None: the base model alone."""
    adapter_files: list[str] = msgspec.field(default_factory=list)
    """The files that the name stood for when the session began: a later adapter of that name is for later sessions."""
    dataset: str | None = None
    """The file that a fine-tune learns from."""
    name: str | None = None
    """Of a fine-tune: what its adapter is called."""
    priority: int = 0
    """Class in the queue: a higher one is served first. -10 to 10."""
    request: str = ""
    """Fingerprint of the request that made it, to recognise its repetition."""


class TurnQueued(Event, tag="turn.queued", frozen=True, kw_only=True):
    """A turn waits at the door for a slot."""

    session: SessionId
    turn: int
    mode: Mode
    type: Kind
    model: str
    owner: str
    priority: int = 0
    prompt: str
    history: list[Message] | None = None
    """Replaces everything said before, when the client brought another history than the log has."""
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    request: str = ""
    max_wait_ms: int | None = None
    """It fails rather than wait longer than this for its first slot."""


class TurnAdmitted(Event, tag="turn.admitted", frozen=True, kw_only=True):
    """There is room: the broker makes this fact a task."""

    session: SessionId
    turn: int
    attempt: int
    mode: Mode
    type: Kind
    model: str
    waited_ms: int
    estimated_ms: int | None
    """The wait that was told on arrival."""
    reservation_ms: int = 0
    """How much of its wait GPUs that were kept free for batch work could have spared it."""
    reason: str
    decided_seq: int
    """The log sequence that the decision was folded to."""
    decided_at_ms: int
    """The log's clock at the decision, Unix ms."""


class TurnContinued(Event, tag="turn.continued", frozen=True, kw_only=True):
    """The next turn of a session that holds a slot; the broker makes it a task for that GPU alone."""

    session: SessionId
    turn: int
    attempt: int = 1
    type: Kind
    model: str
    gpu: GpuId
    after_seq: int
    """The session's last sequence before this: a runner whose memory ends there need not read the log."""
    prompt: str
    history: list[Message] | None = None
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    request: str = ""


class TurnStarted(Event, tag="turn.started", frozen=True, kw_only=True):
    """A GPU took the turn: the session is bound to it."""

    session: SessionId
    turn: int
    attempt: int
    gpu: GpuId
    incarnation: str


class TurnProgressed(Event, tag="turn.progressed", frozen=True, kw_only=True):
    """Steps done of steps planned, at most once a second."""

    session: SessionId
    turn: int
    attempt: int
    gpu: GpuId
    step: int
    steps: int
    detail: dict[str, Any] = msgspec.field(default_factory=dict)
    """What is measured on the way: loss, tokens a second, …"""
    checkpoint: list[str] = msgspec.field(default_factory=list)
    """Files that another GPU goes on from, if this step made some."""


class TurnCancelling(Event, tag="turn.cancelling", frozen=True, kw_only=True):
    """Please stop this running turn."""

    session: SessionId
    turn: int
    gpu: GpuId


class TurnYielding(Event, tag="turn.yielding", frozen=True, kw_only=True):
    """Chats need the GPU that this fine-tune borrowed: make a checkpoint at the next step; then it is moved."""

    session: SessionId
    turn: int
    attempt: int
    gpu: GpuId
    decided_seq: int
    decided_at_ms: int


class TurnReturned(Event, tag="turn.returned", frozen=True, kw_only=True):
    """The runner could not do the turn, but another may: out of memory, for one. It goes back to the door."""

    session: SessionId
    turn: int
    attempt: int
    gpu: GpuId
    error: Failure
    held: int = 0
    """Sessions that the GPU held: if memory ran out, it holds fewer from now on."""


class TurnCompleted(Event, tag="turn.completed", frozen=True, kw_only=True):
    """The whole output of a turn."""

    session: SessionId
    turn: int
    attempt: int
    gpu: GpuId
    output: str
    files: list[str] = msgspec.field(default_factory=list)
    usage: Usage = Usage()
    finish_reason: str = "stop"
    queue_ms: int = 0
    """From the task in hand to the first computation, on the runner's clock."""
    first_token_ms: int | None = None
    """From the task in hand to the first token, on the runner's clock."""
    total_ms: int = 0


class TurnFailed(Event, tag="turn.failed", frozen=True, kw_only=True):
    """A turn ended without a result."""

    session: SessionId
    turn: int
    attempt: int
    gpu: GpuId
    error: Failure
    output: str = ""
    decided_seq: int | None = None
    """If the scheduler gave it up: the log sequence that the decision was folded to. None: a runner failed it."""
    decided_at_ms: int | None = None


class TurnCancelled(Event, tag="turn.cancelled", frozen=True, kw_only=True):
    """A turn was stopped on request; what was said until then is kept."""

    session: SessionId
    turn: int
    attempt: int
    gpu: GpuId
    """`none` if no GPU had it yet."""
    output: str = ""
    files: list[str] = msgspec.field(default_factory=list)
    """What was made until then."""
    usage: Usage = Usage()
    first_token_ms: int | None = None


class SessionReleased(Event, tag="session.released", frozen=True, kw_only=True):
    """The slot is free again; the conversation stays in the log."""

    session: SessionId
    gpu: GpuId
    incarnation: str
    reason: ReleaseReason
    decided_seq: int
    decided_at_ms: int


class SessionClosed(Event, tag="session.closed", frozen=True, kw_only=True):
    """Over: a turn that was still open ends with it, as cancelled."""

    session: SessionId


class GpuJoined(Event, tag="gpu.joined", frozen=True, kw_only=True):
    """A runner offers a GPU. Each start of a runner is a new incarnation."""

    gpu: GpuId
    incarnation: str
    kind: str
    memory_total_bytes: int
    workloads: list[Workload]
    """What it can run."""
    slots: dict[str, int] = msgspec.field(default_factory=dict)
    """Sessions it can hold of each model, as it computed; the table of the scheduler's configuration goes first."""
    silence_ms: int = 0
    """How long it may be silent before it counts as lost; 0: three heartbeats. A worker that only polls has more."""
    pool: str = "default"
    """The pool that it was started for."""


class GpuLeft(Event, tag="gpu.left", frozen=True, kw_only=True):
    """The runner ended in order."""

    gpu: GpuId
    incarnation: str
    failed: Workload | None = None
    """What it could not load, if that is why it left."""


class GpuAssigned(Event, tag="gpu.assigned", frozen=True, kw_only=True):
    """What the GPU is for from now on."""

    gpu: GpuId
    incarnation: str
    model: str
    type: Kind
    purpose: Purpose
    slots: int
    """Sessions it may take from now on; 0: none, it drains."""
    next: Workload | None = None
    """What it drains for."""
    leaving: bool = False
    """It drains to leave: its runner ends when nobody is bound to it any more."""
    reason: str = ""
    decided_seq: int
    decided_at_ms: int


class GpuReady(Event, tag="gpu.ready", frozen=True, kw_only=True):
    """The weights are in memory, and the assignment is in force: the runner starts nothing beyond its slots."""

    gpu: GpuId
    incarnation: str
    model: str
    load_ms: int
    """What loading them took; 0: they were in memory already."""
    assigned_seq: int = 0
    """The assignment that this answers; 0: the last one."""


class GpuLost(Event, tag="gpu.lost", frozen=True, kw_only=True):
    """Its heartbeats stopped, or they go on and its turns do not."""

    gpu: GpuId
    incarnation: str
    silent_ms: int
    reason: LossReason = "silent"


class FleetResized(Event, tag="fleet.resized", frozen=True, kw_only=True):
    """The shop should grow or shrink to `size` GPUs."""

    pool: str
    size: int
    reason: str
    decided_seq: int
    decided_at_ms: int


class PolicySet(Event, tag="fleet.policy", frozen=True, kw_only=True):
    """The rules that decisions follow from here on; in the log, so that replaying needs nothing else."""

    policy: Policy


class GpuHeartbeat(Event, tag="gpu.heartbeat", frozen=True, kw_only=True):
    """A GPU is alive (stream BEATS): what it measures of itself."""

    gpu: GpuId
    incarnation: str
    memory_total_bytes: int
    memory_used_bytes: int
    utilisation: float
    """0 to 1."""
    temperature_c: int | None = None
    power_w: int | None = None
    model: str | None = None
    """The resident model."""
    slots_used: int = 0
    stalled_ms: int = 0
    """How long its running turns have all been without a sign of progress; 0: none runs."""
    detail: dict[str, Any] = msgspec.field(default_factory=dict)


class SchedulerBeat(Event, tag="scheduler.beat", frozen=True, kw_only=True):
    """The hand of the log's clock (stream BEATS)."""

    scheduler: str
    active: bool
    seq: int
    """The log sequence it has folded to."""


AnyEvent = (
    SessionCreated
    | TurnQueued
    | TurnAdmitted
    | TurnContinued
    | TurnStarted
    | TurnProgressed
    | TurnCancelling
    | TurnYielding
    | TurnReturned
    | TurnCompleted
    | TurnFailed
    | TurnCancelled
    | SessionReleased
    | SessionClosed
    | GpuJoined
    | GpuLeft
    | GpuAssigned
    | GpuReady
    | GpuLost
    | FleetResized
    | PolicySet
    | GpuHeartbeat
    | SchedulerBeat
)

NO_GPU = GpuId("none")  # the token in place of a GPU where none had the turn yet


class Recorded(msgspec.Struct, frozen=True):
    """A stored message: where and when it stands in the log, and the fact in it."""

    seq: int
    at_ms: int
    """The server's timestamp, Unix ms."""
    subject: str
    event: AnyEvent | None
    """None: unreadable, or forged (it does not fit its subject); it still moves the fence of its subject."""
    headers: dict[str, str] = {}
    """All of them in a history, only the trace's while following; a fold never needs them."""
