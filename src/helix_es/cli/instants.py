"""Instants as people give them: a sequence, a time, or how long ago; and how they are shown."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

import rich_click as click

AGO = re.compile(r"-((?:\d+(?:\.\d+)?(?:ms|s|min|m|h|d))+)\Z")
PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d)")
UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
ALLOWED = "a sequence (1234), a time (2026-11-24T12:30:00Z) or how long ago (-10m, -1h30m)"


class Seq(NamedTuple):
    """After this record."""

    seq: int


class At(NamedTuple):
    """At this time, Unix ms."""

    ms: int


class Ago(NamedTuple):
    """So long before the end of a recording, or before now in a log that goes on, ms."""

    ms: int


When = Seq | At | Ago


class Moment(click.ParamType[When]):
    """A `When` on the command line."""

    name = "TIME|SEQ"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the `When` that `value` says; fails with what is allowed."""
        if isinstance(value, Seq | At | Ago):
            return value
        found = parse(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no instant: give {ALLOWED}", param, ctx)
        return found


def parse(text: str) -> When | None:
    """Return what `text` says, None if it is no instant. A time without a zone is UTC."""
    if re.fullmatch(r"[0-9]{1,18}", text):
        return Seq(int(text))
    if ago := AGO.match(text):
        return Ago(round(sum(float(n) * UNITS_MS[unit] for n, unit in PART.findall(ago[1]))))
    try:
        at = datetime.fromisoformat(text.replace("z", "Z"))
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return At(round(at.timestamp() * 1000))


def rfc3339(ms: int) -> str:
    """Return Unix ms as it stands in JSON, UTC."""
    return _utc(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def day_clock(ms: int) -> str:
    """Return Unix ms for people, with the day, UTC."""
    return f"{_utc(ms):%Y-%m-%d %H:%M:%S}.{ms % 1000:03d}Z"


def clock(ms: int) -> str:
    """Return the time of day of Unix ms, UTC."""
    return f"{_utc(ms):%H:%M:%S}.{ms % 1000:03d}"


def lasted(ms: int) -> str:
    """Return a duration in a unit that fits it."""
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _utc(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
