"""Queries that run for ever, eat all memory or end their process: the next one is answered all the same."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from helix_es.analytics import keeper as module
from helix_es.analytics.keeper import Keeper
from helix_es.analytics.questions import MIB, Limits, Question, Unanswered
from tests.analytics.small import make

ONE = Question(sql="SELECT 1")


def failed(keeper: Keeper, sql: str, timeout_s: float = 10.0) -> tuple[str, float]:
    """Return the code, and the seconds that it took to come."""
    began = time.monotonic()
    with pytest.raises(Unanswered) as error:
        keeper.ask(Question(sql=sql, timeout_s=timeout_s))
    return error.value.code, time.monotonic() - began


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(1_000_000_000_000)",
        "SELECT count(*) FROM range(1_000_000) a, range(1_000_000) b",
        "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT max(n) FROM x",
        "SELECT pg_sleep(1000)",
    ],
)
def test_a_query_that_runs_for_ever_is_interrupted(keeper: Keeper, sql: str) -> None:
    code, took_s = failed(keeper, sql, 0.2)
    assert code == "sql_timeout"
    assert took_s < 10
    assert b"[[1]]" in keeper.ask(ONE)


def test_one_that_hears_no_interrupt_is_ended_with_its_process(keeper: Keeper) -> None:
    keeper.ask(ONE)
    was = keeper._process
    assert was is not None
    code, took_s = failed(keeper, "SELECT levenshtein(repeat('a', 200_000), repeat('b', 200_000))", 0.2)
    assert code == "sql_timeout"
    assert took_s < 10
    assert was.poll() is not None
    assert b"[[1]]" in keeper.ask(ONE)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 1_000_000_000)",
        "SELECT length(repeat('x', 4_000_000_000))",
        "SELECT list(repeat('x', 1_000_000)) FROM range(1_000)",
        "SELECT printf('%1000000000d', 1)",
    ],
)
def test_a_query_that_wants_all_memory_is_told_so(keeper: Keeper, sql: str) -> None:
    assert failed(keeper, sql)[0] == "sql_too_large"
    assert b"[[1]]" in keeper.ask(ONE)


def test_a_process_that_is_killed_is_replaced(keeper: Keeper) -> None:
    keeper.ask(ONE)
    assert keeper._process is not None
    keeper._process.kill()
    keeper._process.wait()
    assert b"[[1]]" in keeper.ask(ONE)


def test_a_process_may_write_no_file_and_knows_no_secret(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIX_API_KEY", "secret")
    keeper = Keeper(snapshot, Limits())
    keeper.ask(ONE)
    process = keeper._process
    assert process is not None
    proc = Path(f"/proc/{process.pid}")
    assert b"secret" not in (proc / "environ").read_bytes()
    limits = (proc / "limits").read_text()
    assert "Max file size             0                    0" in limits
    keeper.close()
    assert process.returncode is not None


def test_a_process_that_nobody_asks_goes_and_the_next_question_starts_another(snapshot: Path) -> None:
    keeper = Keeper(snapshot, Limits(idle_s=0.05))
    keeper.ask(ONE)
    process = keeper._process
    assert process is not None
    assert process.wait(10) == 0
    assert b"[[1]]" in keeper.ask(ONE)
    keeper.close()


def test_where_there_is_nothing_to_open_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.duckdb").write_bytes(b"no database" * 1_000)
    foreign = tmp_path / "foreign.duckdb"
    _foreign(foreign)
    for path, said in (
        (
            tmp_path / "none.duckdb",
            "none.duckdb cannot be read (No such file or directory): start 'helix analytics'",
        ),
        (tmp_path / "bad.duckdb", "bad.duckdb is no database that this DuckDB can open"),
        (foreign, "foreign.duckdb has not the tables of Helix"),
        (tmp_path, "cannot be read (it holds no events/*/*.parquet of an export)"),
    ):
        keeper = Keeper(path, Limits(memory_bytes=64 * MIB))
        with pytest.raises(Unanswered) as error:
            keeper.ask(ONE)
        keeper.close()
        assert error.value.code == "analytics_unavailable"
        assert said in str(error.value)
        assert str(tmp_path) not in str(error.value)


def _foreign(path: Path) -> None:
    import duckdb

    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE mine (a INT)")


def test_the_writers_own_database_is_left_to_it(tmp_path: Path) -> None:
    import duckdb

    path = make(tmp_path / "helix.duckdb")
    keeper = Keeper(path, Limits())
    with duckdb.connect(path), pytest.raises(Unanswered, match="belongs to a running 'helix analytics'"):
        keeper.ask(ONE)
    assert b"[[1]]" in keeper.ask(ONE)
    keeper.close()


def test_an_export_is_asked_like_a_database(tmp_path: Path) -> None:
    import duckdb

    path = make(tmp_path / "snapshot.duckdb")
    export = tmp_path / "it's an export"
    (export / "events" / "day=2026-11-24").mkdir(parents=True)
    (export / "turns").mkdir()
    quoted = str(export).replace("'", "''")
    with duckdb.connect(path, read_only=True) as connection:
        events = f"{quoted}/events/day=2026-11-24/000000000001-000000000900.parquet"
        connection.execute(f"COPY events TO '{events}' (FORMAT parquet)")
        connection.execute(f"COPY turns TO '{quoted}/turns/all.parquet' (FORMAT parquet)")
    keeper = Keeper(export, Limits())
    answer = keeper.ask(Question(sql="SELECT count(*), (SELECT count(*) FROM events) FROM waits"))
    assert b'"rows":[[5,1]]' in answer
    assert b'"seq":900' in answer
    for sql in ("INSERT INTO meta VALUES ('a', 'b')", f"FROM read_parquet('{quoted}/turns/all.parquet')"):
        with pytest.raises(Unanswered) as error:
            keeper.ask(Question(sql=sql))
        assert error.value.code == "sql_refused"
    assert b"create" in keeper.ask(Question(query="waits-by-model"))
    keeper.close()


def test_a_process_that_stands_still_is_replaced_whatever_is_sent_to_it(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    keeper.ask(ONE)
    process = keeper._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    long = Question(sql=f"SELECT length('{'x' * 90_000}')", params=["y" * 300_000], timeout_s=0.1)
    with pytest.raises(Unanswered, match="did not end within"):
        keeper.ask(long)
    assert process.returncode is not None
    assert b"[[1]]" in keeper.ask(ONE)
