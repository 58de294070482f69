"""What the sides print, a JSON line each, as values."""

from __future__ import annotations

import msgspec


class Version(msgspec.Struct, frozen=True, tag_field="measured", tag="version"):
    """Of the system that is measured."""

    version: str


class Dispatch(msgspec.Struct, frozen=True, tag_field="measured", tag="dispatch"):
    """One closed loop of clients."""

    how: str
    concurrent: int
    tasks: int
    """Answered."""
    failed: int
    p50_ms: float | None
    p99_ms: float | None
    per_s: float
    error: str


class Recovery(msgspec.Struct, frozen=True, tag_field="measured", tag="recovery"):
    """What became of the tasks that ran on a worker when it was killed."""

    how: str
    in_flight: int
    failed: int
    """Whose client was told of an error, and sent the task again."""
    told_s: float | None
    """When the last of them was told, in seconds after the kill."""
    answered: int
    first_s: float | None
    last_s: float | None
    """When they were answered, in seconds after the kill; WORK_S of it is the work itself."""
    resent: int
    others_failed: int
    """Tasks of the other worker that failed."""
    error: str


Found = Version | Dispatch | Recovery
_LINE = msgspec.json.Decoder(Found)


def read(printed: str) -> list[Found]:
    """Return what `printed` says; lines that are no objects are a library's own words. Raises msgspec.DecodeError."""
    return [_LINE.decode(line) for line in printed.splitlines() if line.startswith("{")]
