"""Traces of others: which reader a file is for, and chats and batch jobs of several as one."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from helix_es.core.errors import Unreadable
from helix_es.core.events import Workload
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.azure import azure
from helix_projections.simulation.mooncake import mooncake as mooncake
from helix_projections.simulation.mooncake import mooncake_requests
from helix_projections.simulation.philly import TUNING, philly
from helix_projections.simulation.rows import columns, shown

Form = Literal["mooncake", "mooncake-jsonl", "azure", "philly", "log"]

HEADS: dict[Form, frozenset[str]] = {
    "mooncake": frozenset(
        {"t_ms", "session_id", "turn", "input_tokens", "output_tokens", "shared_blocks_with_parent"}
    ),
    "azure": frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}),
    "philly": frozenset({"job", "submit_s", "duration_s", "num_gpus", "vc"}),
}
KNOWN = (
    "our Mooncake CSV, Mooncake's JSONL, an Azure LLM CSV, the Philly CSV,"
    " or a log of Helix (.jsonl, or the folder of an export)"
)
LOOKED_AT = 65_536  # bytes: a line of the Mooncake JSONL has some hundred blocks


def detect(path: Path) -> Form:
    """Return which form a file has, by its first line that is not empty; "log": a recorded log, a folder or JSON lines.

    Raises Unreadable for one that is none of these.
    """
    if path.is_dir():
        return "log"
    try:
        line, first = _first_line(path)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    if not first:
        raise Unreadable(f"{path}: there is nothing in it; give {KNOWN}")
    if first.startswith("{"):
        return _json_form(path, line, first)
    names = set(columns(first))
    for form, head in HEADS.items():
        if head <= names:
            return form
    raise Unreadable(f"{path}: neither {KNOWN}; its first line is {shown(repr(first))}")


def _first_line(path: Path) -> tuple[int, str]:
    """Return which line is the first that is not empty, and what it says; "" if all are."""
    with path.open("rb") as file:
        line = 0
        while raw := file.readline(LOOKED_AT):
            line += 1
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8", "replace").strip()
            if text:
                return line, text
    return line, ""


def _json_form(path: Path, line: int, first: str) -> Form:
    try:
        keys = json.loads(first).keys()  # a NaN in it is for the reader to name
    except (ValueError, RecursionError) as error:
        why = f"this is not JSON in one line of at most {LOOKED_AT:,} bytes"
        raise Unreadable(f"{path}, line {line}: {why}") from error
    if {"timestamp", "input_length", "output_length", "hash_ids"} <= keys:
        return "mooncake-jsonl"
    if {"seq", "at_ms", "subject", "payload"} <= keys:
        return "log"
    raise Unreadable(f"{path}: neither {KNOWN}; its first line has {shown(repr(', '.join(sorted(keys))))}")


def read_trace(
    path: Path, *, time_scale: float = 1.0, until_ms: int | None = None, batch: Workload = TUNING
) -> Iterator[Arrival]:
    """Yield what is said in a trace of others, in order of time; jobs of a batch trace are of the workload `batch`.

    Times are multiplied by `time_scale`: 0.5 is twice the load. `until_ms` is in the trace's own time.
    Raises Unreadable: at once for a form that is not known, with its line for what does not fit it.
    """
    form = detect(path)
    if form == "mooncake":
        return mooncake(path, time_scale=time_scale, until_ms=until_ms)
    if form == "mooncake-jsonl":
        return mooncake_requests(path, time_scale=time_scale, until_ms=until_ms)
    if form == "azure":
        return azure(path, time_scale=time_scale, until_ms=until_ms)
    if form == "philly":
        return philly(path, workload=batch, time_scale=time_scale, until_ms=until_ms)
    raise Unreadable(f"{path}: this is a log of Helix, not a trace: give it with --log")


def merged(*traces: Iterable[Arrival]) -> Iterator[Arrival]:
    """Yield the arrivals of several traces in order of time."""
    return heapq.merge(*traces, key=lambda arrival: arrival.at_ms)
