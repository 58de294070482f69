"""Write the tables as Parquet files: events by day and sequence, each once; the others whole."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec

from helix_es.analytics.parquet import BYTES, EVENTS, file_name, files
from helix_es.core.errors import Misconfigured

ABOUT = "export.json"
"""Says of which log the export is."""
WHOLE = (
    "position",
    "set_aside",
    "heartbeats",
    "sessions",
    "turns",
    "admissions",
    "gpu_occupancy",
    "cold_starts",
    "finetune_steps",
    "requeues",
    "releases",
    "fleet_sizes",
    "policies",
)
MOST_EVENTS = 2_000_000  # of one file: what a reader can hold without thinking of it

Run = Callable[[str, list[Any]], list[tuple[Any, ...]]]
"""Runs SQL on the database that is exported."""


class Exported(NamedTuple):
    """What an export did."""

    events: int
    """That were not there before."""
    last_seq: int
    files: int


class _About(msgspec.Struct):
    log_created: str


def export(run: Run, folder: Path, from_seq: int = 1) -> Exported:
    """Bring the export in `folder` up to the database; a new one begins at `from_seq`.

    It may end anywhere: what is there is whole, and the next one goes on. Raises Misconfigured if `folder` holds the
    export of another log, or another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        _of_this_log(run, folder)
        before = files(folder)
        after_seq = before[-1].last_seq if before else from_seq - 1
        made = [_events(run, folder, *part) for part in _parts(run, after_seq)]
        for table in WHOLE:
            _whole(run, folder, table)
    last_seq = made[-1][1] if made else after_seq
    return Exported(sum(last - first + 1 for first, last in made), last_seq, len(made) + len(WHOLE))


def export_file(database: Path, folder: Path, from_seq: int = 1) -> Exported:
    """Export a database that nobody writes to; see `export`."""
    with duckdb.connect(str(database), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return export(lambda sql, values: connection.execute(sql, values).fetchall(), folder, from_seq)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Misconfigured(f"{folder}: another export writes there; wait for its end") from None
        yield


def of_log(folder: Path, created: str) -> bool:
    """Whether `folder` holds an export of the log that was made at `created`."""
    try:
        return msgspec.json.decode((folder / ABOUT).read_bytes(), type=_About).log_created == created
    except (OSError, msgspec.DecodeError):
        return False


def _of_this_log(run: Run, folder: Path) -> None:
    created = str(run("SELECT value FROM meta WHERE key = 'log_created'", [])[0][0])
    about = folder / ABOUT
    if about.exists():
        try:
            found = msgspec.json.decode(about.read_bytes(), type=_About).log_created
        except msgspec.DecodeError as error:
            raise Misconfigured(f"{about} is damaged: {error}; name another folder") from error
        if found != created:
            raise Misconfigured(
                f"{folder} holds the log made at {found}, not at {created}: name another folder"
            )
        return
    if files(folder):
        raise Misconfigured(f"{folder} holds an export, but not of which log ({ABOUT}): name another folder")
    part = about.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(_About(created)))
    part.replace(about)


def _parts(run: Run, after_seq: int) -> Iterator[tuple[str, int, int]]:
    """Yield day, first and last sequence of each file to make: days begin at their first event, and stay whole runs."""
    found = run(
        """SELECT strftime(logged_at, '%Y-%m-%d') AS day, min(seq) FROM events WHERE seq > ?
        GROUP BY day, (seq - 1) // ? ORDER BY min(seq)""",
        [after_seq, MOST_EVENTS],
    )
    last = run("SELECT max(seq) FROM events", [])[0][0]
    for n, (day, first) in enumerate(found):
        yield day, first, found[n + 1][1] - 1 if n + 1 < len(found) else last


def _events(run: Run, folder: Path, day: str, first: int, last: int) -> tuple[int, int]:
    into = folder / EVENTS / f"day={day}" / file_name(first, last)
    _written(
        run,
        f"""SELECT e.* REPLACE (e.body::VARCHAR AS body), s.body AS {BYTES}
        FROM events e LEFT JOIN set_aside s ON s.stream = 'LOG' AND s.seq = e.seq
        WHERE e.seq BETWEEN {first} AND {last} ORDER BY e.seq""",  # noqa: S608  # numbers and names of ours
        into,
    )
    return first, last


def _whole(run: Run, folder: Path, table: str) -> None:
    _written(run, f"FROM {table}", folder / table / f"{table}.parquet")


def _written(run: Run, query: str, path: Path) -> None:
    """Put the rows of `query` into `path`; until they are all there, it has another name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    target = str(part).replace("'", "''")
    run(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)", [])
    with part.open("rb") as file:
        os.fsync(file.fileno())  # who truncates the log next relies on it
    part.replace(path)
