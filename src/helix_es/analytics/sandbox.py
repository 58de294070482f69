"""DuckDB with nothing in reach but one database: runs one screened statement at a time, cuts off what is too much."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from helix_es.analytics import named
from helix_es.analytics.opened import Opened, opened
from helix_es.analytics.questions import Limits, Question, Unanswered
from helix_es.analytics.screening import screen
from helix_es.analytics.values import encoded, plain

TOGETHER = 256  # rows fetched at once: two thousand wide ones would be gigabytes
GRACE_S = 1.0  # from the interrupt, which a function that computes one long value never looks at, to the end
SAID_CHARS = 2_000  # of DuckDB's message
INTERRUPT_EVERY_S = 0.05  # one that comes between two steps of a query is lost


class Sandbox:
    """One database, opened when it is first asked and again when another file is in its place."""

    def __init__(self, target: Path, limits: Limits, overdue: Callable[[], None]) -> None:
        """`overdue` ends what cannot be interrupted: it is called from another thread and should not return."""
        self._target = target
        self._limits = limits
        self._overdue = overdue
        self._opened: Opened | None = None

    def ask(self, question: Question) -> bytes:
        """Return the answer as JSON: columns, rows, truncated, elapsed_ms, seq, as_of. Raises Unanswered."""
        began = time.monotonic()
        try:
            with self._watched(question.timeout_s):
                return self._answered(question, began)
        except duckdb.InterruptException:
            raise _late(question) from None
        except duckdb.PermissionException as error:
            raise Unanswered("sql_refused", self._said(error)) from error
        except (duckdb.OutOfMemoryException, MemoryError) as error:
            self.close()
            raise Unanswered("sql_too_large", f"{_GREEDY} ({self._limits.memory_bytes} bytes)") from error
        except (duckdb.FatalException, duckdb.InternalException) as error:
            self.close()  # DuckDB refuses everything after one of these
            raise Unanswered("sql_error", self._said(error)) from error
        except duckdb.Error as error:
            raise Unanswered("sql_error", self._said(error)) from error
        except (ValueError, OverflowError, TypeError) as error:
            raise Unanswered(
                "sql_error", f"a value cannot be passed on ({error}); cast it, as in x::VARCHAR"
            ) from error
        except RecursionError:
            raise Unanswered("sql_error", "a value is nested too deeply; cast it, as in x::VARCHAR") from None

    def close(self) -> None:
        """Let go of the file."""
        if self._opened is not None:
            with suppress(duckdb.Error):
                self._opened.connection.close()
            self._opened = None

    def _answered(self, question: Question, began: float) -> bytes:
        if self._opened is None or self._opened.replaced():
            self.close()
            self._opened = opened(self._target, self._limits)
        here = self._opened
        sql, params = _asked(question, here.as_of)
        sql = screen(here.connection, sql)
        here.connection.execute("BEGIN TRANSACTION READ ONLY")
        try:
            return self._collected(here, here.connection.execute(sql, params), question, began)
        finally:
            try:
                here.connection.execute("ROLLBACK")
            except duckdb.Error:  # an interrupt that came late, or DuckDB is done for
                self.close()

    def _collected(
        self, here: Opened, result: duckdb.DuckDBPyConnection, question: Question, began: float
    ) -> bytes:
        columns = [
            {"name": str(each[0]), "type": str(each[1]).strip('"')} for each in result.description or []
        ]
        rows: list[bytes] = []
        size, truncated = 0, False
        while not truncated and (batch := result.fetchmany(min(TOGETHER, question.limit + 1 - len(rows)))):
            for row in batch:
                cells = encoded(row)
                size += len(cells) + 1
                truncated = len(rows) == question.limit or size > self._limits.answer_bytes
                if truncated:
                    break
                rows.append(cells)
            if time.monotonic() - began > question.timeout_s:
                raise _late(question)
        if truncated and not rows and question.limit:
            raise Unanswered(
                "sql_too_large", f"one row is more than {self._limits.answer_bytes} bytes; select less of it"
            )
        about = {
            "truncated": truncated,
            "elapsed_ms": round((time.monotonic() - began) * 1000),
            "seq": here.seq,
            "as_of": plain(here.as_of),
        }
        head = msgspec.json.encode(columns)
        return b'{"columns":%b,"rows":[%b],%b' % (head, b",".join(rows), msgspec.json.encode(about)[1:])

    @contextmanager
    def _watched(self, timeout_s: float) -> Iterator[None]:
        """Interrupt what takes longer than `timeout_s`; what does not even hear that is ended by `overdue`."""
        done = threading.Event()

        def watch() -> None:
            if done.wait(timeout_s):
                return
            last = time.monotonic() + GRACE_S
            while time.monotonic() < last:
                if self._opened is not None:
                    with suppress(duckdb.Error):
                        self._opened.connection.interrupt()
                if done.wait(INTERRUPT_EVERY_S):
                    return
            self._overdue()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _said(self, error: Exception) -> str:
        """Return DuckDB's message without the paths of this machine."""
        text = str(error).partition("\nStack Trace")[0].strip()
        here = self._target.resolve()
        for path in (str(here), str(self._target), str(here.parent), str(Path.home())):
            text = text.replace(path, "…") if len(path) > 1 else text
        return text if len(text) <= SAID_CHARS else text[:SAID_CHARS] + " …"


_GREEDY = "the query needs more memory than it may have; select less, or aggregate"


def _late(question: Question) -> Unanswered:
    return Unanswered(
        "sql_timeout",
        f"the query did not end within {question.timeout_s:g} s; select less, or ask for more time if you may",
    )


def _asked(question: Question, as_of: datetime | None) -> tuple[str, Any]:
    """Return the statement and its parameters."""
    if question.query is None:
        return question.sql or "", question.params
    query = named.find(question.query)
    if isinstance(question.params, list):
        raise Unanswered(
            "sql_error", f"parameters of a named query have names: {', '.join(query.names) or 'none'}"
        )
    return query.sql, query.bound(question.params or {}, as_of)
