"""`helix worker`: the one-file client with options in place of a URL; what is wrong is one line and its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.fake import helix
from tests.deploy.worker_api import PATIENCE_S, WorkerApi, refusal, worker_api

HELIX = [sys.executable, "-m", "helix_es.cli.__main__", "worker"]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerApi]:
    for name in ("HELIX_URL", "HELIX_API_KEY", "HELIX_WORKER"):
        monkeypatch.delenv(name, raising=False)
    with worker_api() as made:
        yield made


def test_the_options_are_the_filter_and_the_command_answers(workers: WorkerApi) -> None:
    options = ["--url", workers.url, "--model", "mistral", "--type", "Text", "--name", "w1"]
    words = [*HELIX, *options, "--slots", "2", "--lease-s", "7.5", "--", "sh", "-c", "cat; printf ' --help'"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, env={**os.environ, "HELIX_API_KEY": "k"})
    try:
        workers.give()
        assert workers.ended()["output"] == "[INST]say it[/INST] --help"
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert said.decode() == f"worker w1 asks {workers.url} for mistral; Ctrl-C ends it\n"
    asked = {
        "mode": "create",
        "type": "text",
        "model_name": "mistral",
        "worker": "w1",
        "slots": "2",
        "lease_s": "7.5",
    }
    assert asked.items() <= workers.polls[0].items()
    assert workers.heard[-1].verb == "leave"
    assert workers.heard[0].headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (refusal(422, "unknown_model"), 2),
        (refusal(403, "not_a_worker"), 2),
        (refusal(409, "worker_name_taken"), 1),
    ],
)
def test_a_refusal_is_one_line(workers: WorkerApi, answer: tuple[int, Any], code: int) -> None:
    workers.on("poll", answer)
    ended = helix("worker", "--url", workers.url, "--model", "gpt-99", "--", "cat")
    assert ended.returncode == code
    assert ended.stderr.splitlines()[-1].startswith("helix: no: ")
    assert answer[1]["code"] in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--", "cat"), "--model"),
        (("--model", "mistral"), "COMMAND"),
        (("--model", "mistral", "--slots", "0", "--", "cat"), "--slots"),
        (("--model", "mistral", "--lease-s", "1", "--", "cat"), "--lease-s"),
        (("--model", "mistral", "--mode", "destroy", "--", "cat"), "--mode"),
        (("--model", "mistral", "--timeout-s", "0", "--", "cat"), "--timeout-s"),
        (("--url", "nowhere", "--model", "mistral", "--", "cat"), "--url"),
    ],
)
def test_wrong_use_is_one_line_that_names_it(words: tuple[str, ...], named: str) -> None:
    ended = helix("worker", *words)
    assert ended.returncode == 2
    assert named in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_key_that_is_none_is_refused_unsaid(workers: WorkerApi) -> None:
    ended = helix(
        "worker", "--url", workers.url, "--model", "mistral", "--", "cat", HELIX_API_KEY="two words"
    )
    assert ended.returncode == 2
    assert "HELIX_API_KEY" in ended.stderr
    assert "two words" not in ended.stderr
    assert workers.polls == []
