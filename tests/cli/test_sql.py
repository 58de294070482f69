"""`helix sql`: through an API, and straight from a file; its forms, its words and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helix_es.cli.sql import sql
from tests.analytics.small import AS_OF, SEQ, make
from tests.cli.fake import Answered, FakeApi, helix, problem

ANSWER = {
    "columns": [{"name": "owner", "type": "VARCHAR"}, {"name": "n", "type": "DOUBLE"}],
    "rows": [['ann, or "bob"', 1.5], [None, 2], ["\x1b[31mred\n", {"a": [1]}]],
    "truncated": False,
    "elapsed_ms": 7,
    "seq": 12,
    "as_of": "2026-11-24T12:00:00.000Z",
}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("cli") / "snapshot.duckdb")


def run(*words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(sql, list(words), input=stdin)


def asked(api: FakeApi) -> Any:
    ((_, body),) = api.seen["POST /api/v1/sql"]
    return body


def test_an_answer_is_a_table_with_a_line_about_it_on_stderr(api: FakeApi) -> None:
    api.on("POST /api/v1/sql", Answered(ANSWER))
    found = run("SELECT 1", "--url", api.url)
    assert found.exit_code == 0
    lines = [line.split() for line in found.stdout.splitlines()]
    assert lines[:3] == [["owner", "n"], ["ann,", "or", '"bob"', "1.5"], ["2"]]
    assert "\x1b" not in found.stdout
    assert '{"a":[1]}' in found.stdout
    assert found.stderr == "3 rows; 7 ms, as of 2026-11-24T12:00:00.000Z (sequence 12)\n"
    assert asked(api) == {"sql": "SELECT 1"}


def test_csv_quotes_and_json_is_the_answer_itself(api: FakeApi) -> None:
    api.on("POST /api/v1/sql", Answered(ANSWER))
    found = run("SELECT 1", "--url", api.url, "--format", "csv")
    assert found.stdout == 'owner,n\n"ann, or ""bob""",1.5\n,2\n"\x1b[31mred\n","{""a"":[1]}"\n'
    for words in (["--json"], ["-o", "json"], ["--format", "json"]):
        assert json.loads(run("SELECT 1", "--url", api.url, *words).stdout) == ANSWER


def test_what_was_cut_off_is_said(api: FakeApi) -> None:
    api.on("POST /api/v1/sql", Answered({**ANSWER, "truncated": True}))
    assert "and there are more: see --limit" in run("SELECT 1", "--url", api.url).stderr


def test_options_become_the_request(api: FakeApi) -> None:
    api.on("POST /api/v1/sql", Answered(ANSWER))
    words = ["--query", "longest-waits", "-p", "model=mistral", "--param", "since=-1h", "-p", "most=5"]
    assert run(*words, "--limit", "7", "--timeout", "2.5", "--url", api.url).exit_code == 0
    assert asked(api) == {
        "query": "longest-waits",
        "params": {"model": "mistral", "since": "-1h", "most": 5},
        "limit": 7,
        "timeout_s": 2.5,
    }


def test_sql_comes_from_stdin(api: FakeApi) -> None:
    api.on("POST /api/v1/sql", Answered(ANSWER))
    assert run("-", "--url", api.url, stdin="SELECT\n 2").exit_code == 0
    assert asked(api) == {"sql": "SELECT\n 2"}


def test_a_refusal_is_one_line_and_exit_2(api: FakeApi) -> None:
    api.on("POST /api/v1/sql", problem(422, "sql_refused", "DROP is not allowed: this only reads"))
    found = run("DROP TABLE turns", "--url", api.url)
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr == "helix: DROP is not allowed: this only reads (sql_refused)\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one SELECT, or --query NAME"),
        (["SELECT 1", "--query", "owners"], "give one SELECT, or --query NAME"),
        (["   "], "the SQL is empty"),
        (["SELECT 1", "--param", "x"], "--param x: must be NAME=VALUE"),
        (["SELECT $a", "--param", "a=1", "--param", "a=2"], "--param a is given twice"),
        (["SELECT '\udcff'"], "the SQL is not UTF-8"),
        (["SELECT 1", "--param", "a=\udcff"], "must be NAME=VALUE"),
        (["SELECT 1", "--list"], "--list takes no SQL"),
        (["SELECT 1", "--format", "xml"], "xml"),
        (["SELECT 1", "--file", "/no/such/file"], "does not exist"),
        (["SELECT 1", "--timeout", "0"], "--timeout"),
    ],
)
def test_wrong_use_is_exit_2(words: list[str], said: str) -> None:
    found = run(*words)
    assert found.exit_code == 2
    assert said in found.stderr


@pytest.mark.parametrize(
    "words",
    [["SELEC 1"], ["-q", "nosuch"], ["-q", "owners", "-p", "most=x"], ["-q", "owners", "-p", "foo=1"]],
)
def test_what_a_file_is_asked_wrongly_is_exit_2(words: list[str], snapshot: Path) -> None:
    found = run("--file", str(snapshot), *words)
    assert (found.exit_code, found.stdout, found.stderr.count("\n")) == (2, "", 1)


def test_what_takes_too_long_is_no_wrong_use(api: FakeApi) -> None:
    api.on("POST /api/v1/sql", problem(422, "sql_timeout", "the query did not end"))
    assert run("SELECT 1", "--url", api.url).exit_code == 1


def test_the_named_queries_are_listed_without_an_api() -> None:
    found = run("--list")
    assert found.exit_code == 0
    assert "utilisation-by-hour" in found.stdout
    assert "-p since=instant [-24h]: from when on" in found.stdout
    names = [each["name"] for each in json.loads(run("--list", "--json").stdout)["data"]]
    assert names == sorted(names)
    assert "longest-waits" in names


def test_a_file_is_asked_without_an_api(snapshot: Path) -> None:
    found = run("--file", str(snapshot), "--query", "owners", "-p", "most=1", "--json")
    told = json.loads(found.stdout)
    assert told["rows"][0][:2] == ["ann", 2]
    assert (told["seq"], told["as_of"]) == (SEQ, AS_OF)
    beside = run("--file", str(snapshot.parent), "SELECT count(*) AS n FROM turns", "-o", "csv")
    assert beside.stdout == "n\n7\n"


def test_a_file_is_asked_in_the_same_sandbox(snapshot: Path) -> None:
    found = run("--file", str(snapshot), "COPY turns TO '/tmp/helix-stolen'")
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.startswith("helix: COPY is not allowed: this only reads")
    assert not Path("/tmp/helix-stolen").exists()


def test_the_command_is_there_and_its_help_loads_no_database(snapshot: Path) -> None:
    found = helix("sql", "--file", str(snapshot), "SELECT 1 AS a")
    assert (found.returncode, found.stdout.split()) == (0, ["a", "1"])
