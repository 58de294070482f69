"""Readers of public workload traces: who says what when, and how long it is."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import msgspec

from helix_es.core.errors import Unreadable

BLOCK_TOKENS = 512  # of a prefix block in the Mooncake trace


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A turn as a trace has it. When it is answered is for the simulation to find out."""

    at_ms: int
    session: str
    turn: int
    """From 1."""
    prompt_tokens: int
    """The whole context."""
    output_tokens: int
    known_tokens: int = 0
    """Of the context: in the cache of the GPU that answered the turn before."""


def mooncake(path: Path, *, time_scale: float = 1.0, until_ms: int | None = None) -> Iterator[Arrival]:
    """Yield the turns of `mooncake_conversation_sessions.csv` in order of arrival, sessions linked by their prefixes.

    Times are multiplied by `time_scale`: 0.5 is twice the load. `until_ms` is in the trace's own time.
    Raises Unreadable for a file of another form.
    """
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                arrival = _mooncake_row(row, time_scale)
                at_ms = int(row["t_ms"])
            except (KeyError, TypeError, ValueError) as error:
                raise Unreadable(f"{path.name}, line {line}: {error!r}") from error
            if until_ms is not None and at_ms >= until_ms:
                return
            yield arrival


def _mooncake_row(row: dict[str, str], time_scale: float) -> Arrival:
    prompt_tokens = int(row["input_tokens"])
    return Arrival(
        at_ms=round(int(row["t_ms"]) * time_scale),
        session=f"m{row['session_id']}",
        turn=int(row["turn"]),
        prompt_tokens=prompt_tokens,
        output_tokens=max(1, int(row["output_tokens"])),
        known_tokens=min(prompt_tokens, int(row["shared_blocks_with_parent"]) * BLOCK_TOKENS),
    )
