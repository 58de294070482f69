"""`helix top`: one picture for a pipe, a live one for a terminal."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from helix_es.cli.top import top
from tests.cli.fake import FakeApi, problem, session, terminal, turn
from tests.cli.test_show import GPU, LINE, listed


@pytest.fixture
def shop(api: FakeApi) -> FakeApi:
    api.on("GET /api/v1/gpus", listed(GPU))
    api.on("GET /api/v1/queue", listed(LINE))
    api.on("GET /api/v1/fleet", listed())
    api.on("GET /api/v1/sessions?limit=20", listed(session(turn() | {"prompt": "[/x]"}), has_more=False))
    return api


def test_a_pipe_gets_one_picture(shop: FakeApi) -> None:
    said = CliRunner().invoke(top, ["--url", shop.url], catch_exceptions=False)
    assert said.exit_code == 0
    assert "1 of 1 GPUs ready   1/4 slots held   1 waiting" in said.stdout
    for part in ("The floor", "n-0", "The door", "(another owner's)", "Newest sessions", "s1", "[/x]"):
        assert part in said.stdout
    assert "\x1b" not in said.stdout


def test_an_empty_shop_says_so(api: FakeApi) -> None:
    for path in ("gpus", "queue", "fleet", "sessions?limit=20"):
        api.on(f"GET /api/v1/{path}", listed(has_more=False))
    said = CliRunner().invoke(top, ["--url", api.url, "--once"], catch_exceptions=False)
    assert "no GPU is there" in said.stdout


def test_gpus_that_are_alike_share_a_line_where_there_are_many(api: FakeApi) -> None:
    api.on("GET /api/v1/gpus", listed(*(GPU | {"gpu": f"n-{n}"} for n in range(21))))
    api.on("GET /api/v1/queue", listed(LINE))
    pool = dict.fromkeys(("ready", "loading", "leaving", "min"), 0)
    pool |= {"pool": "cloud", "wanted": 3, "present": 1, "max": 4, "reason": "2 GPUs' worth wait"}
    api.on("GET /api/v1/fleet", listed(pool))
    api.on("GET /api/v1/sessions?limit=20", listed(has_more=False))
    said = CliRunner().invoke(top, ["--url", api.url, "--once"], catch_exceptions=False).stdout
    assert "21/84" in said
    assert "n-0 … n-20" in said
    assert "2 GPUs' worth wait" in said


def test_json_is_the_picture(shop: FakeApi) -> None:
    said = CliRunner().invoke(top, ["--url", shop.url, "--json"], catch_exceptions=False)
    assert json.loads(said.stdout)["gpus"] == [GPU]


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_a_terminal_sees_it_live_until_somebody_quits(shop: FakeApi, key: str) -> None:
    shop.on(
        "GET /api/v1/gpus",
        listed(GPU),
        problem(503, "log_unavailable", "resting"),
        listed(GPU | {"gpu": "n-9"}),
    )
    with terminal("top", "--url", shop.url) as shell:
        seen = shell.until("q ends")
        seen = shell.until("resting (log_unavailable); trying again", seen)
        shell.until("n-9", seen)
        shell.write(key)
        shell.until("\x1b[?1049l")  # the screen is as it was
        assert shell.ended() == 0
