"""The Mooncake conversation trace (FAST '25): as our table of sessions, and as it was published."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Annotated

import msgspec

from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.rows import Number, Row, Whole, csv_rows, json_rows

BLOCK_TOKENS = 512  # of a prefix block
LEAST_BLOCKS = 2  # that a turn shares with the one before: the first block is a system prompt that many have


def mooncake(path: Path, *, time_scale: float = 1.0, until_ms: int | None = None) -> Iterator[Arrival]:
    """Yield the turns of `mooncake_conversation_sessions.csv` in order of arrival, whatever that of the file.

    Its sessions are linked by their prefixes. Times are multiplied by `time_scale`: 0.5 is twice the load. `until_ms`
    is in the trace's own time. Raises Unreadable for a file of another form.
    """
    for arrival in sorted(map(_turn, csv_rows(path)), key=attrgetter("at_ms")):
        if until_ms is not None and arrival.at_ms >= until_ms:
            return
        yield msgspec.structs.replace(arrival, at_ms=round(arrival.at_ms * time_scale))


def _turn(row: Row) -> Arrival:
    prompt_tokens = row.whole("input_tokens")
    return Arrival(
        at_ms=row.whole("t_ms"),
        session=f"m{row.whole('session_id')}",
        turn=row.whole("turn"),
        prompt_tokens=prompt_tokens,
        output_tokens=max(1, row.whole("output_tokens")),
        known_tokens=min(prompt_tokens, row.whole("shared_blocks_with_parent") * BLOCK_TOKENS),
    )


class Request(msgspec.Struct):
    """A line of the trace as it was published. An id of `hash_ids` stands for a block and all before it."""

    timestamp: Number
    """ms."""
    input_length: Whole
    output_length: Whole
    hash_ids: Annotated[list[int], msgspec.Meta(description="a list of whole numbers")]


class _Seen(msgspec.Struct):
    """A request that a later one may go on from."""

    session: str
    turn: int
    input_length: int
    hash_ids: list[int]


def mooncake_requests(
    path: Path, *, time_scale: float = 1.0, until_ms: int | None = None
) -> Iterator[Arrival]:
    """Yield the turns of the published JSONL, linked into sessions as `mooncake_conversation_sessions.csv` is.

    In order of arrival, whatever that of the file. A request goes on from the last one whose full blocks are the
    longest beginning of its own, at least two, and which was shorter. What is shorter than that cannot be linked. Where
    a conversation forks, both arms are one session. Raises Unreadable for a file of another form.
    """
    ends: dict[int, _Seen] = {}
    """By the last full block."""
    requests = sorted(json_rows(path, Request), key=attrgetter("timestamp"))  # before they are linked
    for number, request in enumerate(requests):
        if until_ms is not None and request.timestamp >= until_ms:
            return
        before = _before(request, ends)
        shared = 0 if before is None else _common(request.hash_ids, before.hash_ids)
        session, turn = (f"m{number}", 1) if before is None else (before.session, before.turn + 1)
        if len(request.hash_ids) >= LEAST_BLOCKS:
            ends[request.hash_ids[-2]] = _Seen(session, turn, request.input_length, request.hash_ids)
        yield Arrival(
            at_ms=round(request.timestamp * time_scale),
            session=session,
            turn=turn,
            prompt_tokens=request.input_length,
            output_tokens=max(1, request.output_length),
            known_tokens=min(request.input_length, shared * BLOCK_TOKENS),
        )


def _before(request: Request, ends: dict[int, _Seen]) -> _Seen | None:
    for block in reversed(request.hash_ids[LEAST_BLOCKS - 1 :]):
        seen = ends.get(block)
        if seen is not None and seen.input_length < request.input_length:
            return seen
    return None


def _common(these: list[int], those: list[int]) -> int:
    return next(
        (n for n, (this, that) in enumerate(zip(these, those, strict=False)) if this != that),
        min(len(these), len(those)),
    )
