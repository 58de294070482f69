"""A database, opened so that nothing else can be reached through it: a DuckDB file, or a Parquet export."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb

from helix_es.analytics.questions import Limits, Unanswered
from helix_es.analytics.schema import SNAPSHOT, statements

Identity = tuple[int, int]
"""Of a file that is open, so no other has its number; its times change when nothing else does."""


@dataclass(frozen=True)
class Opened:
    """A connection, and what the database holds."""

    connection: duckdb.DuckDBPyConnection
    path: Path
    identity: Identity
    seq: int | None
    """The last sequence of the log that is in it."""
    as_of: datetime | None
    """How far the log and the heartbeats go in it."""

    def replaced(self) -> bool:
        """Return whether another file is at its path by now; none at all is no other."""
        try:
            return _identity(self.path) != self.identity
        except OSError:
            return False


def opened(target: Path, limits: Limits) -> Opened:
    """Return the database at `target`: a file of ours, a folder with a snapshot, or an export's folder.

    Raises Unanswered, `analytics_unavailable`, if there is none or it cannot be opened.
    """
    path = target / SNAPSHOT if (target / SNAPSHOT).is_file() else target
    try:
        identity = _identity(path)
        connection = _export(path) if path.is_dir() else duckdb.connect(path, read_only=True, config=_CONFIG)
    except (OSError, duckdb.Error) as error:
        raise Unanswered("analytics_unavailable", _unopened(path, error)) from error
    try:
        _lock(connection, limits, path if path.is_dir() else None)
        row = connection.execute(_POSITION).fetchone()
    except duckdb.Error as error:
        connection.close()
        raise Unanswered(
            "analytics_unavailable",
            f"{path.name} has not the tables of Helix: name a snapshot of 'helix analytics' or an export",
        ) from error
    seq, as_of = row or (None, None)
    return Opened(connection=connection, path=path, identity=identity, seq=seq, as_of=as_of)


_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    # Python's variables are not tables; nothing is fetched that is not built in.
    "python_enable_replacements": "false",
    "python_scan_all_frames": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}
_POSITION = "SELECT max(seq) FILTER (stream = 'LOG'), max(logged_at) FROM position"


def _lock(connection: duckdb.DuckDBPyConnection, limits: Limits, folder: Path | None) -> None:
    """Take everything away that a query does not need; in this order, since the last but one forbids some."""
    settings = {
        "TimeZone": "'UTC'",
        "temp_directory": "''",
        "memory_limit": f"'{limits.memory_bytes}B'",
        "threads": str(limits.threads),
        "allow_persistent_secrets": "false",
        "max_expression_depth": "250",
        "enable_external_access": "false",
        "lock_configuration": "true",
    }
    if folder is not None:
        connection.execute("SET allowed_directories = [?]", [f"{folder}{os.sep}"])
    for name, value in settings.items():
        connection.execute(f"SET {name} = {value}")


def _export(folder: Path) -> duckdb.DuckDBPyConnection:
    """Return the tables of a Parquet export as views; those that it lacks are empty."""
    kept = sorted(each.name for each in folder.iterdir() if each.is_dir() and any(each.rglob("*.parquet")))
    if "events" not in kept:
        raise OSError(errno.ENOENT, "it holds no events/*/*.parquet of an export")
    connection = duckdb.connect(config=_CONFIG)
    connection.execute(statements())
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    for name in kept:
        if name in tables:
            files = str(folder / name / "**" / "*.parquet").replace("'", "''")
            connection.execute(f"DROP TABLE {name}")
            connection.execute(
                f"CREATE VIEW {name} AS FROM read_parquet('{files}', hive_partitioning=true, union_by_name=true)"
            )
    if "position" not in kept:
        connection.execute("INSERT INTO position SELECT 'LOG', max(seq), max(logged_at) FROM events")
    return connection


def _identity(path: Path) -> Identity:
    found = path.stat()
    return found.st_dev, found.st_ino


def _unopened(path: Path, error: Exception) -> str:
    if "lock" in str(error).lower():
        return (
            f"{path.name} belongs to a running 'helix analytics': name {SNAPSHOT} beside it, or ask the API"
        )
    if isinstance(error, OSError):
        said = error.strerror or str(error)
        return (
            f"{path.name} cannot be read ({said}): start 'helix analytics', or name a database or an export"
        )
    return f"{path.name} is no database that this DuckDB can open; let 'helix analytics' make it anew"
