"""The Azure LLM inference traces: requests without sessions."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path

from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.rows import Row, csv_rows


def azure(path: Path, *, time_scale: float = 1.0, until_ms: int | None = None) -> Iterator[Arrival]:
    """Yield the requests of `TIMESTAMP,ContextTokens,GeneratedTokens`, conversations or code; each is its own session.

    In order of time, whatever that of the file. Times count from the earliest and are multiplied by `time_scale`;
    `until_ms` is in the trace's own time. Raises Unreadable for a file of another form.
    """
    requests = sorted(map(_request, csv_rows(path)), key=itemgetter(0))  # a public trace need not be in order
    begun_ms = _unix_ms(requests[0][0]) if requests else 0
    for number, (at, prompt_tokens, output_tokens) in enumerate(requests):
        at_ms = _unix_ms(at) - begun_ms
        if until_ms is not None and at_ms >= until_ms:
            return
        yield Arrival(
            at_ms=round(at_ms * time_scale),
            session=f"a{number}",
            turn=1,
            prompt_tokens=prompt_tokens,
            output_tokens=max(1, output_tokens),
        )


def _request(row: Row) -> tuple[datetime, int, int]:
    try:
        at = datetime.fromisoformat(row.text("TIMESTAMP"))
    except ValueError as error:
        raise row.refused("TIMESTAMP", "not a time such as 2023-11-16 18:15:46.68") from error
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return at, row.whole("ContextTokens"), row.whole("GeneratedTokens")


def _unix_ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
