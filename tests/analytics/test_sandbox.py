"""What an analyst may ask, and what a hostile one gets."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helix_es.analytics.keeper import Keeper
from helix_es.analytics.questions import Limits, Question, Unanswered
from helix_es.analytics.sandbox import Sandbox
from tests.analytics.small import AS_OF, SEQ, make


def ask(keeper: Keeper, sql: str, **others: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(keeper.ask(Question(sql=sql, **others)))
    return found


def refusal(keeper: Keeper, sql: str, **others: Any) -> tuple[str, str]:
    with pytest.raises(Unanswered) as error:
        keeper.ask(Question(sql=sql, **others))
    return error.value.code, str(error.value)


@pytest.mark.parametrize(
    ("sql", "first"),
    [
        ("SELECT session FROM sessions ORDER BY session", ["f1"]),
        ("WITH x AS (SELECT 1 AS n UNION ALL SELECT 2) SELECT sum(n) FROM x", [3]),
        (
            "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x WHERE n < 5) SELECT max(n) FROM x",
            [5],
        ),
        ("FROM sessions SELECT count(*)", [5]),
        ("VALUES (1, 'a')", [1, "a"]),
        ("SELECT 1 AS a UNION ALL SELECT 2 ORDER BY a DESC;", [2]),
        ("TABLE position ORDER BY seq", ["LOG", SEQ, "2026-11-24T11:59:59.000Z"]),
        ("SHOW TABLES", ["adapters"]),
        (
            "PIVOT turns ON how IN ('queued', 'continued') USING count(*) GROUP BY owner ORDER BY owner",
            ["ann", 2, 2],
        ),
        ("SELECT unnest([7, 8])", [7]),
        ("FROM range(3, 5)", [3]),
        ("-- a comment; and another\nSELECT 'a;b' /* ; */", ["a;b"]),
        ("SELECT table_name FROM duckdb_tables() ORDER BY ALL", ["admissions"]),
        ("SELECT value->>'type' FROM events, json_each(json_array(body))", ["turn.queued"]),
    ],
)
def test_what_only_reads_is_answered(keeper: Keeper, sql: str, first: list[Any]) -> None:
    assert ask(keeper, sql)["rows"][0] == first


@pytest.mark.parametrize(
    "sql",
    ["DESCRIBE turns", "SUMMARIZE sessions", "EXPLAIN SELECT 1", "explain /*x*/ analyze FROM turns", "SHOW"],
)
def test_what_tells_of_tables_and_plans_is_answered(keeper: Keeper, sql: str) -> None:
    assert ask(keeper, sql)["rows"]


WRITES = """\
INSERT INTO meta VALUES ('a', 'b')
UPDATE meta SET value = 'x'
DELETE FROM meta
TRUNCATE meta
MERGE INTO meta USING meta AS m ON true WHEN MATCHED THEN DELETE
CREATE TABLE mine (a INT)
CREATE TEMP TABLE mine (a INT)
CREATE MACRO mine() AS 1
CREATE SECRET mine (TYPE s3)
DROP TABLE meta
ALTER TABLE meta ADD COLUMN a INT
COMMENT ON TABLE meta IS 'x'
COPY meta TO '/tmp/helix-stolen'
COPY (SELECT 1) TO '/tmp/helix-stolen'
COPY meta FROM '/etc/passwd'
COPY FROM DATABASE snapshot TO other
EXPORT DATABASE '/tmp/helix-stolen'
IMPORT DATABASE '/tmp/helix-stolen'
ATTACH '/tmp/helix-stolen'
ATTACH ':memory:' AS mine
DETACH snapshot
INSTALL httpfs
FORCE INSTALL httpfs
LOAD httpfs
UPDATE EXTENSIONS
SET threads = 64
SET enable_external_access = true
SET VARIABLE a = 1
RESET threads
USE main
PRAGMA database_list
PRAGMA enable_profiling
CALL pragma_version()
CHECKPOINT
VACUUM
ANALYZE
BEGIN
COMMIT
PREPARE mine AS SELECT 1
EXECUTE mine
DEALLOCATE mine
SELECT 1; SELECT 2
SELECT 1; DROP TABLE meta
EXPLAIN ANALYZE DELETE FROM meta
EXPLAIN COPY meta TO '/tmp/helix-stolen'
WITH gone AS (DELETE FROM meta RETURNING *) SELECT * FROM gone
WITH made AS (INSERT INTO meta VALUES ('a', 'b') RETURNING *) SELECT * FROM made
WITH changed AS (UPDATE meta SET value = 'x' RETURNING *) SELECT 1
WITH stolen AS (COPY meta TO '/tmp/helix-stolen') SELECT 1
SELECT * FROM (WITH stolen AS (COPY (SELECT 1) TO '/tmp/helix-stolen') SELECT 1)
PIVOT turns ON how USING count(*)""".splitlines()

FILES = """\
FROM '/etc/passwd'
FROM "/etc/passwd"
FROM 'x.csv'
FROM '{path}'
FROM "{path}"
TABLE '{path}'
DESCRIBE '{path}'
SUMMARIZE '{path}'
FROM 'https://example.com/x.parquet'
FROM read_csv('/etc/passwd')
FROM read_csv_auto('/etc/passwd')
FROM read_text('/etc/passwd')
FROM read_blob('{path}')
FROM system.main.read_blob('{path}')
FROM read_json('/etc/passwd')
FROM read_ndjson_objects('/etc/passwd')
FROM read_parquet('/etc/passwd')
FROM parquet_scan('/etc/passwd')
FROM parquet_metadata('/etc/passwd')
FROM read_duckdb('{path}')
FROM sniff_csv('/etc/passwd')
FROM glob('/*')
FROM query('SELECT 1')
FROM query_table('{path}')
FROM histogram('{path}', 'key')
FROM json_execute_serialized_sql('x')
FROM duckdb_settings()
FROM duckdb_databases()
FROM duckdb_databases
FROM pragma_database_list
FROM pg_catalog.pg_settings
FROM duckdb_secrets()
FROM which_secret('s3://x', 's3')
FROM duckdb_logs
FROM duckdb_extensions()
FROM duckdb_temporary_files()
FROM enable_logging()
FROM checkpoint()
FROM pandas_scan(1)
FROM python_map_function(1)
SHOW DATABASES
FROM (SHOW DATABASES)
SELECT current_setting('allowed_paths')
SELECT system.main.current_setting('home_directory')
SELECT 'temp_directory'.current_setting()
SELECT getenv('HOME')
SELECT getvariable('x')
SELECT write_log('x')
SELECT (SELECT count(*) FROM glob('/*'))
SELECT * FROM meta WHERE EXISTS (FROM glob('/*'))
SELECT * FROM meta ORDER BY (SELECT count(*) FROM glob('/*'))
SELECT * FROM meta LIMIT (SELECT count(*) FROM glob('/*'))
SELECT count(*) FILTER (WHERE EXISTS (FROM glob('/*'))) FROM meta
SELECT list_transform([1], lambda x: (SELECT count(*) FROM glob('/*')))
SELECT * REPLACE ((SELECT count(*) FROM glob('/*')) AS key) FROM meta
SELECT 1 UNION ALL SELECT count(*) FROM glob('/*')
WITH x AS (FROM glob('/*')) SELECT 1
SUMMARIZE FROM glob('/*')
EXPLAIN FROM read_blob('{path}')
EXPLAIN ANALYZE FROM read_blob('{path}')
FROM meta POSITIONAL JOIN glob('/*')
UNPIVOT glob('/*') ON COLUMNS(*)""".splitlines()


@pytest.mark.parametrize("sql", WRITES)
def test_what_writes_or_changes_anything_is_refused(keeper: Keeper, sql: str) -> None:
    code, said = refusal(keeper, sql)
    assert code == "sql_refused"
    assert "only reads" in said or "one at a time" in said or "name its values" in said
    assert not Path("/tmp/helix-stolen").exists()


@pytest.mark.parametrize("sql", FILES)
def test_what_reaches_for_files_or_the_machine_is_refused(keeper: Keeper, snapshot: Path, sql: str) -> None:
    code, said = refusal(keeper, sql.format(path=snapshot))
    assert code == "sql_refused"
    assert "not allowed" in said or "only the tables here" in said


def test_no_comment_hides_from_the_check_what_is_run(keeper: Keeper, snapshot: Path) -> None:
    """DuckDB's comments nest, those of a regular expression do not: only what was checked may run."""
    answer = ask(keeper, f"EXPLAIN ANALYZE /* /* */ SELECT 1 -- */ FROM read_blob('{snapshot}')")
    assert "READ_BLOB" not in answer["rows"][0][1].upper()


