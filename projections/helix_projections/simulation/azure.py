"""The Azure LLM inference traces: requests without sessions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.rows import csv_rows, positive


def azure(path: Path, *, time_scale: float = 1.0, until_ms: int | None = None) -> Iterator[Arrival]:
    """Yield the requests of `TIMESTAMP,ContextTokens,GeneratedTokens`, conversations or code; each is its own session.

    Times count from the first one's and are multiplied by `time_scale`; `until_ms` is in the trace's own time.
    Raises Unreadable for a file of another form.
    """
    begun_ms: int | None = None
    for number, (at_ms, prompt_tokens, output_tokens) in enumerate(csv_rows(path, _request)):
        begun_ms = at_ms if begun_ms is None else begun_ms
        if until_ms is not None and at_ms - begun_ms >= until_ms:
            return
        yield Arrival(
            at_ms=max(0, round((at_ms - begun_ms) * time_scale)),
            session=f"a{number}",
            turn=1,
            prompt_tokens=prompt_tokens,
            output_tokens=max(1, output_tokens),
        )


def _request(row: dict[str, str]) -> tuple[int, int, int]:
    at = datetime.fromisoformat(row["TIMESTAMP"].strip())
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return round(at.timestamp() * 1000), positive(row["ContextTokens"]), positive(row["GeneratedTokens"])
