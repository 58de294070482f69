"""Which statements may run: one, that reads the tables here and nothing else. Looks at DuckDB's own parse of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import duckdb
import msgspec

from helix_es.analytics.questions import Unanswered

MOST_CHARS = 100_000  # a person's query has a few thousand; a parser's stack is not for trying
MOST_NESTED = 200  # brackets, so that no parser of ours or DuckDB's runs out of stack

FROM_FUNCTIONS = frozenset(
    (
        "unnest",
        "range",
        "generate_series",
        "json_each",
        "json_tree",
        "repeat_row",
        "duckdb_columns",
        "duckdb_tables",
        "duckdb_views",
        "duckdb_functions",
        "duckdb_types",
        "duckdb_keywords",
        "pragma_table_info",
        "pragma_version",
        "pg_timezone_names",
    )
)
"""Table functions that may be used. Not: those that read files, run a text as SQL (`query`, `query_table`, which
`histogram` calls, `json_execute_serialized_sql`), tell of this machine (`duckdb_settings`, `duckdb_databases`) or
change something."""
QUERY_NODES = frozenset(("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"))
"""Kinds of query; a WITH may also hold an INSERT, UPDATE, DELETE or COPY, and the whole still counts as a SELECT."""
SYSTEM_VIEWS = frozenset(
    ("duckdb_columns", "duckdb_tables", "duckdb_views", "duckdb_types", "sqlite_master", "sqlite_schema")
)
CLOSED_SCHEMAS = frozenset(("pg_catalog",))
REFUSED_FUNCTIONS = frozenset(("current_setting", "getvariable", "getenv", "write_log"))
"""Functions anywhere in a statement that tell of this machine, or change something."""
SHOWN = frozenset(('"tables"', "__show_tables_expanded"))

_SYSTEM = re.compile(r"(duckdb|pragma|pg|sqlite)_", re.IGNORECASE)
_LIKE_A_FILE = re.compile(r"[./\\:*?]")
_COMMENT = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)"
_EXPLAIN = re.compile(
    rf"{_COMMENT}*EXPLAIN{_COMMENT}+(?:(?P<analyze>ANALYZE){_COMMENT}+)?", re.IGNORECASE | re.DOTALL
)
_WORD = re.compile(rf"{_COMMENT}*([A-Za-z]+)", re.DOTALL)
WAY_OUT = "ask with one SELECT over the tables of 'SHOW TABLES'"


def screen(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Return the statement to run. Raises Unanswered, `sql_refused` or, for what is no SQL, `sql_error`."""
    _screen_text(sql)
    prefix, kind = "", _kind(connection, sql)
    if kind == "EXPLAIN":
        match = _EXPLAIN.match(sql)
        if match is None:
            raise _refused(
                "this form of EXPLAIN is not allowed; write EXPLAIN, or EXPLAIN ANALYZE, and the SELECT"
            )
        # What is run is put together again from what was looked at, so that no comment can part the two.
        prefix = "EXPLAIN ANALYZE " if match["analyze"] else "EXPLAIN "
        sql = sql[match.end() :]
        kind = _kind(connection, sql)
    if kind == "MULTI":
        raise _refused("PIVOT must name its values here: PIVOT t ON column IN ('a', 'b') USING …")
    if kind != "SELECT":
        raise _refused(f"{_named(kind, sql)} is not allowed: this only reads; {WAY_OUT}")
    for node in _nodes(_parsed(connection, sql)):
        _screen_node(node)
    return prefix + sql


def _named(kind: str, sql: str) -> str:
    """Return what whoever wrote the statement calls it: to DuckDB INSTALL is a LOAD, and CHECKPOINT a CALL."""
    found = _WORD.match(sql)
    return kind if found is None or found[1].upper() == "WITH" else found[1].upper()


def _screen_text(sql: str) -> None:
    if len(sql) > MOST_CHARS:
        raise _refused(f"the statement has {len(sql)} characters; at most {MOST_CHARS} are allowed")
    if "\0" in sql:
        raise _refused("the statement holds a NUL character; remove it")
    depth = deepest = 0
    for bracket in re.findall(r"[()\[\]{}]", sql):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    if deepest > MOST_NESTED:
        raise _refused(f"the statement nests {deepest} brackets; at most {MOST_NESTED} are allowed")


def _kind(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Return what kind of statement the one in `sql` is."""
    found = connection.extract_statements(sql)
    if not found:
        raise Unanswered("sql_error", f"there is no statement; {WAY_OUT}")
    if len(found) > 1:
        raise _refused(f"{len(found)} statements were sent; send one at a time")
    try:
        return found[0].type.name
    except ValueError:  # DuckDB has kinds that its Python names not
        return "this statement"


def _parsed(connection: duckdb.DuckDBPyConnection, sql: str) -> Any:
    """Return DuckDB's parse of a SELECT, as its JSON."""
    row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
    try:
        found: dict[str, Any] = msgspec.json.decode(row[0] if row else b"")
    except (msgspec.DecodeError, RecursionError):
        raise _refused("the statement is nested too deeply to be checked; make it simpler") from None
    if found.get("error", True):
        said = found.get("error_message", "")
        if found.get("error_type") == "parser":
            raise Unanswered("sql_error", f"Parser Error: {said}")
        raise _refused(f"the statement cannot be checked ({said}); {WAY_OUT}")
    return found["statements"]


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    left = [tree]
    while left:
        at = left.pop()
        if isinstance(at, dict):
            yield at
            left.extend(at.values())
        elif isinstance(at, list):
            left.extend(at)


def _screen_node(node: dict[str, Any]) -> None:
    kind = str(node.get("type"))
    if kind.endswith("_NODE") and kind not in QUERY_NODES:
        raise _refused(f"{kind.partition('_')[0]} is not allowed: this only reads; {WAY_OUT}")
    if kind == "TABLE_FUNCTION":
        function = node.get("function") or {}
        name = str(function.get("function_name")).lower()
        if name not in FROM_FUNCTIONS:
            raise _refused(
                f"{name}() is not allowed in FROM; tables, unnest(), range() and generate_series() are"
            )
    elif kind == "BASE_TABLE":
        _screen_table(node)
    elif kind == "SHOW_REF" and not node.get("query") and node.get("table_name") not in SHOWN:
        raise _refused(f"SHOW {node.get('table_name')} is not allowed; SHOW TABLES and DESCRIBE <table> are")
    if node.get("class") == "FUNCTION" and str(node.get("function_name")).lower() in REFUSED_FUNCTIONS:
        raise _refused(
            f"{node['function_name']}() is not allowed: it tells of this machine, or changes something"
        )


def _screen_table(node: dict[str, Any]) -> None:
    table = str(node.get("table_name"))
    parts = [str(node.get(part) or "") for part in ("catalog_name", "schema_name")]
    if any(_LIKE_A_FILE.search(part) for part in (table, *parts)):
        raise _refused(f"{table!r} would be a file: only the tables here can be read, see 'SHOW TABLES'")
    closed = _SYSTEM.match(table) is not None and table.lower() not in SYSTEM_VIEWS
    if closed or any(part.lower() in CLOSED_SCHEMAS for part in parts):
        raise _refused(
            f"{table} is not allowed; {', '.join(sorted(SYSTEM_VIEWS))} and information_schema are"
        )


def _refused(message: str) -> Unanswered:
    return Unanswered("sql_refused", message)
