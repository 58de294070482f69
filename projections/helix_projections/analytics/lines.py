"""Rows that are not finished yet: a session, its open turn, what a GPU holds. Fields in the order of their columns."""

from __future__ import annotations

import msgspec

from helix_es.core import events as e


class SessionRow(msgspec.Struct, kw_only=True):
    """A row of `sessions`. Its counts are what came on top since the row was last stored."""

    session: str
    owner: str
    mode: str
    type: str
    model: str
    adapter: str | None = None
    name: str | None = None
    priority: int = 0
    state: str = "queued"
    created_at: int | None = None
    """None: the session came before what this fold remembers, so its row is there already."""
    last_at: int = 0
    closed_at: int | None = None
    turns: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    gpu: str | None = None
    held_ms: int = 0

    def stored(self) -> None:
        """The row is in the database now."""
        self.turns = self.prompt_tokens = self.cached_tokens = self.completion_tokens = self.held_ms = 0


class TurnRow(msgspec.Struct, kw_only=True):
    """A row of `turns`."""

    seq: int
    session: str
    turn: int
    owner: str
    mode: str
    type: str
    model: str
    adapter: str | None
    how: str
    state: str
    attempts: int
    gpu: str | None = None
    kind: str | None = None
    slots: int | None = None
    neighbours: int | None = None
    said_at: int
    admitted_at: int | None = None
    started_at: int | None = None
    first_token_at: int | None = None
    ended_at: int | None = None
    place: int | None = None
    wait_ms: int | None = None
    start_ms: int | None = None
    first_token_ms: int | None = None
    total_ms: int | None = None
    compute_ms: int | None = None
    queue_ms: int | None = None
    estimated_ms: int | None = None
    reservation_ms: int | None = None
    reason: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    error: str | None = None

    def back_to_the_door(self) -> None:
        """Its GPU is gone, or it had to give way; another attempt follows."""
        self.state = "queued"
        self.gpu = self.kind = self.slots = self.neighbours = self.started_at = None


class Line(msgspec.Struct, kw_only=True):
    """What is remembered of a session while it waits for a slot or holds one."""

    row: SessionRow
    turn: TurnRow | None = None
    """The open one."""
    turn_stored: bool = False
    returned: e.Failure | None = None
    """Why the runner gave the open turn back."""
    entered_seq: int = 0
    """Its present place in the queue is from this fact."""
    held_since_ms: int | None = None
    ended_ms: int | None = None
    """When its last turn ended."""
    failed: bool = False
    """Its last turn did."""


class Interval(msgspec.Struct, kw_only=True):
    """A row of `gpu_occupancy`."""

    seq: int
    gpu: str
    incarnation: str
    kind: str
    pool: str
    state: str
    purpose: str | None
    model: str | None
    slots: int
    sessions: int
    from_at: int
    to_at: int | None = None


class Asked(msgspec.Struct, kw_only=True):
    """The assignment that a GPU loads a model for."""

    at_ms: int
    reason: str
