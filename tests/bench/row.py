"""What a row of the bench's table says."""

from __future__ import annotations

import msgspec


class Row(msgspec.Struct, frozen=True):
    """One promise."""

    what: str
    found: str
    promised: str
    kept: bool
