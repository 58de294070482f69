"""What the tables get between two commits: rows that are new, and rows that changed."""

from __future__ import annotations

from typing import Any

import msgspec

Row = tuple[Any, ...]
"""Values in the order of the table's columns; a time is Unix ms."""


class Rows(msgspec.Struct):
    """New and changed rows by table, and how far the log is with them."""

    seq: int = 0
    """The last sequence that they contain."""
    at_ms: int = 0
    """Its timestamp."""
    added: dict[str, list[Row]] = {}
    changed: dict[str, list[Row]] = {}
    """Whole rows that replace those with the same key; of `sessions` the counts are added."""

    def add(self, table: str, row: Row) -> None:
        """`table` gets `row`."""
        rows = self.added.get(table)
        if rows is None:
            self.added[table] = [row]
        else:
            rows.append(row)

    def change(self, table: str, row: Row) -> None:
        """`row` replaces the one in `table` that has its key."""
        self.changed.setdefault(table, []).append(row)

    @property
    def count(self) -> int:
        """All rows."""
        return sum(map(len, self.added.values())) + sum(map(len, self.changed.values()))
