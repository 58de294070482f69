"""How long GPUs took, from a log: a service model for each kind and model, and what it stands on."""

from __future__ import annotations

import msgspec

from helix_projections.simulation.service import Service


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What a service model stands on."""

    turns: int
    """Answered turns of chats that it was fitted to."""
    loads: int
    first_token_error: float | None
    """Median of |fitted − measured| / measured over those turns, of the time from started to the first token."""
    total_error: float | None
    """The same of the time from started to ended."""
    defaults: list[str]
    """Fields of the service for which the log has too little: they are the default's."""


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """What was fitted. The keys are `<gpu kind>/<model>`."""

    services: dict[str, Service]
    notes: dict[str, Note]
    decide_ms: int
    """Mean without accidents, from a fact or beat to the decision that followed it."""
    start_ms: int
    """The same, from a task to its start."""

    def lines(self) -> list[str]:
        """Return what is to stand beside results that follow from it, one line for each kind and model."""
        return [_line(key, self.services[key], self.notes[key]) for key in sorted(self.services)]


def _line(key: str, service: Service, note: Note) -> str:
    if not note.turns:
        return f"{key}: load {service.load_ms:,} ms (from {note.loads} loads; no chats)"
    step = f"step {service.weights_ms:.3g} ms + {service.session_ms:.3g} ms a session"
    first = f"first token {service.first_ms:.3g} ms + {service.first_session_ms:.3g} ms for each other turn"
    read = f"{service.prefill_tokens_per_s:,.0f} prompt tokens/s"
    errors = [
        f"{name} {error:.1%}"
        for name, error in (("first token", note.first_token_error), ("whole turn", note.total_error))
        if error is not None
    ]
    stands = f"from {note.turns:,} turns and {note.loads} loads" + (
        f", median error: {', '.join(errors)}" if errors else ""
    )
    missing = f"; by default, for want of data: {', '.join(note.defaults)}" if note.defaults else ""
    how = "one prompt after the other" if service.serial else "prompts together"
    return f"{key}: {step}, {first}, {read}, {how}, load {service.load_ms:,} ms ({stands}{missing})"
