"""The Mooncake conversation trace (FAST '25): as our table of sessions, and as it was published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.rows import csv_rows, json_rows, positive

BLOCK_TOKENS = 512  # of a prefix block
LEAST_BLOCKS = 2  # that a turn shares with the one before: the first block is a system prompt that many have


def mooncake(path: Path, *, time_scale: float = 1.0, until_ms: int | None = None) -> Iterator[Arrival]:
    """Yield the turns of `mooncake_conversation_sessions.csv` in order of arrival, sessions linked by their prefixes.

    Times are multiplied by `time_scale`: 0.5 is twice the load. `until_ms` is in the trace's own time.
    Raises Unreadable for a file of another form.
    """
    for at_ms, arrival in csv_rows(path, _turn):
        if until_ms is not None and at_ms >= until_ms:
            return
        yield msgspec.structs.replace(arrival, at_ms=round(at_ms * time_scale))


def _turn(row: dict[str, str]) -> tuple[int, Arrival]:
    prompt_tokens = positive(row["input_tokens"])
    arrival = Arrival(
        at_ms=positive(row["t_ms"]),
        session=f"m{int(row['session_id'])}",
        turn=positive(row["turn"]),
        prompt_tokens=prompt_tokens,
        output_tokens=max(1, positive(row["output_tokens"])),
        known_tokens=min(prompt_tokens, positive(row["shared_blocks_with_parent"]) * BLOCK_TOKENS),
    )
    return arrival.at_ms, arrival


class Request(msgspec.Struct):
    """A line of the trace as it was published. An id of `hash_ids` stands for a block and all before it."""

    timestamp: int
    input_length: int
    output_length: int
    hash_ids: list[int]


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

    A request goes on from the last one whose full blocks are the longest beginning of its own, at least two, and which
    was shorter. What is shorter than that cannot be linked. Where a conversation forks, both arms are one session.
    Raises Unreadable for a file of another form.
    """
    ends: dict[int, _Seen] = {}
    """By the last full block."""
    for number, request in enumerate(json_rows(path, Request)):
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
