"""What is asked of the analytics, within which limits, and how it can fail."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from helix_es.core.errors import HelixError

MIB = 2**20

Code = Literal[
    "sql_refused",
    "sql_error",
    "sql_timeout",
    "sql_too_large",
    "unknown_query",
    "sql_busy",
    "analytics_unavailable",
]


class Unanswered(HelixError):
    """A question got no answer; the code says why, the text what to do."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message, code=code)
        self.reason: Code = code


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One statement, or the name of one that we ship."""

    sql: str | None = None
    query: str | None = None
    """A named query; exactly one of the two is given."""
    params: list[Any] | dict[str, Any] | None = None
    """For `?` and `$1` a list, for `$name` and named queries a dict."""
    limit: int = 10_000
    """Rows; the answer says whether there were more."""
    timeout_s: float = 10.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the process that answers may use."""

    memory_bytes: int = 512 * MIB
    """Of DuckDB's own accounting; the process is held to somewhat more."""
    answer_bytes: int = 16 * MIB
    """Of an answer's JSON; rows beyond are cut off, as those beyond the limit are."""
    threads: int = 1
    idle_s: float = 60.0
    """A process that nobody asks for so long goes, and with it the file of a snapshot that was replaced."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """How `Unanswered` crosses the pipe."""

    code: Code
    message: str
