"""`helix image`: files that are written, what stands on stdout and stderr, and what is refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helix_es.cli import client
from helix_es.cli.image import image
from tests.cli.fake import (
    SID,
    Answered,
    FakeApi,
    Streamed,
    fact,
    helix,
    problem,
    session,
    sse,
    terminal,
    turn,
)

NEW = "POST /api/v1/sessions"
EVENTS = f"GET /api/v1/sessions/{SID}/events?turn=1"
CONTENT = "GET /api/v1/files/{}/content"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 1000
STARTED = fact("turn.started", turn("running"), "3.1.0")


def step(number: int, **detail: Any) -> bytes:
    told = {"turn": 1, "attempt": 1, "step": number, "steps": 20, "detail": detail, "preview": None}
    return sse("progress", told)


def completed(*files: str, **others: Any) -> bytes:
    return fact("turn.completed", turn("completed", files=list(files), **others), "9.1.0")


def ask(api: FakeApi, to: Path, *words: str) -> Result:
    return CliRunner().invoke(image, ["--url", api.url, "-o", str(to), *words], catch_exceptions=False)


@pytest.fixture
def opened(api: FakeApi) -> FakeApi:
    api.on(NEW, Answered(session(turn(), type="image"), 201))
    for file in ("f1", "f2", "f3"):
        api.on(CONTENT.format(file), Answered(PNG + file.encode(), media="image/png"))
    return api


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "POST_AGAIN_S", (0.0, 0.0))


def test_the_file_is_written_and_its_path_printed(opened: FakeApi, tmp_path: Path) -> None:
    place = sse("queue", {"turn": 1, "position": 3, "wait_s": 12.2})
    opened.on(EVENTS, Streamed(place, STARTED, step(1), step(2), completed("f1")))
    said = ask(
        opened, tmp_path / "sun.png", "--size", "64x32", "--seed", "7", "--negative", "rain", "two suns"
    )
    assert (said.exit_code, said.stdout) == (0, f"{tmp_path}/sun.png\n")
    assert said.stderr == f"place 3, about 12 s\nsession {SID}\n"  # elsewhere than on a terminal, no steps
    assert (tmp_path / "sun.png").read_bytes() == PNG + b"f1"
    assert [each.name for each in tmp_path.iterdir()] == ["sun.png"]
    assert opened.seen[NEW][0][1] == {
        "model": "scenes",
        "type": "image",
        "prompt": "two suns",
        "params": {"width": 64, "height": 32, "seed": 7, "negative_prompt": "rain"},
    }


def test_every_option_reaches_the_request(opened: FakeApi, tmp_path: Path) -> None:
    opened.on(EVENTS, Streamed(completed("f1")))
    words = ["--model", "sdxl", "--steps", "30", "--guidance", "5.5", "--count", "2"]
    assert ask(opened, tmp_path / "a.png", *words, "two suns").exit_code == 0
    body = opened.seen[NEW][0][1]
    assert body["model"] == "sdxl"
    assert body["params"] == {"steps": 30, "guidance": 5.5, "count": 2}


def test_several_pictures_are_numbered(opened: FakeApi, tmp_path: Path) -> None:
    opened.on(EVENTS, Streamed(completed("f1", "f2", "f3")))
    said = ask(opened, tmp_path / "sun.set.png", "--count", "3", "two suns")
    paths = [tmp_path / f"sun.set-{number}.png" for number in (1, 2, 3)]
    assert said.stdout.splitlines() == [str(path) for path in paths]
    assert [path.read_bytes()[-2:] for path in paths] == [b"f1", b"f2", b"f3"]


def test_a_session_goes_on(opened: FakeApi, tmp_path: Path) -> None:
    again = f"POST /api/v1/sessions/{SID}/turns"
    opened.on(again, Answered(turn() | {"turn": 2}, 201))
    ended = turn("completed", files=["f2"]) | {"turn": 2}
    opened.on(f"GET /api/v1/sessions/{SID}/events?turn=2", Streamed(fact("turn.completed", ended, "12.1.0")))
    said = ask(opened, tmp_path / "a.png", "--session", SID, "--strength", "0.4", "make it night")
    assert said.exit_code == 0
    assert opened.seen[again][0][1] == {"prompt": "make it night", "params": {"strength": 0.4}}
    assert (tmp_path / "a.png").read_bytes() == PNG + b"f2"


def test_json_is_the_turn_with_its_session_and_paths(opened: FakeApi, tmp_path: Path) -> None:
    opened.on(EVENTS, Streamed(completed("f1")))
    said = ask(opened, tmp_path / "a.png", "--json", "two suns")
    ended = turn("completed", files=["f1"])
    assert json.loads(said.stdout) == {"session_id": SID, **ended, "paths": [f"{tmp_path}/a.png"]}


def test_a_prompt_that_was_cut_is_told_once(opened: FakeApi, tmp_path: Path) -> None:
    opened.on(EVENTS, Streamed(step(1, truncated=True), step(2, truncated=True), completed("f1")))
    said = ask(opened, tmp_path / "a.png", "two suns")
    assert said.stderr.count("longer than the model reads") == 1


def test_a_download_that_breaks_begins_again(opened: FakeApi, tmp_path: Path) -> None:
    opened.on(EVENTS, Streamed(completed("f1")))
    half = Streamed(PNG[:1000], cut=True)
    busy = problem(503, "log_unavailable", "later")
    opened.on(CONTENT.format("f1"), half, busy, Answered(PNG, media="image/png"))
    said = ask(opened, tmp_path / "a.png", "two suns")
    assert said.exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == PNG


def test_a_download_that_stays_broken_leaves_nothing_behind(opened: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"of before")
    opened.on(EVENTS, Streamed(completed("f1")))
    opened.on(CONTENT.format("f1"), Streamed(PNG[:1000], cut=True))
    said = ask(opened, tmp_path / "a.png", "two suns")
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.startswith(f"helix: the connection to {opened.url} broke")
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"of before"]
    assert len(opened.seen[CONTENT.format("f1")]) == 3


def test_a_file_that_cannot_be_written_is_exit_code_1(opened: FakeApi, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    opened.on(EVENTS, Streamed(completed("f1")))
    opened.hooks[NEW] = (tmp_path / "there").rmdir  # the folder goes while the picture is made
    said = ask(opened, tmp_path / "there" / "a.png", "two suns")
    assert said.exit_code == 1
    assert "cannot be written: No such file or directory; the picture is file f1\n" in said.stderr


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (
            fact("turn.failed", turn("failed", error={"code": "out_of_memory", "message": "no room"}), "5"),
            "helix: turn 1 failed: no room (out_of_memory)",
        ),
        (fact("turn.cancelled", turn("cancelled"), "5"), "helix: turn 1 was cancelled"),
        (completed(), f"helix: turn 1 made no picture: session {SID} is not one of images"),
    ],
)
def test_a_turn_without_a_picture_is_exit_code_1(
    event: bytes, said: str, opened: FakeApi, tmp_path: Path
) -> None:
    opened.on(EVENTS, Streamed(step(1), event))
    result = ask(opened, tmp_path / "a.png", "two suns")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"session {SID}\n{said}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_one_line(opened: FakeApi, tmp_path: Path) -> None:
    opened.on(NEW, problem(422, "invalid_params", "params.steps: at most 100 with this model, found 900"))
    said = ask(opened, tmp_path / "a.png", "--steps", "900", "two suns")
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr == "helix: params.steps: at most 100 with this model, found 900 (invalid_params)\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["two suns"], "Missing option '-o'"),
        (["-o", "a.png"], "Missing argument 'PROMPT'"),
        (["-o", "a.png", "  "], "the prompt is empty"),
        (["-o", "a.jpg", "x"], "must end with .png"),
        (["-o", "no/such/folder/a.png", "x"], "there is no folder no/such/folder"),
        (["-o", "a.png", "--size", "64", "x"], "WIDTHxHEIGHT"),
        (["-o", "a.png", "--size", "64x65", "x"], "multiple of 8"),
        (["-o", "a.png", "--size", "99999x64", "x"], "16 to 4096"),
        (["-o", "a.png", "--steps", "0", "x"], "'--steps'"),
        (["-o", "a.png", "--count", "65", "x"], "'--count'"),
        (["-o", "a.png", "--session", "a/b", "x"], "session id"),
        (["-o", "a.png", "--session", "s1", "--model", "sdxl", "x"], "--model belongs to a new session"),
        (["-o", "a.png", "--strength", "0.5", "x"], "--session"),
        (["-o", "a.png", "--url", "ftp://x", "x"], "http://"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(image, words)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_the_command_is_known_and_says_wrong_use_in_one_line(tmp_path: Path) -> None:
    result = helix("image", "x", "-o", str(tmp_path / "a.gif"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("helix: Invalid value for '-o'")
    assert result.stderr.count("\n") == 1


def test_steps_are_one_line_on_a_terminal(opened: FakeApi, tmp_path: Path) -> None:
    stop = threading.Event()
    opened.on(EVENTS, Streamed(STARTED, step(3), completed("f1"), wait=stop))
    with terminal("image", "--url", opened.url, "-o", str(tmp_path / "a.png"), "two suns") as shell:
        shell.until("\r\x1b[Kstep 3 of 20")
        stop.set()
        shell.until("\r\x1b[K")  # taken away again
        shell.until(f"session {SID}")
        assert shell.ended() == 0
    assert (tmp_path / "a.png").exists()


def test_ctrl_c_cancels_the_turn(opened: FakeApi, tmp_path: Path) -> None:
    stop = threading.Event()
    opened.on(EVENTS, Streamed(step(3), fact("turn.cancelled", turn("cancelled"), "5"), wait=stop))
    cancel = f"POST /api/v1/sessions/{SID}/turns/1/cancel"
    opened.on(cancel, Answered({"status": "accepted"}, 202))
    opened.hooks[cancel] = stop.set
    with terminal("image", "--url", opened.url, "-o", str(tmp_path / "a.png"), "two suns") as shell:
        shell.until("step 3 of 20")
        shell.write("\x03")
        shell.until("cancelling …")
        shell.until(f"session {SID}")
        assert shell.ended() == 130
    assert len(opened.seen[cancel]) == 1
    assert list(tmp_path.iterdir()) == []
