"""Open the database and go on where it stands, or move it aside and begin anew; it always says why."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import duckdb
import structlog

from helix_es.analytics.schema import DATABASE, SNAPSHOT
from helix_es.core.errors import Misconfigured, Unreadable
from helix_projections.analytics.chronicle import Chronicle
from helix_projections.analytics.failing import disk_full, told
from helix_projections.analytics.store import VERSION, WAL_MIB, Store

log = structlog.get_logger(__name__)

LOG_CREATED, BEATS_CREATED = "log_created", "beats_created"
LOCK = "lock"


class Stale(NamedTuple):
    """Why a database cannot go on."""

    kind: str
    """What it is called after it was moved aside."""
    reason: str


class Expected(NamedTuple):
    """The log that the database must be of."""

    created: str
    last_seq: int
    wal_mib: int = WAL_MIB


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder for this process alone. Raises Misconfigured if another has it, Unavailable if it takes none."""
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Misconfigured(
                f"{folder}: another 'helix analytics' writes there; stop it, or name another folder in [analytics]"
            ) from None
        yield


def in_use(folder: Path) -> bool:
    """Whether a process holds the folder."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def opened(folder: Path, expected: Expected) -> tuple[Store, Chronicle]:
    """Return the database in `folder` and the fold that goes on from it; a new one where there is none that fits.

    Raises Misconfigured if another program has it, duckdb.Error or OSError if there is no room for it.
    """
    path = folder / DATABASE
    if path.exists():
        _refuse_shared(path)
        found = _gone_on(path, expected)
        if not isinstance(found, Stale):
            return found
        return anew(folder, found, expected), Chronicle()
    return _made(path, expected), Chronicle()


def anew(folder: Path, stale: Stale, expected: Expected) -> Store:
    """Move the database in `folder` aside, which must be closed, and return an empty one for the log of now."""
    path = folder / DATABASE
    aside = moved_aside(path, stale.kind)
    if stale.kind != "damaged":
        with suppress(FileNotFoundError):
            (folder / SNAPSHOT).unlink()  # readers must not take it for what there is now
    log.warning("analytics_begins_anew", reason=stale.reason, old=str(aside))
    return _made(path, expected)


def _made(path: Path, expected: Expected) -> Store:
    _wal(path).unlink(missing_ok=True)  # of a database that somebody took away
    store = Store(path, expected.wal_mib)
    store.create({LOG_CREATED: expected.created})
    return store


def _gone_on(path: Path, expected: Expected) -> tuple[Store, Chronicle] | Stale:
    store = None
    try:
        store = Store(path, expected.wal_mib)
        stale = _stale(store, expected)
        if stale is None:
            return store, _restored(store)
    except (duckdb.Error, Unreadable) as error:
        if disk_full(error):
            if store is not None:
                store.close()
            raise
        stale = Stale("damaged", f"the database is damaged: {str(error).splitlines()[0]}")
    if store is not None:
        store.close()
    return stale


def _stale(store: Store, expected: Expected) -> Stale | None:
    meta = store.meta()
    if meta.get("schema") != VERSION:
        return Stale(
            "old-schema", f"its tables are of version {meta.get('schema')}, this release makes {VERSION}"
        )
    position, _ = store.reached("LOG")
    if meta.get(LOG_CREATED) != expected.created:
        return Stale(
            "other-log", f"it is of the log made at {meta.get(LOG_CREATED)}, not at {expected.created}"
        )
    if position > expected.last_seq:
        return Stale("other-log", f"it is at sequence {position}, the log ends at {expected.last_seq}")
    return None


def _restored(store: Store) -> Chronicle:
    """Return the fold at the position of `store`: the kept one, and the events since."""
    kept = store.fold()
    chronicle = Chronicle() if kept is None else Chronicle.load(kept[1])
    for messages in store.messages(chronicle.occupancy.seq):
        for message in messages:
            chronicle.apply(message)
        chronicle.take()  # the tables have these rows
    position, _ = store.reached("LOG")
    if chronicle.occupancy.seq != position:
        raise Unreadable(f"events end at {chronicle.occupancy.seq}, the position is {position}")
    return chronicle


def moved_aside(path: Path, kind: str) -> Path:
    """Give the file at `path` a name that says what it is, in place of an earlier one of that kind; return it."""
    aside = path.with_name(f"{path.name}.{kind}")
    # The log of writes first: killed in between, this happens again; a new file would take the old one's for its own.
    for old, new in ((_wal(path), _wal(aside)), (path, aside)):
        new.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            old.replace(new)
    return aside


def _wal(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _refuse_shared(path: Path) -> None:
    """Raise Misconfigured if another program has the file open: it is not damaged then."""
    with path.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Misconfigured(
                f"{path} is open in another program; close it there, and read {SNAPSHOT}"
            ) from None