def test_a_second_wall_stands_behind_the_check(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helix_es.analytics.sandbox.screen", lambda _connection, sql: sql)
    sandbox = Sandbox(snapshot, Limits(), lambda: None)
    before = hashlib.sha256(snapshot.read_bytes()).digest()
    for sql in (
        "FROM read_text('/etc/hostname')",
        "COPY (SELECT 1) TO '/tmp/helix-stolen'",
        "INSERT INTO meta VALUES ('a', 'b')",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "ATTACH '/tmp/helix-stolen' AS other",
        "INSTALL httpfs",
        "LOAD httpfs",
    ):
        with pytest.raises(Unanswered):
            sandbox.ask(Question(sql=sql))
    sandbox.close()
    assert hashlib.sha256(snapshot.read_bytes()).digest() == before
    assert not Path("/tmp/helix-stolen").exists()


def test_python_is_not_within_reach(keeper: Keeper) -> None:
    assert refusal(keeper, "SELECT * FROM question")[0] == "sql_error"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT", "SELECT clause without selection list"),
        ("SELECT * FROM nobody", "Table with name nobody does not exist"),
        ("SELECT 'a'::INTEGER", "Could not convert string 'a'"),
        ("SELECT error('boo')", "boo"),
        ("-- nothing", "there is no statement"),
        ("SELECT ?", "Values were not provided"),
        ("SELECT st_point(1, 2)", "spatial"),
    ],
)
def test_what_is_wrong_is_said_as_duckdb_says_it(keeper: Keeper, sql: str, said: str) -> None:
    code, message = refusal(keeper, sql)
    assert code == "sql_error"
    assert said in message


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
        "SELECT " + "- " * 10_000 + "1",
        "SELECT " + "NOT " * 5_000 + "true",
        "SELECT 1" + "+1" * 15_000,
        "SELECT " + "CASE WHEN true THEN " * 3_000 + "1" + " END" * 3_000,
        "SELECT * FROM " + "(SELECT * FROM " * 150 + "nobody" + ")" * 150,
        "SELECT * FROM " + "meta, " * 3_000 + "meta",
        "SELECT '" + "x" * 200_000 + "'",
        "SELECT 1 -- \0",
    ],
)
def test_a_statement_too_deep_or_too_long_is_refused_and_nothing_breaks(keeper: Keeper, sql: str) -> None:
    assert refusal(keeper, sql)[0] in ("sql_error", "sql_refused")
    assert ask(keeper, "SELECT 1")["rows"] == [[1]]


