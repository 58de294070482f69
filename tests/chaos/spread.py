"""What many durations come to."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Milliseconds."""

    count: int
    p50: int
    p95: int
    most: int


def spread(values: Iterable[int]) -> Spread:
    """Return the percentiles."""
    found = sorted(values)
    if not found:
        return Spread(0, 0, 0, 0)
    last = len(found) - 1
    return Spread(len(found), found[last // 2], found[int(last * 0.95)], found[-1])
