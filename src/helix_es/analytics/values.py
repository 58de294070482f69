"""Values as DuckDB hands them out, made into those that JSON has."""

from __future__ import annotations

import math
from base64 import b64encode
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec

# Exact: a DECIMAL and a HUGEINT are JSON numbers with all their digits; who reads them as doubles loses some.
_ENCODER = msgspec.json.Encoder(decimal_format="number")
_INFINITE = (
    datetime.min,
    datetime.max,
    date.min,
    date.max,
)  # what DuckDB makes of '-infinity' and 'infinity'
_WORD = range(-(2**63), 2**63)  # what the encoder takes as an int


def encoded(row: tuple[Any, ...]) -> bytes:
    """Return the row as a JSON array."""
    return _ENCODER.encode([plain(value) for value in row])


def plain(value: Any) -> Any:
    """Return `value` as JSON has it.

    Instants are RFC 3339 in UTC, TIMESTAMP without a zone is the same without its Z, an INTERVAL is an ISO 8601
    duration in which a month counts 30 days, a BLOB is base64; NaN and infinities are null; what JSON has nothing
    for is DuckDB's text.
    """
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if value in _WORD else Decimal(value)
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return value if value.is_finite() else None
        case datetime() | date() | time():
            return _when(value)
        case timedelta():
            return value
        case bytes() | bytearray() | memoryview():
            return b64encode(value).decode()
        case list() | tuple():
            return [plain(each) for each in value]
        case dict():
            return {_key(name): plain(each) for name, each in value.items()}
        case _:
            return str(value)


def _when(value: datetime | date | time) -> str | None:
    if value in _INFINITE:
        return None
    if not isinstance(value, datetime):
        return value.isoformat()
    precision = "microseconds" if value.microsecond % 1000 else "milliseconds"
    if value.tzinfo is None:
        return value.isoformat(timespec=precision)
    return value.astimezone(UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def _key(name: Any) -> str:
    """Return a key of a MAP, which may be anything, as a key of an object."""
    found = plain(name)
    return found if isinstance(found, str) else _ENCODER.encode(found).decode()
