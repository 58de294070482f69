"""`helix finetune`: the file that is sent, the session that is opened, what is shown on the way and at the end."""

from __future__ import annotations

import email
import email.policy
import json
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helix_es.cli import client
from helix_es.cli.client import Api
from helix_es.cli.finetune import finetune
from tests.cli.fake import (
    SID,
    Answered,
    FakeApi,
    Handler,
    Streamed,
    fact,
    problem,
    session,
    sse,
    terminal,
    turn,
)

FILES = "POST /api/v1/files"
NEW = "POST /api/v1/sessions"
EVENTS = f"GET /api/v1/sessions/{SID}/events?turn=1"
CANCEL = f"POST /api/v1/sessions/{SID}/turns/1/cancel"
STORED = {"file_id": "f1", "name": "a.jsonl", "dataset": {"form": "chat", "examples": 30}}
SENTENCE = "56 of 56 steps over 30 examples: loss 3.695 to 0.032, held out 2.521 to 0.166."
USE = 'helix chat --adapter toy "…"\n'


class Multipart(Handler):
    """Also understands forms; what was seen of one is its parts."""

    def _any(self) -> None:
        if not (self.headers.get("content-type") or "").startswith("multipart/"):
            super()._any()
            return
        raw = self.rfile.read(int(self.headers["content-length"]))
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        form = email.message_from_bytes(head + raw, policy=email.policy.HTTP)
        parts = {
            part.get_param("name", header="content-disposition"): (
                part.get_filename(),
                part.get_payload(decode=True),
            )
            for part in form.iter_parts()
        }
        answer = self.api.take(f"{self.command} {self.path}", {}, parts)
        self.close_connection = True
        assert isinstance(answer, Answered)
        self._plain(answer)

    do_POST = _any


@pytest.fixture
def opened(api: FakeApi) -> FakeApi:
    api.server.RequestHandlerClass = type("Bound", (Multipart,), {"api": api})
    api.on(FILES, Answered(STORED, 201))
    api.on(NEW, Answered(session(turn()), 201))
    return api


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "POST_AGAIN_S", (0.0, 0.0))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "toy.jsonl"
    path.write_bytes(b'{"messages": []}\n')
    return path


def step(number: int, **detail: Any) -> bytes:
    told = {"turn": 1, "attempt": 1, "step": number, "steps": 56, "detail": detail, "preview": None}
    return sse("progress", told)


def completed(**others: Any) -> bytes:
    return fact("turn.completed", turn("completed", SENTENCE, files=["f2", "f3"], **others), "9.1.0")


def tune(api: FakeApi, dataset: Path, *words: str) -> Result:
    arguments = ["--url", api.url, "--name", "toy", *words, str(dataset)]
    return CliRunner().invoke(finetune, arguments, catch_exceptions=False)


def test_a_dataset_becomes_an_adapter(opened: FakeApi, dataset: Path) -> None:
    opened.on(EVENTS, Streamed(step(1, loss=3.5), completed()))
    said = tune(opened, dataset)
    assert (said.exit_code, said.stdout) == (0, USE)
    assert said.stderr.splitlines() == [
        "sending toy.jsonl …",
        "dataset f1: 30 examples, form chat",
        f"session {SID}",
        "step 1/56  loss 3.500",
        SENTENCE,
    ]
    parts = opened.seen[FILES][0][1]
    assert parts == {"file": ("toy.jsonl", dataset.read_bytes()), "purpose": (None, b"dataset")}
    assert opened.seen[NEW][0][1] == {
        "model": "smollm2",
        "type": "text",
        "mode": "finetune",
        "dataset": "f1",
        "name": "toy",
        "params": {},
    }


def test_only_what_is_given_is_sent(opened: FakeApi, dataset: Path) -> None:
    opened.on(EVENTS, Streamed(completed()))
    words = [
        "--epochs",
        "2",
        "--learning-rate",
        "2e-4",
        "--lora-rank",
        "4",
        "--load-in-4bit",
        "--max-steps",
        "7",
    ]
    words += ["--batch-size", "8", "--held-out", "0", "--seed", "5", "--model", "mistral"]
    tune(opened, dataset, *words)
    body = opened.seen[NEW][0][1]
    assert body["model"] == "mistral"
    assert body["params"] == {
        "epochs": 2,
        "learning_rate": 2e-4,
        "lora_rank": 4,
        "load_in_4bit": True,
        "max_steps": 7,
        "batch_size": 8,
        "held_out": 0.0,
        "seed": 5,
    }


def test_json_is_the_turn_with_its_session_and_name(opened: FakeApi, dataset: Path) -> None:
    opened.on(EVENTS, Streamed(completed()))
    said = tune(opened, dataset, "--json")
    ended = turn("completed", SENTENCE, files=["f2", "f3"])
    assert json.loads(said.stdout) == {"session_id": SID, "adapter": "toy", **ended}


