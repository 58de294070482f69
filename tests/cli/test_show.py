"""The listing commands: tables for people, the API's own answer for machines."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helix_es.cli import show
from helix_es.cli.show import age, memory
from tests.cli.fake import Answered, FakeApi, helix, problem, session, turn

GPU = {
    "gpu": "n-0",
    "kind": "cpu",
    "pool": "default",
    "next": None,
    "state": "ready",
    "purpose": "chat",
    "model": "smollm2",
    "slots": 4,
    "slots_used": 1,
    "sessions": ["s1"],
    "memory_total_bytes": 16 * 2**30,
    "memory_used_bytes": 2**30,
    "utilisation": 0.25,
    "temperature_c": None,
    "heartbeat_at": None,
    "detail": {},
}
WAITING = {
    "session_id": "",
    "owner": None,
    "turn": 1,
    "priority": 0,
    "position": 1,
    "wait_s": 2.4,
    "queued_at": "2026-11-22T18:00:00.000Z",
}
KIND = {
    "model": "mistral",
    "kind": "a100-80",
    "gpus": 2,
    "coefficient": 16,
    "source": "memory",
    "line": "0.90 × 79.0 GiB − 13.5 GiB weights − 1.5 GiB reserve = 56.1 GiB; ÷ 1.00 GiB a session "
    "(8192 tokens × 128 KiB) = 56, at most 16 until calibrated → 16",
    "reason": None,
    "lowered": [],
}
LINE = {
    "mode": "create",
    "type": "text",
    "model": "smollm2",
    "slots": 4,
    "bound": 4,
    "free": 0,
    "waiting": 1,
    "sessions": [WAITING],
}
MODEL = {
    "model": "smollm2",
    "name": "HF/SmolLM2",
    "type": "text",
    "engine": "transformers",
    "dtype": "auto",
    "context_tokens": 4096,
    "gpus": 1,
    "slots": 4,
    "waiting": 0,
}


def listed(*rows: Any, **others: Any) -> Answered:
    return Answered({"object": "list", "data": list(rows), **others})


def run(api: FakeApi, command: str, *words: str) -> Result:
    return CliRunner().invoke(getattr(show, command), ["--url", api.url, *words], catch_exceptions=False)


def cells(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()]


@pytest.fixture
def shop(api: FakeApi) -> FakeApi:
    api.on("GET /api/v1/gpus", listed(GPU))
    api.on("GET /api/v1/queue", listed(LINE))
    api.on("GET /api/v1/models", listed(MODEL))
    hostile = session(
        turn("completed") | {"prompt": "[/red] [bold]x\x1b[31m\n" + "y" * 80}, state="idle", gpu="n-0"
    )
    api.on("GET /api/v1/sessions?limit=20", listed(hostile, has_more=True))
    return api


def test_gpus_are_a_table(shop: FakeApi) -> None:
    header, row = cells(run(shop, "gpus"))
    assert header == ["GPU", "KIND", "STATE", "FOR", "MODEL", "SLOTS", "MEMORY", "LOAD", "HEARD"]
    assert row == ["n-0", "cpu", "ready", "chat", "smollm2", "1/4", "1.0/16.0", "GiB", "25%", "-"]


def test_an_empty_floor_says_what_to_do(api: FakeApi) -> None:
    api.on("GET /api/v1/gpus", listed())
    assert "helix runner text" in run(api, "gpus").stderr


def test_the_queue_hides_other_owners(shop: FakeApi) -> None:
    result = run(shop, "queue")
    assert cells(result)[1] == ["create", "text", "smollm2", "4", "4", "0", "1"]
    assert "(another owner's)" in result.stdout


def test_models_are_a_table(shop: FakeApi) -> None:
    assert cells(run(shop, "models"))[1] == ["smollm2", "HF/SmolLM2", "text", "4096", "1", "4", "0"]


def test_coefficients_are_told_in_120_columns_model_by_model(api: FakeApi) -> None:
    small = KIND | {
        "kind": "t4-16",
        "gpus": 0,
        "coefficient": 0,
        "line": "0.90 × …: no room → 0",
        "reason": "too small",
    }
    table = KIND | {
        "source": "table",
        "line": f"[coefficients] says 16 for a100-80/mistral; by memory: {KIND['line']}",
    }
    api.on("GET /api/v1/models/explain", listed(KIND, small, table | {"model": "other"}))
    result = run(api, "models", "--explain")
    assert (result.exit_code, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 120
    told = cells(result)
    assert told[0] == ["mistral"]
    assert told[1] == ["KIND", "GPUS", "SLOTS", "FROM", "DERIVATION"]
    assert told[2][:5] == ["a100-80", "2", "16", "memory", "0.90"]
    assert " ".join(told[3]).startswith("÷ 1.00 GiB a session (8192 tokens × 128 KiB) = 56")
    assert told[4][:4] == ["t4-16", "-", "0", "memory"]
    assert told[5] == ["too", "small"]
    assert told[7] == ["other"]


def test_gpus_that_ran_out_of_memory_are_named(api: FakeApi) -> None:
    lowered = [{"gpu": f"n-{n}", "slots": n} for n in range(7)]
    api.on("GET /api/v1/models/explain?model=mistral", listed(KIND | {"lowered": lowered}))
    result = run(api, "models", "--explain", "--model", "mistral")
    assert "lowered since memory ran out: n-0 0, n-1 1, n-2 2, n-3 3, n-4 4 and 2 more" in result.stdout


def test_coefficients_in_json_are_what_the_api_says(api: FakeApi) -> None:
    api.on("GET /api/v1/models/explain", listed(KIND))
    assert json.loads(run(api, "models", "--explain", "--json").stdout)["data"] == [KIND]


def test_the_names_of_kinds_do_not_steer_the_terminal(api: FakeApi) -> None:
    api.on("GET /api/v1/models/explain", listed(KIND | {"kind": "[red]a\x1b[31m", "reason": "\x1b[2J"}))
    result = run(api, "models", "--explain")
    assert "[red]a\ufffd[31m" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_model_that_is_not_there_is_said(api: FakeApi) -> None:
    api.on("GET /api/v1/models/explain?model=gpt", problem(422, "unknown_model", "no model 'gpt'"))
    result = run(api, "models", "--explain", "--model", "gpt")
    assert (result.exit_code, result.stderr) == (1, "helix: no model 'gpt' (unknown_model)\n")


def test_prompts_neither_style_nor_steer_the_table(shop: FakeApi) -> None:
    result = run(shop, "sessions")
    assert "[/red] [bold]x\ufffd[31m yyy" in result.stdout
    assert "…" in result.stdout
    assert "\x1b" not in result.stdout
    assert result.stderr == "more: helix sessions --after s1\n"


def test_sessions_pass_their_filters_on(api: FakeApi) -> None:
    asked = "GET /api/v1/sessions?type=text&state=idle&model=smollm2&limit=3&after=s9"
    api.on(asked, listed(has_more=False))
    words = ["--state", "idle", "--type", "text", "--model", "smollm2", "--limit", "3", "--after", "s9"]
    result = run(api, "sessions", *words)
    assert result.exit_code == 0, (result.stderr, dict(api.seen))


@pytest.mark.parametrize("command", ["gpus", "queue", "models", "sessions"])
@pytest.mark.parametrize("words", [["--json"], ["-o", "json"]])
def test_json_is_what_the_api_says(shop: FakeApi, command: str, words: list[str]) -> None:
    path = "/api/v1/sessions?limit=20" if command == "sessions" else f"/api/v1/{command}"
    answer = shop.answers[f"GET {path}"][0]
    assert isinstance(answer, Answered)
    assert json.loads(run(shop, command, *words).stdout) == json.loads(answer.data)


def test_an_error_that_is_no_problem_is_one_line_too(api: FakeApi) -> None:
    api.on("GET /api/v1/gpus", Answered(b"<html>bad gateway", 502, "text/html"))
    result = run(api, "gpus")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"helix: {api.url} answered 502 Bad Gateway (http_502)\n"


def test_something_else_at_the_address_is_said(api: FakeApi) -> None:
    api.on("GET /api/v1/gpus", Answered(b"hello", 200, "text/plain"))
    assert run(api, "gpus").stderr == f"helix: {api.url} does not answer as Helix (not_helix)\n"


def test_a_problem_is_one_line(api: FakeApi) -> None:
    api.on("GET /api/v1/gpus", problem(401, "unauthorized", "send a key"))
    result = run(api, "gpus")
    assert result.stderr == "helix: send a key; the key is read from HELIX_API_KEY (unauthorized)\n"


def test_the_address_is_the_one_that_helix_up_wrote(
    shop: FakeApi, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "var/helix").mkdir(parents=True)
    (tmp_path / "var/helix/api.url").write_text(shop.url + "\n")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(show.gpus, []).exit_code == 0
    refused = CliRunner().invoke(show.gpus, [], env={"HELIX_URL": "http://127.0.0.1:1"})
    assert refused.stderr == "helix: no Helix at http://127.0.0.1:1; start one with 'helix up'\n"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["chat", "--temperature", "9", "hi"], "--temperature"),
        (["chat", "--max-tokens", "0", "hi"], "--max-tokens"),
        (["chat", "--seed", "-1", "hi"], "--seed"),
        (["chat", "--session", "../x", "hi"], "--session"),
        (["chat", "--session", "s1", "--model", "smollm2", "hi"], "--model"),
        (["chat", " "], "prompt"),
        (["chat"], "prompt"),
        (["chat", "two", "words"], "argument"),
        (["sessions", "--state", "odd"], "--state"),
        (["sessions", "--limit", "101"], "--limit"),
        (["gpus", "--url", "ftp://x"], "--url"),
        (["gpus", "--url", "http://user:secret@x"], "--url"),
        (["gpus", "--url", "http://x:0"], "--url"),
        (["gpus", "--url", "http://x:99999"], "--url"),
        (["gpus", "-o", "xml"], "-o"),
        (["models", "--model", "mistral"], "--explain"),
        (["top", "extra"], "argument"),
        (["doctor", "--odd"], "--odd"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words: list[str], named: str) -> None:
    done = helix(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert "secret" not in done.stderr


def test_ages_and_sizes_are_readable() -> None:
    now = datetime(2026, 11, 22, 18, tzinfo=UTC)
    told = [age((now - timedelta(seconds=s)).isoformat(), now) for s in (0, 61, 130, 7300, 200_000)]
    assert told == ["0 s", "61 s", "2 min", "2 h", "2 d"]
    assert age(None, now) == "-"
    assert memory(None, 2**30) == "-/1.0 GiB"
