"""The database file: rows and positions go into it together, in one transaction, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from helix_es.analytics import schema
from helix_es.core.snapshot import FORMAT
from helix_es.jetstream.follow import Message
from helix_projections.analytics.columns import Columns
from helix_projections.analytics.pulse import Beats
from helix_projections.analytics.rows import Row, Rows

VERSION = f"{schema.SCHEMA}.{FORMAT}"
"""Of the tables, and of the fold that fills them: a database of another one holds other rows."""
WAL_MIB = 64  # then it is folded into the file: reading so much again after a crash takes about a second
TOGETHER = 20_000  # messages of one read

# A changed row replaces the stored one. Sessions are only added up, so that none has to be remembered to be counted.
_CHANGES = {
    "turns": "UPDATE turns SET {all} FROM changed AS new WHERE turns.seq = new.seq",
    "gpu_occupancy": "UPDATE gpu_occupancy SET to_at = new.to_at FROM changed AS new WHERE gpu_occupancy.seq = new.seq",
    "sessions": """UPDATE sessions SET state = new.state, last_at = new.last_at, gpu = new.gpu,
        closed_at = coalesce(sessions.closed_at, new.closed_at), turns = sessions.turns + new.turns,
        prompt_tokens = try_cast(sessions.prompt_tokens::HUGEINT + new.prompt_tokens AS BIGINT),
        cached_tokens = try_cast(sessions.cached_tokens::HUGEINT + new.cached_tokens AS BIGINT),
        completion_tokens = try_cast(sessions.completion_tokens::HUGEINT + new.completion_tokens AS BIGINT),
        held_ms = sessions.held_ms + new.held_ms
        FROM changed AS new WHERE sessions.session = new.session""",
}
# msgspec passes over parts of a message that DuckDB will not have as JSON; such a one keeps its bytes elsewhere.
_EVENTS = "INSERT INTO events SELECT * REPLACE (CASE WHEN json_valid(body) THEN body END AS body) FROM added"
_NO_JSON = """INSERT INTO set_aside SELECT 'LOG', seq, logged_at, subject, 'its body is no strict JSON', encode(body)
    FROM added WHERE body IS NOT NULL AND NOT json_valid(body)"""


class Commit(msgspec.Struct):
    """What one transaction holds."""

    rows: Rows
    beats: Beats | None = None
    fold: bytes | None = None
    """The chronicle after `rows`."""


class Store:
    """One open database, used by one thread at a time. Methods raise duckdb.Error."""

    def __init__(self, path: Path, wal_mib: int = WAL_MIB) -> None:
        """`wal_mib`: of committed rows that are not in the file itself yet."""
        self.path = path
        self._db = duckdb.connect(str(path))
        self._db.execute(f"SET checkpoint_threshold = '{wal_mib}MiB'; SET TimeZone = 'UTC'")
        self._columns: dict[str, Columns] = {}

    def create(self, meta: dict[str, str]) -> None:
        """Make the tables in an empty file; `meta` says which log they are of."""
        self._db.execute("BEGIN")
        self._db.execute(schema.statements())
        self._db.executemany("INSERT INTO meta VALUES (?, ?)", [*meta.items(), ("schema", VERSION)])
        self._db.execute("INSERT INTO position VALUES ('LOG', 0, NULL), ('BEATS', 0, NULL)")
        self._db.execute("COMMIT")

    def meta(self) -> dict[str, str]:
        """Return what the file says of itself."""
        return dict(self._db.execute("SELECT key, value FROM meta").fetchall())

    def note(self, key: str, value: str) -> None:
        """Keep one more thing that the file says of itself."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])

    def reached(self, stream: str) -> tuple[int, int]:
        """Return the last sequence of `stream` that the rows contain, and its timestamp, Unix ms; 0 and 0 at first."""
        rows = self.run(
            "SELECT seq, coalesce(epoch_ms(logged_at), 0) FROM position WHERE stream = ?", [stream]
        )
        return rows[0][0], rows[0][1]

    def fold(self) -> tuple[int, bytes] | None:
        """Return the chronicle that was kept last, and the sequence it was at."""
        found = self._db.execute("SELECT seq, state FROM fold").fetchone()
        return None if found is None else (int(found[0]), bytes(found[1]))

    def messages(self, after_seq: int) -> Iterator[list[Message]]:
        """Yield the messages of the log after `after_seq` as they were stored."""
        reading = self._db.execute(
            """SELECT e.seq, epoch_ms(e.logged_at), e.subject, e.trace, coalesce(encode(e.body::VARCHAR), s.body)
            FROM events e LEFT JOIN set_aside s ON s.stream = 'LOG' AND s.seq = e.seq
            WHERE e.seq > ? ORDER BY e.seq""",
            [after_seq],
        )
        while rows := reading.fetchmany(TOGETHER):
            yield [
                Message(seq, at_ms, subject, trace, bytes(body)) for seq, at_ms, subject, trace, body in rows
            ]

    # -- writing

    def begin_anew(self, stream: str, key: str, value: str) -> None:
        """Forget how far `stream` was read, and note with it why."""
        self._db.execute("BEGIN")
        try:
            self.note(key, value)
            self._db.execute("UPDATE position SET seq = 0, logged_at = NULL WHERE stream = ?", [stream])
            self._db.execute("COMMIT")
        except Exception:
            with suppress(duckdb.Error):
                self._db.rollback()
            raise

    def write(self, commit: Commit) -> None:
        """Put all of `commit` into the tables, or none of it."""
        self._db.execute("BEGIN")
        try:
            self._rows(commit.rows)
            if "events" in commit.rows.added:
                self._moved("LOG", commit.rows.seq, commit.rows.at_ms)
            if commit.beats is not None:
                self._beats(commit.beats)
            if commit.fold is not None:
                self._db.execute("DELETE FROM fold")
                self._db.execute("INSERT INTO fold VALUES (?, ?)", [commit.rows.seq, commit.fold])
            self._db.execute("COMMIT")
        except Exception:
            # A commit that failed has left no transaction, and it is what must be told.
            with suppress(duckdb.Error):
                self._db.rollback()
            raise

    def _rows(self, rows: Rows) -> None:
        for table, added in rows.added.items():
            self._insert(table, added)
        for table, changed in rows.changed.items():
            columns = self._of(table)
            every = ", ".join(f'"{name}" = new."{name}"' for name in columns.names)
            self._with("changed", columns.table(changed), _CHANGES[table].format(all=every))

    def _insert(self, table: str, rows: list[Row]) -> None:
        arrow = self._of(table).table(rows)
        if table == "events":
            self._with("added", arrow, _EVENTS, _NO_JSON)
        else:
            self._with("added", arrow, f"INSERT INTO {table} SELECT * FROM added")  # noqa: S608  # a name of ours

    def _with(self, name: str, table: object, *statements: str) -> None:
        self._db.register(name, table)
        try:
            for statement in statements:
                self._db.execute(statement)
        finally:
            # After an error the transaction takes nothing, and that error must be told.
            with suppress(duckdb.Error):
                self._db.unregister(name)

    def _of(self, table: str) -> Columns:
        columns = self._columns.get(table)
        if columns is None:
            found = self._db.execute(
                "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index",
                [table],
            ).fetchall()
            columns = self._columns[table] = Columns(found)
        return columns

    def _moved(self, stream: str, seq: int, at_ms: int) -> None:
        self._db.execute(
            "UPDATE position SET seq = ?, logged_at = make_timestamptz(?) WHERE stream = ?",
            [seq, at_ms * 1000, stream],
        )

    def _beats(self, beats: Beats) -> None:
        for table, rows in beats.added.items():
            self._insert(table, rows)
        for statement in beats.merges:
            self._db.execute(statement)
        self._moved("BEATS", beats.seq, beats.at_ms)

    # -- the file

    def checkpoint(self) -> None:
        """Fold all that is written into the file."""
        self._db.execute("CHECKPOINT")

    def run(self, statement: str, values: list[Any]) -> list[tuple[Any, ...]]:
        """Return the rows that `statement` gives."""
        return self._db.execute(statement, values).fetchall()

    def close(self) -> None:
        """Close the file."""
        self._db.close()
