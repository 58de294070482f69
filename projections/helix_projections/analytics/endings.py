"""How a turn ends: in its own fact, or because its session was closed or its slot freed while it was to stop."""

from __future__ import annotations

from typing import Any

from helix_es.core import events as e
from helix_projections.analytics.lines import TurnRow


def ended(turn: TurnRow, event: Any, at_ms: int) -> None:
    """Finish the row of `turn`, which `event` ends."""
    turn.ended_at, turn.total_ms = at_ms, at_ms - turn.said_at
    if turn.started_at is not None:
        turn.start_ms = turn.started_at - turn.said_at
    kind = type(event)
    if kind is e.TurnFailed:
        turn.state = "failed"
        turn.error_code, turn.error = event.error.code, event.error.message
        return
    if kind is e.TurnCompleted:
        turn.state, turn.finish_reason = "completed", event.finish_reason
        turn.compute_ms, turn.queue_ms = event.total_ms, event.queue_ms
    else:
        turn.state = turn.finish_reason = "cancelled"
        if kind is not e.TurnCancelled:
            return  # it was closed with its session, or its slot was freed
    usage = event.usage
    turn.prompt_tokens, turn.cached_tokens = usage.prompt_tokens, usage.cached_tokens
    turn.completion_tokens = usage.completion_tokens
    if event.first_token_ms is not None and turn.started_at is not None:
        # The runner's clock gives a distance only; the log gives the instant that it counts from.
        turn.first_token_at = min(at_ms, turn.started_at + event.first_token_ms)
        turn.first_token_ms = turn.first_token_at - turn.said_at
