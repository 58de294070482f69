"""The life of a session: one table says which fact leads from which phase to which; everything else is derived."""

from __future__ import annotations

from typing import Literal

from helix_es.core import events as e

Phase = Literal[
    "new",  # nothing is known of it
    "created",  # no turn yet
    "queued",  # a turn waits at the door; no slot
    "admitted",  # the turn is a task for any GPU; a slot is set aside
    "continued",  # the turn is a task for the GPU that holds the session
    "running",
    "cancelling",  # running, and asked to stop: it must not begin anew on another GPU
    "returned",  # the runner gave the turn back; its slot is still to be freed
    "idle",  # holds a slot, no turn is open
    "released",  # no slot, no turn is open
    "closed",
]

SessionState = Literal["queued", "active", "idle", "released", "closed", "failed"]
TurnState = Literal["queued", "admitted", "running", "completed", "failed", "cancelled"]

# Everything that affects transitions is here. What is not in the table does not happen: such a fact is ignored.
NEXT: dict[type[e.Event], dict[Phase, Phase]] = {
    e.SessionCreated: {"new": "created"},
    e.TurnQueued: {"created": "queued", "released": "queued"},
    e.TurnAdmitted: {"queued": "admitted"},
    e.TurnContinued: {"idle": "continued"},
    e.TurnStarted: {"admitted": "running", "continued": "running"},
    e.TurnProgressed: {"running": "running", "cancelling": "cancelling"},
    e.TurnCancelling: {"running": "cancelling"},
    e.TurnYielding: {"running": "running", "cancelling": "cancelling"},
    e.TurnReturned: {"running": "returned", "cancelling": "cancelling"},
    e.TurnCompleted: {"running": "idle", "cancelling": "idle"},
    # A runner may refuse a task before it starts it, and what has not started may be cancelled where it waits.
    e.TurnFailed: {
        "running": "idle",
        "cancelling": "idle",
        "continued": "idle",
        "admitted": "released",
        "queued": "released",
    },
    e.TurnCancelled: {
        "returned": "idle",
        "running": "idle",
        "cancelling": "idle",
        "continued": "idle",
        "admitted": "released",
        "queued": "released",
    },
    # An open turn goes back to the door when its GPU is gone, unless somebody wanted it to stop: then that is its end.
    e.SessionReleased: {
        "idle": "released",
        "running": "queued",
        "cancelling": "released",
        "continued": "queued",
        "returned": "queued",
        "closed": "closed",
    },
    e.SessionClosed: {
        "created": "closed",
        "queued": "closed",
        "admitted": "closed",
        "continued": "closed",
        "running": "closed",
        "cancelling": "closed",
        "returned": "closed",
        "idle": "closed",
        "released": "closed",
    },
}

OPEN: frozenset[Phase] = frozenset({"queued", "admitted", "continued", "running", "cancelling", "returned"})
"""Phases in which a turn is open."""

SESSION_STATE: dict[Phase, SessionState] = {
    "new": "queued",
    "created": "queued",
    "queued": "queued",
    "admitted": "queued",
    "continued": "active",
    "running": "active",
    "cancelling": "active",
    "returned": "active",
    "idle": "idle",
    "released": "released",
    "closed": "closed",
}


def next_phase(phase: Phase, event: e.Event) -> Phase | None:
    """Return the phase after `event`, or None if it cannot happen in `phase`."""
    return NEXT.get(type(event), {}).get(phase)
