"""What the tests of the tables share: a database in memory, its contents, messages of a shop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb

from helix_es.core import events as e
from helix_es.core.codec import encode
from helix_es.jetstream.follow import Message
from helix_projections.analytics.chronicle import Chronicle
from helix_projections.analytics.store import Commit, Store

UNTOLD = ("meta", "fold")  # tables that say how they came to be


def messages(records: Iterable[e.Recorded], raw: dict[int, bytes] | None = None) -> list[Message]:
    """Return `records` as they would be stored; `raw`: the bytes of those without an event."""
    return [
        Message(
            r.seq,
            r.at_ms,
            r.subject,
            None,
            (raw or {}).get(r.seq, b"") if r.event is None else encode(r.event),
        )
        for r in records
    ]


def in_memory() -> Store:
    """Return an empty database."""
    store = Store(Path(":memory:"))
    store.create({"log_created": "then"})
    return store


def filled(store: Store, batches: Iterable[Sequence[Message]], *, restart: bool = False) -> Store:
    """Put the messages into `store`, a commit for each batch; `restart`: the fold is kept and read back in between."""
    chronicle = Chronicle()
    for batch in batches:
        for message in batch:
            chronicle.apply(message)
        store.write(Commit(chronicle.take()))
        if restart:
            chronicle = Chronicle.load(chronicle.dump())
    return store


def contents(database: Store | Path) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of all tables, in an order of their own."""
    if isinstance(database, Store):
        return _contents(database.run)
    with duckdb.connect(str(database), read_only=True) as connection:
        return _contents(lambda sql, _: connection.execute(sql).fetchall())


def _contents(run: object) -> dict[str, list[tuple[object, ...]]]:
    names = [name for (name,) in run("SELECT table_name FROM duckdb_tables()", [])]  # type: ignore[operator]
    return {
        name: sorted(run(f"FROM {name}", []), key=repr)  # type: ignore[operator]
        for name in names
        if name not in UNTOLD
    }


def rows(store: Store, sql: str) -> list[dict[str, object]]:
    """Return what `sql` gives, each row by its columns."""
    found = store._db.execute(sql)
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
