"""The one-file client: what it says, what it repeats, when it stops; and that it needs nothing but Python 3.8."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.worker_api import PATIENCE_S, WorkerApi, refusal, worker_api

from helix_es import httpworker
from helix_es.httpworker import Api, Task, TaskFailed, Worker, command

FOLDER = Path(__file__).parents[2] / "deploy" / "worker"
CLIENT = FOLDER / "helix_worker.py"
PYTHONS = [
    found
    for version in ("3.8", "3.9", "3.13")
    if (
        found := shutil.which(
            f"python{version}",
            path=os.pathsep.join(
                [*map(str, Path("/root/.pyenv/versions").glob(f"{version}.*/bin")), os.environ["PATH"]]
            ),
        )
    )
]


@pytest.fixture
def api() -> Iterator[WorkerApi]:
    with worker_api() as made:
        yield made


class Serving:
    """A worker in a thread."""

    def __init__(self, api: WorkerApi, do_inference: Callable[[Task], Any], **query: Any) -> None:
        more = "".join(f"&{key}={value}" for key, value in query.items())
        self.worker = Worker(Api(api.job_url + more, "w1"), drain_s=2.0)
        self.thread = threading.Thread(target=self.worker.run, args=(do_inference,))

    def __enter__(self) -> Serving:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()


# -- one file


def test_the_shipped_file_is_the_packages_own_and_speaks_python_3_8() -> None:
    assert CLIENT.resolve() == Path(httpworker.__file__).resolve()
    tree = ast.parse(CLIENT.read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("python", [sys.executable, *PYTHONS], ids=lambda path: Path(path).parts[-3])
def test_a_copy_alone_in_a_folder_serves(api: WorkerApi, tmp_path: Path, python: str) -> None:
    shutil.copy(CLIENT, tmp_path / "helix_worker.py")
    env = {
        "HELIX_GET_JOB_URL": api.job_url,
        "HELIX_WORKER": "box",
        "HELIX_API_KEY": "k",
        "PATH": os.environ["PATH"],
    }
    script = [python, "-W", "error", "-S", "-E", str(tmp_path / "helix_worker.py"), "--", "tr", "a-z", "A-Z"]
    api.give()
    process = subprocess.Popen(script, env=env, stderr=subprocess.PIPE)
    try:
        assert api.ended()["output"] == "[INST]SAY IT[/INST]"
        assert api.polls[0]["worker"] == "box"
        assert api.heard[-1].headers["authorization"] == "Bearer k"
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (0, b"")
    assert api.heard[-1].verb == "leave"


def test_the_example_serves(api: WorkerApi) -> None:
    env = {**os.environ, "HELIX_GET_JOB_URL": api.job_url, "HELIX_WORKER": "w1"}
    api.give(prompt="stressed desserts")
    process = subprocess.Popen([sys.executable, str(FOLDER / "example_inference.py")], env=env)
    try:
        body = api.ended()
        assert body["output"] == "desserts stressed "
        assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 2}
        api.give("s2.1.1.w1.http-1", prompt="x" * 20_000)
        assert api.ended("fail")["code"] == "prompt_too_long"
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


# -- what it says


def test_pieces_arrive_in_order_and_the_end_carries_all_of_them(api: WorkerApi) -> None:
    def do(task: Task) -> Iterator[str]:
        for word in ("one ", "", "two ", "three", "\ud800"):
            yield word
            threading.Event().wait(0.06)

    with Serving(api, do):
        api.give(traceparent="00-1-2-03")
        body = api.ended()
    assert body == {"output": "one two three?", "files": []}
    assert body["output"].startswith(api.text())
    assert len([each for each in api.of("delta") if "text" in each]) >= 2
    assert {said.headers.get("traceparent") for said in api.heard if said.verb == "delta"} == {"00-1-2-03"}


def test_silence_is_full_of_signs_of_life(api: WorkerApi) -> None:
    def do(task: Task) -> str:
        api.until(lambda: len(api.of("delta")) >= 3, "signs of life")
        return "done"

    with Serving(api, do):
        api.give(lease_s=0.4)
        assert api.ended()["output"] == "done"
    assert {} in api.of("delta")


def test_results_of_every_sort(api: WorkerApi, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")

    def do(task: Task) -> Any:
        if task["prompt"] == "nothing":
            return None
        if task["prompt"] == "a picture":
            task.step(1, 2, loss=0.5)
            assert task.input("f0") == b"the content"
            api.until(lambda: any("step" in body for body in api.of("delta")), "the step")
            return {"output": "look", "files": ["f0", tmp_path / "a.png"], "finish_reason": "length"}
        if task["prompt"] == "a number":
            return 7
        raise TaskFailed("no_idea", "ask again") if task["prompt"] == "ours" else ZeroDivisionError("oh")

    with Serving(api, do):
        api.give(prompt="nothing")
        assert api.ended(times=1) == {"output": "", "files": []}
        api.give(prompt="a picture")
        assert api.ended(times=2) == {"output": "look", "files": ["f0", "f1"], "finish_reason": "length"}
        api.give(prompt="a number")
        assert "TypeError" in api.ended("fail", 1)["message"]
        api.give(prompt="ours")
        assert api.ended("fail", 2) == {"code": "no_idea", "message": "ask again"}
        api.give(prompt="theirs")
        assert api.ended("fail", 3) == {"message": "ZeroDivisionError: oh"}
    assert {"step": 1, "steps": 2, "detail": {"loss": 0.5}}.items() <= {
        k: v for body in api.of("delta") for k, v in body.items()
    }.items()
    (upload,) = api.of("files")
    assert b'filename="a.png"' in upload
    assert b"\r\n\r\npicture\r\n" in upload


def test_as_many_at_once_as_it_has_slots_and_it_says_what_it_holds(api: WorkerApi) -> None:
    go = threading.Event()

    def do(task: Task) -> str:
        go.wait(PATIENCE_S)
        return str(task["task_id"])

    with Serving(api, do, slots=2):
        names = ["s1.1.1.w1.http-1", "s2.1.1.w1.http-1", "s3.1.1.w1.http-1"]
        for name in names:
            api.give(name)
        api.until(lambda: len({s.task for s in api.heard}) == 2, "two tasks at once")
        assert [poll["holds"] for poll in api.polls if poll["holds"]] == [names[0]], "no third poll"
        go.set()
        api.ended(times=3)
    assert {body["output"] for body in api.of("complete")} == set(names)


# -- what goes wrong


def test_it_asks_again_until_the_api_is_back(api: WorkerApi) -> None:
    api.on("poll", (503, b"busy"), (0, b""), (200, b"<html>"), (204, b""))
    with Serving(api, lambda task: "done"):
        api.give()
        assert api.ended()["output"] == "done"


def test_words_that_were_not_taken_are_said_again_together(api: WorkerApi) -> None:
    api.on("delta", (503, b""), (0, b""))
    api.on("complete", (503, b""), (0, b""))

    def do(task: Task) -> Iterator[str]:
        yield "one "
        yield "two "
        api.until(lambda: api.text() == "one two ", "both words")
        yield "three"

    with Serving(api, do):
        api.give()
        api.ended(times=3)
    assert {body["output"] for body in api.of("complete")} == {"one two three"}


def test_a_task_that_is_anothers_is_dropped_without_a_word(api: WorkerApi) -> None:
    api.on("delta", refusal(409, "stale_attempt"))
    stopped = threading.Event()

    def do(task: Task) -> Iterator[str]:
        try:
            while True:
                yield "word "
                threading.Event().wait(0.01)
        finally:
            stopped.set()

    with Serving(api, do):
        api.give()
        assert stopped.wait(PATIENCE_S)
        polls = len(api.polls)
        api.until(lambda: len(api.polls) > polls, "the next poll")
    assert api.of("complete") == api.of("fail") == []


def test_who_is_asked_to_stop_stops_and_ends_with_what_there_is(api: WorkerApi) -> None:
    api.on("delta", *[(202, {"cancel": False})] * 2, (202, {"cancel": True}))

    def do(task: Task) -> Iterator[str]:
        while True:
            yield "word "
            threading.Event().wait(0.01)

    with Serving(api, do):
        api.give()
        assert api.ended()["output"].startswith("word word ")


def test_an_output_that_is_refused_fails_the_task_with_that_code(
    api: WorkerApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.on("complete", refusal(413, "output_too_large"))
    with Serving(api, lambda task: "x"):
        api.give()
        assert api.ended("fail")["code"] == "output_too_large"
    monkeypatch.setattr(httpworker, "MOST_CHARS", 100)
    with Serving(api, lambda task: ("flood " for _ in iter(int, 1))):
        api.give()
        assert api.ended("fail", 2)["code"] == "output_too_large"


@pytest.mark.parametrize(
    "answer", [refusal(403, "not_a_worker"), refusal(409, "worker_name_taken"), (404, b"?")]
)
def test_who_will_never_get_a_task_says_why_and_ends(api: WorkerApi, answer: tuple[int, Any]) -> None:
    api.on("poll", answer)
    env = {**os.environ, "HELIX_GET_JOB_URL": api.job_url, "HELIX_API_KEY": "a-secret-key"}
    ended = subprocess.run(
        [sys.executable, str(CLIENT), "--", "cat"],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 2
    assert "helix-worker: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "a-secret-key" not in ended.stderr


def test_a_key_is_not_carried_along_a_redirect(api: WorkerApi) -> None:
    with worker_api() as other:
        api.on("poll", (302, other.job_url.encode()))
        with pytest.raises(httpworker.Refused, match="302"):
            Api(api.job_url, "w1", "a-secret-key").poll([])
        assert other.polls == []


@pytest.mark.parametrize("url", ["", "http://h/", "ftp://h/api/v1/worker/task", "/api/v1/worker/task"])
def test_a_wrong_address_is_refused_by_name(url: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(CLIENT), "--", "cat"],
        env={**os.environ, "HELIX_GET_JOB_URL": url},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 2
    assert "HELIX_GET_JOB_URL" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_told_to_stop_it_ends_its_task_and_leaves(api: WorkerApi) -> None:
    go = threading.Event()

    def do(task: Task) -> str:
        go.wait(PATIENCE_S)
        return "ended in time"

    with Serving(api, do) as serving:
        api.give()
        api.until(lambda: bool(api.heard), "the task")
        serving.worker.stop()
        go.set()
    assert [said.verb for said in api.heard if said.verb != "delta"] == ["complete", "leave"]


def test_told_to_stop_it_leaves_a_task_that_does_not_end_to_another(api: WorkerApi) -> None:
    with Serving(api, lambda task: threading.Event().wait(PATIENCE_S)) as serving:
        serving.worker._drain_s = 0.2
        api.give()
        api.until(lambda: bool(api.heard), "the task")
    assert [said.verb for said in api.heard if said.verb != "delta"] == ["leave"]


# -- commands


def run(api: WorkerApi, script: str, verb: str = "complete", **more: Any) -> Any:
    with Serving(api, command(["sh", "-c", script], **more)):
        api.give(params={"seed": 3})
        return api.ended(verb)


def test_a_command_gets_prompt_session_and_params_and_gives_words_and_files(api: WorkerApi) -> None:
    script = 'cat; printf " %s %s é" "$HELIX_SESSION" "$HELIX_PARAMS"; echo x > "$HELIX_OUTPUT_DIR/b.txt"'
    body = run(api, script)
    assert body == {"output": '[INST]say it[/INST] s1 {"seed": 3} é', "files": ["f1"]}


def test_a_command_does_not_see_the_key(api: WorkerApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIX_API_KEY", "a-secret-key")
    assert run(api, "env")["output"].count("a-secret-key") == 0


def test_a_command_that_fails_says_its_code_and_its_last_words(api: WorkerApi) -> None:
    body = run(api, "echo half; echo 'no such model' >&2; exit 3", "fail")
    assert body["code"] == "command_failed"
    assert "code 3: no such model" in body["message"]


def test_a_command_that_is_not_there_fails(api: WorkerApi) -> None:
    with Serving(api, command(["/no/such/program"])):
        api.give()
        assert api.ended("fail")["code"] == "command_failed"


def test_a_command_that_hangs_is_stopped_with_all_that_it_started(api: WorkerApi, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    body = run(api, f"sleep 600 & echo $! > {pid}; wait", "fail", timeout_s=0.5)
    assert body["code"] == "command_timeout"
    assert gone(int(pid.read_text()))


def test_a_command_that_floods_is_stopped(api: WorkerApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpworker, "MOST_CHARS", 200_000)
    assert run(api, "yes", "fail")["code"] == "output_too_large"


def test_what_a_command_leaves_behind_does_not_hold_its_task(api: WorkerApi, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    assert run(api, f"echo done; sleep 600 & echo $! > {pid}")["output"] == "done\n"
    assert gone(int(pid.read_text()))


def test_a_command_ends_when_its_task_is_cancelled(api: WorkerApi, tmp_path: Path) -> None:
    api.on("delta", (202, {"cancel": False}), (202, {"cancel": True}))
    pid = tmp_path / "pid"
    assert run(api, f"echo said; sleep 600 & echo $! > {pid}; wait")["output"] == "said\n"
    assert gone(int(pid.read_text()))


def gone(pid: int) -> bool:
    """Whether a process has ended, or is only waited for by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