def test_an_answer_says_how_far_the_tables_go(keeper: Keeper) -> None:
    answer = ask(keeper, "SELECT 1 AS a, 'x' AS b")
    assert answer["columns"] == [{"name": "a", "type": "INTEGER"}, {"name": "b", "type": "VARCHAR"}]
    assert (answer["seq"], answer["as_of"], answer["truncated"]) == (SEQ, AS_OF, False)
    assert answer["elapsed_ms"] >= 0


def test_rows_beyond_the_limit_are_cut_off_and_that_is_said(keeper: Keeper) -> None:
    whole = ask(keeper, "FROM range(300)", limit=300)
    assert (len(whole["rows"]), whole["truncated"]) == (300, False)
    cut = ask(keeper, "FROM range(1_000_000_000_000)", limit=299)
    assert (cut["rows"][-1], len(cut["rows"]), cut["truncated"]) == ([298], 299, True)
    assert ask(keeper, "FROM range(3)", limit=0)["rows"] == []


def test_an_answer_has_only_so_many_bytes(snapshot: Path) -> None:
    sandbox = Sandbox(snapshot, Limits(answer_bytes=1_000), lambda: None)
    answer = msgspec.json.decode(sandbox.ask(Question(sql="SELECT repeat('x', 300) FROM range(10)")))
    assert (len(answer["rows"]), answer["truncated"]) == (3, True)
    with pytest.raises(Unanswered, match="one row is more than 1000 bytes") as error:
        sandbox.ask(Question(sql="SELECT repeat('x', 3000)"))
    assert error.value.code == "sql_too_large"
    sandbox.close()


@pytest.mark.parametrize(
    ("sql", "params", "row"),
    [
        ("SELECT ?, ?", [1, "a"], [1, "a"]),
        ("SELECT $2, $1", [1, None], [None, 1]),
        ("SELECT $name || '!', $n + 1", {"name": "ann", "n": 2}, ["ann!", 3]),
        ("SELECT count(*) FROM turns WHERE owner = $owner", {"owner": "' OR 1=1 --"}, [0]),
        ("SELECT list_sum(?)", [[1, 2, 3]], [6]),
    ],
)
def test_parameters_are_values_not_text(keeper: Keeper, sql: str, params: Any, row: list[Any]) -> None:
    assert ask(keeper, sql, params=params)["rows"] == [row]


@pytest.mark.parametrize("params", [[1], {"b": 1}, {"a": 1, "b": 2}, {"a": 10**60}])
def test_parameters_that_do_not_fit_are_told(keeper: Keeper, params: Any) -> None:
    assert refusal(keeper, "SELECT $a", params=params)[0] == "sql_error"


def test_a_snapshot_that_is_replaced_is_opened_anew(tmp_path: Path) -> None:
    path = make(tmp_path / "snapshot.duckdb")
    sandbox = Sandbox(tmp_path, Limits(), lambda: None)
    assert b'"rows":[[5]]' in sandbox.ask(Question(sql="SELECT count(*) FROM sessions"))
    newer = make(tmp_path / "next.duckdb")
    _change(newer)
    os.replace(newer, path)
    assert b'"rows":[[4]]' in sandbox.ask(Question(sql="SELECT count(*) FROM sessions"))
    path.unlink()
    assert b'"rows":[[4]]' in sandbox.ask(Question(sql="SELECT count(*) FROM sessions"))
    sandbox.close()


def _change(path: Path) -> None:
    import duckdb

    with duckdb.connect(path) as connection:
        connection.execute("DELETE FROM sessions WHERE session = 'f1'")


def test_messages_do_not_tell_where_the_files_are(snapshot: Path) -> None:
    sandbox = Sandbox(snapshot, Limits(), lambda: None)
    with pytest.raises(Unanswered) as error:
        sandbox.ask(Question(sql=f"SELECT error('at {snapshot} in {Path.home()}/.duckdb')"))
    assert str(snapshot.parent) not in str(error.value)
    assert f"{Path.home()}/" not in str(error.value)
    sandbox.close()
