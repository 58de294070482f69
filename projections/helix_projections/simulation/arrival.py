"""Who says what when: a turn, or a job, as a trace or a log has it."""

from __future__ import annotations

import msgspec

from helix_es.core.events import Workload


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A turn as a trace has it. When it is answered is for the simulation to find out."""

    at_ms: int
    session: str
    turn: int
    """From 1."""
    prompt_tokens: int = 0
    """The whole context."""
    output_tokens: int = 1
    known_tokens: int = 0
    """Of the context: in the cache of the GPU that answered the turn before."""
    work_ms: int = 0
    """Of what has no tokens, a fine-tune or a picture: how long a GPU of speed 1 computes it, alone."""
    workload: Workload | None = None
    """None: that of the scenario."""
    owner: str = ""
    """Empty: one of the scenario's owners."""
    priority: int = 0
    max_wait_ms: int | None = None
    """It fails rather than wait longer than this."""
    think_ms: int | None = None
    """Said so long after the answer before, whenever that comes (closed loop). None: at `at_ms`, or as soon as the turn
    before is answered, if that is later (open loop)."""
    closes_ms: int | None = None
    """So long after the answer the session is closed. None: it falls silent."""
