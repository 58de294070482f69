"""The tables of the analytics database: their text, and its version."""

from __future__ import annotations

from importlib import resources

SCHEMA = 1
"""A database of another one is built anew from the log."""

DATABASE = "helix.duckdb"
"""The file that its writer alone may open."""
SNAPSHOT = "snapshot.duckdb"
"""The file that readers open, put in place of the last one by renaming."""


def statements() -> str:
    """Return the SQL that makes all tables and views in an empty database."""
    return resources.files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")
