"""What became of one session, turn by turn, as the log tells it: what `helix why` says in words."""

from __future__ import annotations

from typing import Literal

import msgspec

from helix_es.core import events as e
from helix_es.core.session import TurnState

AheadWhy = Literal["earlier", "priority", "fair_share", "came_back"]
PassedWhy = Literal["priority", "fair_share", "came_back", "owner_limit", "decided_before", "behind"]
ObstacleWhy = Literal[
    "free",  # it has room; the scheduler had only to look
    "promised",  # it has room, and turns ahead were admitted to that or would be
    "full",
    "loading",
    "draining",  # for something else
    "draining_for_it",
    "leaving",
    "unassigned",
    "reserved",  # kept for batch work
    "batch",  # does batch work beyond what is kept
    "other_work",
    "failed_to_load",
    "no_slots",  # the rules give it none
    "unfit",  # its runner does not offer it
]
WaitBecause = Literal["said"] | e.ReleaseReason
WaitEnd = Literal["admitted", "cancelled", "failed", "closed"]
RunEnd = Literal["completed", "failed", "cancelled", "returned", "closed"] | e.ReleaseReason


class Ahead(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who stood ahead at the door."""

    session: str
    owner: str
    turn: int
    priority: int
    queued_ms: int
    why: AheadWhy


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who was not ahead on arrival and was admitted first."""

    session: str
    owner: str
    turn: int
    priority: int
    queued_ms: int
    admitted_seq: int
    admitted_ms: int
    decided_seq: int
    why: PassedWhy


class Obstacle(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU, and why it could not take the turn at once."""

    gpu: str
    why: ObstacleWhy
    model: str | None
    """What it served."""
    slots: int
    held: int
    since_ms: int | None = None
    """Since when it loaded or drained, Unix ms."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Something that gave the workload slots, or took some, while the turn waited."""

    seq: int
    at_ms: int
    what: str
    """Type of the fact."""
    gpu: str
    slots: int
    """More slots, or fewer."""
    free: int
    """More slots with nobody bound to them, or fewer."""
    session: str | None = None
    reason: str = ""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The decision that admitted a turn."""

    seq: int
    at_ms: int
    decided_seq: int
    decided_at_ms: int
    attempt: int
    reason: str
    waited_ms: int
    """Since the turn was said, whatever happened in between."""
    estimated_ms: int | None
    """Told on arrival."""
    reservation_ms: int
    """How much of the wait GPUs that were kept free for batch work could have spared it."""


class Wait(msgspec.Struct, kw_only=True):
    """One stretch at the door."""

    seq: int
    at_ms: int
    because: WaitBecause
    """Why it stood there: it was said; or how the session lost its slot."""
    place: int
    """On arrival; 1 is next."""
    told_ms: int | None
    """The wait to expect on arrival; None: nothing served the model and nothing was coming."""
    slots: int
    """Of the workload, then."""
    free: int
    """Of these, neither bound nor set aside for a turn that was admitted."""
    owner_held: int
    owner_most: int
    """The owner's limit then; 0: none."""
    ahead: list[Ahead]
    """The first ones."""
    obstacles: list[Obstacle]
    """All GPUs that were there."""
    changes: list[Change] = msgspec.field(default_factory=list)
    """The first ones and the last ones: of those that gave or took slots, and of those that only freed some."""
    changed: int = 0
    """All of them."""
    resized: int = 0
    """Those that gave or took slots, all of them."""
    freed: int = 0
    """Slots that came free, all in all."""
    freed_by: dict[str, int] = msgspec.field(default_factory=dict)
    """The same by what freed them: why a session was released, or else the type of the fact."""
    served_ahead: int = 0
    """Turns that stood ahead and were admitted."""
    passed: list[Passed] = msgspec.field(default_factory=list)
    """The first ones."""
    passed_by: int = 0
    """All of them."""
    barred_ms: int = 0
    """How long its owner held as many slots as one may."""
    slot_there_ms: int = 0
    """How long a slot was there for it, and it was not admitted yet: the scheduler did not look, or could not write."""
    undecided_ms: int = 0
    """The longest stretch in which no decision at all was stored, about anybody."""
    decision: Decision | None = None
    ended_ms: int | None = None
    end: WaitEnd | None = None
    """None: it still waits."""

    def close(self, at_ms: int, end: WaitEnd) -> None:
        """It is over."""
        self.ended_ms, self.end = at_ms, end

    @property
    def lasted_ms(self) -> int | None:
        return None if self.ended_ms is None else self.ended_ms - self.at_ms


class Beside(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody on the same GPU."""

    session: str
    owner: str
    state: str
    """Its phase: running, idle, …"""


class Run(msgspec.Struct, kw_only=True):
    """One attempt on a GPU."""

    seq: int
    at_ms: int
    attempt: int
    gpu: str
    slots: int
    """Of the GPU; 0 also if it was gone."""
    beside: list[Beside]
    asked_to_stop_ms: int | None = None
    asked_to_yield_ms: int | None = None
    checkpoints: int = 0
    ended_seq: int | None = None
    ended_ms: int | None = None
    end: RunEnd | None = None
    """None: it still runs."""
    error: e.Failure | None = None

    def close(self, seq: int, at_ms: int, end: RunEnd) -> None:
        """It is over."""
        self.ended_seq, self.ended_ms, self.end = seq, at_ms, end


class TurnStory(msgspec.Struct, kw_only=True):
    """One turn."""

    turn: int
    seq: int
    at_ms: int
    """When it was said."""
    straight: bool
    """It went to the GPU that held the session, past the door."""
    waits: list[Wait] = msgspec.field(default_factory=list)
    runs: list[Run] = msgspec.field(default_factory=list)
    state: TurnState = "queued"
    ended_ms: int | None = None
    first_token_ms: int | None = None
    usage: e.Usage = e.Usage()
    error: e.Failure | None = None


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """The session gave its slot back."""

    seq: int
    at_ms: int
    gpu: str
    reason: e.ReleaseReason
    decided_seq: int
    waiting: int
    """Turns that waited for the same workload then."""


class Story(msgspec.Struct, kw_only=True):
    """All of a session."""

    session: str
    owner: str
    mode: e.Mode
    type: e.Kind
    model: str
    priority: int
    adapter: str | None
    created_ms: int
    closed_ms: int | None = None
    turns: list[TurnStory] = msgspec.field(default_factory=list)
    releases: list[Release] = msgspec.field(default_factory=list)
    log_seq: int = 0
    """The log's last record that is in this."""
    log_ms: int = 0
    """Its timestamp."""