def test_detached_the_session_is_all_that_is_said(opened: FakeApi, dataset: Path) -> None:
    said = tune(opened, dataset, "--detach")
    assert (said.exit_code, said.stdout) == (0, f"{SID}\n")
    assert EVENTS not in opened.seen
    assert json.loads(tune(opened, dataset, "--detach", "--json").stdout)["session_id"] == SID


def test_what_is_wrong_with_a_dataset_is_the_apis_to_say(opened: FakeApi, dataset: Path) -> None:
    opened.on(
        FILES, problem(422, "invalid_dataset", "line 1: messages is an empty list\nline 7: is not JSON")
    )
    said = tune(opened, dataset)
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.splitlines()[-1] == (
        "helix: line 1: messages is an empty list line 7: is not JSON (invalid_dataset)"
    )
    assert NEW not in opened.seen


def test_a_file_that_cannot_be_sent_is_one_line(opened: FakeApi, dataset: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Api, "upload", refuse)
    said = tune(opened, dataset)
    assert said.exit_code == 1
    assert said.stderr.endswith(f"helix: {dataset} cannot be read: Permission denied\n")


def test_a_failed_fine_tune_is_exit_code_1(opened: FakeApi, dataset: Path) -> None:
    error = {"code": "out_of_memory", "message": "lower batch_size"}
    opened.on(EVENTS, Streamed(fact("turn.failed", turn("failed", error=error), "5")))
    said = tune(opened, dataset)
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.endswith("helix: turn 1 failed: lower batch_size (out_of_memory)\n")


def test_a_large_file_is_sent_in_pieces(opened: FakeApi, tmp_path: Path) -> None:
    size = 24 << 20
    path = tmp_path / "größe 🚢.jsonl"
    with path.open("wb") as file:
        file.truncate(size)
    got: list[int] = []

    class Draining(Multipart):
        def _any(self) -> None:
            left = int(self.headers["content-length"])
            got.append(left)
            while left:
                left -= len(self.rfile.read(min(left, 1 << 16)))
            self.close_connection = True
            self._plain(Answered(STORED, 201))

        do_POST = _any

    opened.server.RequestHandlerClass = type("Bound", (Draining,), {"api": opened})
    with Api(opened.url) as asked:
        tracemalloc.start()
        try:
            assert asked.upload(path, "dataset") == STORED
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()
    assert got[0] > size


def test_a_terminal_has_one_line_and_ctrl_c_cancels(opened: FakeApi, dataset: Path) -> None:
    stop = threading.Event()
    cancelled = fact("turn.cancelled", turn("cancelled", files=["f2", "f3"]), "5")
    opened.on(EVENTS, Streamed(step(1, loss=3.5), step(2, loss=3.1), cancelled, wait=stop))
    opened.on(CANCEL, Answered({"status": "accepted"}, 202))
    opened.hooks[CANCEL] = stop.set
    with terminal("finetune", "--url", opened.url, "--name", "toy", str(dataset)) as shell:
        seen = shell.until("\r\x1b[Kstep 1/56  loss 3.500")
        seen = shell.until("\r\x1b[Kstep 2/56  loss 3.100", seen)
        shell.write("\x03")
        seen = shell.until("cancelling …", seen)
        shell.until("cancelled: its last checkpoint is kept; the adapter as it was then: f2 f3", seen)
        assert shell.ended() == 130
    assert len(opened.seen[CANCEL]) == 1


def test_what_completes_in_spite_of_ctrl_c_is_finished(opened: FakeApi, dataset: Path) -> None:
    stop = threading.Event()
    opened.on(EVENTS, Streamed(step(55, loss=0.5), completed(), wait=stop))
    opened.on(CANCEL, Answered({"status": "accepted"}, 202))
    opened.hooks[CANCEL] = stop.set
    with terminal("finetune", "--url", opened.url, "--name", "toy", str(dataset)) as shell:
        shell.until("step 55/56")
        shell.write("\x03")
        shell.until("helix chat --adapter toy")
        assert shell.ended() == 0


def test_flags_go_before_the_recipe(opened: FakeApi, dataset: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text("base_model: acme/tiny\nlora_r: 16\nlora_alpha: 32\n")
    opened.on(EVENTS, Streamed(completed()))
    assert tune(opened, dataset, "--recipe", str(recipe), "--lora-rank", "2").exit_code == 0
    body = opened.seen[NEW][0][1]
    assert body["model"] == "acme/tiny"
    assert (body["params"]["lora_rank"], body["params"]["lora_alpha"]) == (2, 32)


def test_a_dataset_of_another_form_than_the_recipe_says_is_refused(
    opened: FakeApi, dataset: Path, tmp_path: Path
) -> None:
    path = tmp_path / "alpaca.yml"
    path.write_text("datasets: [{type: alpaca}]")
    said = tune(opened, dataset, "--recipe", str(path))
    assert said.exit_code == 1
    assert said.stderr.endswith("has the form chat, the recipe says alpaca\n")
    assert NEW not in opened.seen
