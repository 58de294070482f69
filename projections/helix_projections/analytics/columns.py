"""Rows as Arrow tables, which DuckDB takes in whole columns; what does not fit its column becomes NULL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from helix_projections.analytics.rows import Row

_TIME = pa.timestamp("ms", tz="UTC")
# The years 1 to 9999, which RFC 3339 can say. DuckDB holds some 290,000 years to either side, but it cannot compute
# with the outermost ones, and what is beyond them would fail the whole transaction.
_TIMES_MS = range(-62_135_596_800_000, 253_402_300_800_000)

_TYPES = {
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR": pa.string(),
    "JSON": pa.string(),
    "BLOB": pa.binary(),
    "VARCHAR[]": pa.list_(pa.string()),
    "TIMESTAMP WITH TIME ZONE": _TIME,
}


class Columns:
    """The columns of one table, as DuckDB names them and their types."""

    def __init__(self, columns: Iterable[tuple[str, str]]) -> None:
        self.names = [name for name, _ in columns]
        self._types = [_TYPES[kind] for _, kind in columns]

    def table(self, rows: Sequence[Row]) -> pa.Table:
        """Return `rows`, of which there is at least one, as a table."""
        return pa.table(
            [_array(values, kind) for values, kind in zip(zip(*rows, strict=True), self._types, strict=True)],
            names=self.names,
        )


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if kind == _TIME:
        values = _bounded(values)
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
        # A fact can hold any number and any text that JSON can: one that no column can must not stop the rest.
        return pa.array([value if _fits(value, kind) else None for value in values], kind)


def _bounded(times_ms: Sequence[int | None]) -> Sequence[int | None]:
    known = [time_ms for time_ms in times_ms if time_ms is not None]
    if not known or (min(known) in _TIMES_MS and max(known) in _TIMES_MS):
        return times_ms
    return [time_ms if time_ms in _TIMES_MS else None for time_ms in times_ms]


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
        return False
    return True
