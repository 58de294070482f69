#!/usr/bin/env python3
"""A Helix worker in one file, with nothing but the standard library of Python 3.8: copy it into a container.

    from helix_worker import serve

    def do_inference(task):          # a string, pieces of one as they come, or {"output", "files", "usage"}
        for piece in model(task["prompt"], **task["params"]):
            yield piece

    serve(do_inference)

Or, for any program that reads a prompt on stdin and writes on stdout:   python helix_worker.py -- COMMAND ...

HELIX_GET_JOB_URL   http://HOST:8080/api/v1/worker/task?mode=Create&type=Text&model_name=MODEL[&slots=N][&lease_s=S]
HELIX_WORKER        this worker's name, of its own (default: the host's name)
HELIX_API_KEY       a key of [auth.workers], where the API asks for one
"""
# ruff: noqa: UP006, UP035  # dict[str, Any] cannot be a base class in Python 3.8

from __future__ import annotations

import codecs
import http.client
import json
import mimetypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, Generator, Iterator
from urllib.error import HTTPError
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

WAIT_S = 30.0  # of one long poll
ANSWER_S = 20.0  # a write waits for the disk, and for a leader election: 5 to 9 s
FLUSH_S = 0.04  # pieces that come faster go together
ALIVE_S = 1.0
MOST_PAUSE_S = 5.0
MOST_CHARS = 786_432  # of one output; the API takes no more
TAIL_BYTES = 2000
KILL_S = 5.0
GRACE_S = 2.0
LEAVE_S = 1.0
LOST = ("stale_attempt", "task_not_found")


class Away(Exception):
    """The API does not answer now."""


class Refused(Exception):
    """The API says no; `code` is stable."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({code})")
        self.status, self.code, self.detail = status, code, detail


class TaskFailed(Exception):
    """Raise it in do_inference to end a task with an error code of your own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Stopped(Exception):
    """SIGTERM."""


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Api:
    """The worker's routes. Every method raises Away or Refused."""

    def __init__(self, url: str, name: str | None = None, key: str | None = None) -> None:
        parts = urlsplit(url)
        root, found, _ = parts.path.partition("/worker/task")
        if parts.scheme not in ("http", "https") or not parts.netloc or not found:
            raise ValueError(
                f"HELIX_GET_JOB_URL {url!r}: must be http://HOST[:PORT]/api/v1/worker/task?model_name=..."
            )
        self._root = urlunsplit((parts.scheme, parts.netloc, root, "", ""))
        self.query = dict(parse_qsl(parts.query))
        self.name = self.query.setdefault("worker", name or host_name())
        self.slots = int(self.query.get("slots", "1"))
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A redirect would carry the key elsewhere, and a proxy cannot reach our own loopback.
        direct = [ProxyHandler({})] if parts.hostname in ("127.0.0.1", "::1", "localhost") else []
        self._open = build_opener(_NoRedirect, *direct).open

    def poll(self, holds: list[str]) -> dict[str, Any] | None:
        """Return a task, or None."""
        query = {"wait_s": f"{WAIT_S:g}", **self.query, "holds": ",".join(holds)}
        wait_s = float(query["wait_s"])
        answer = self._call("GET", f"/worker/task?{urlencode(query)}", timeout_s=wait_s + ANSWER_S)
        return _object(answer) if answer else None

    def report(self, task: Task, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Say something about a task: delta, complete, fail."""
        headers = {"Content-Type": "application/json"}
        if task.get("traceparent"):
            headers["traceparent"] = task["traceparent"]
        path = f"/worker/task/{quote(task['task_id'])}/{verb}"
        return _object(self._call("POST", path, json.dumps(body).encode(), headers))

    def upload(self, task: Task, name: str, data: bytes, purpose: str | None) -> str:
        """Return the id of the file that is stored."""
        mark = uuid.uuid4().hex
        field = (
            f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
            if purpose
            else ""
        )
        media = mimetypes.guess_type(name)[0] or "application/octet-stream"
        safe = name.replace('"', "_")
        head = f'{field}--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{safe}"\r\n'
        body = f"{head}Content-Type: {media}\r\n\r\n".encode() + data + f"\r\n--{mark}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        path = f"/worker/task/{quote(task['task_id'])}/files"
        return str(_object(self._call("POST", path, body, headers, 10 * ANSWER_S))["file_id"])

    def download(self, task: Task, file: str) -> bytes:
        """Return a file that the task works on."""
        return self._call(
            "GET", f"/worker/task/{quote(task['task_id'])}/input/{quote(file)}", None, None, 10 * ANSWER_S
        )

    def leave(self) -> None:
        """Leave the floor: what was in hand goes to another worker at once."""
        self._call("DELETE", f"/worker/{quote(self.name)}")

    def _call(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = ANSWER_S,
    ) -> bytes:
        request = Request(self._root + path, data, {**self._headers, **(headers or {})}, method=method)  # noqa: S310
        try:
            with self._open(request, timeout=timeout_s) as answer:
                return bytes(answer.read())
        except HTTPError as error:
            with error:
                raise _refusal(error) from None
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, cut off
            raise Away(f"{type(error).__name__}: {error}") from error


def _object(answer: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(answer))
    except (ValueError, TypeError) as error:
        raise Away("what answers is not Helix") from error


def _refusal(error: HTTPError) -> Exception:
    if error.code in (408, 425, 429) or error.code >= 500:
        return Away(f"HTTP {error.code}")
    try:
        said = json.loads(error.read())
        return Refused(error.code, str(said["code"]), str(said["detail"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Refused(error.code, f"http_{error.code}", str(error.reason))


def host_name() -> str:
    """Return this host's name as a worker's name."""
    return re.sub(r"[^a-z0-9_-]+", "-", socket.gethostname().lower()).strip("-")[:64] or "worker"


def pause_s(tries: int) -> float:
    """Return how long to wait before the next try, not at the same time as everybody else."""
    return min(MOST_PAUSE_S, 0.2 * 2.0 ** min(tries, 10)) * (0.5 + random.random() / 2)


class Task(Dict[str, Any]):
    """What the API gave, as a dict; a thread of its own keeps it alive and sends what is said."""

    def __init__(self, api: Api, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._api = api
        self._said: list[str] = []
        self._held, self._sent, self._chars = "", 0, 0
        self._step: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._over = False
        self._stop = threading.Event()
        self._stoppers: list[Callable[[], None]] = []
        self.lost = False
        self.problem: Refused | None = None
        self._thread = threading.Thread(target=self._report, daemon=True)

    @property
    def cancelled(self) -> bool:
        """Whether to stop: somebody asked, or the task is another's by now."""
        return self._stop.is_set()

    def on_cancel(self, call: Callable[[], None]) -> None:
        """Have `call` called, in another thread, when the task is to stop."""
        with self._changed:
            self._stoppers.append(call)
        if self.cancelled:
            call()

    def say(self, text: str) -> None:
        """Send the next piece of the answer, now or with what follows it closely."""
        text = text.encode("utf-8", "replace").decode()  # half a pair of surrogates is no text
        if not text:
            return
        with self._changed:
            self._said.append(text)
            self._held += text
            self._chars += len(text)
            self._changed.notify_all()
        if self._chars > MOST_CHARS:
            raise TaskFailed("output_too_large", f"the output has more than {MOST_CHARS} characters")

    def step(self, step: int, steps: int, **detail: Any) -> None:
        """Say how far a long task is."""
        with self._changed:
            self._step = {"step": step, "steps": steps, "detail": detail}
            self._changed.notify_all()

    def upload(self, name: str, data: bytes, purpose: str | None = None) -> str:
        """Store a file that was made and return its id, to be given as one of `files`."""
        return str(self._patiently(lambda: self._api.upload(self, name, data, purpose)))

    def input(self, file: str) -> bytes:
        """Return the content of a file that the task names: dataset, input_file, adapter_files, checkpoint."""
        return bytes(self._patiently(lambda: self._api.download(self, file)))

    def perform(self, do_inference: Callable[[Task], Any]) -> None:
        """Do the task and report its end."""
        self._thread.start()
        verb, body = "complete", {}
        try:
            body = self._result(do_inference(self))
        except TaskFailed as error:
            verb, body = "fail", {"code": error.code, "message": str(error)[:4000] or error.code}
        except Refused as error:
            self._refused(error)
        except Exception as error:  # whatever it is, the task must end, or its session waits for the lease
            verb, body = "fail", {"message": f"{type(error).__name__}: {error}"[:4000]}
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join()
        if self.problem is not None:
            verb, body = "fail", {"code": self.problem.code[:64], "message": self.problem.detail[:4000]}
        self._end(verb, body)

    def _end(self, verb: str, body: dict[str, Any]) -> None:
        try:
            if not self.lost:
                self._patiently(lambda: self._api.report(self, verb, body))
        except Refused as error:
            if error.code not in LOST and verb == "complete":
                return self._end("fail", {"code": error.code[:64], "message": error.detail[:4000]})
            _log(f"task {self['task_id']} was not taken: {error}")
        except Away as error:
            _log(f"task {self['task_id']} could not be reported: {error}")
        return None

    def _result(self, made: Any) -> dict[str, Any]:
        if hasattr(made, "__next__"):
            made = self._spoken(made)
        if not isinstance(made, (str, dict, type(None))):
            raise TypeError(f"do_inference gave {type(made).__name__}, not a string, a dict or a generator")
        body = dict(made) if isinstance(made, dict) else {} if made is None else {"output": made}
        body.setdefault("output", "".join(self._said))
        body["files"] = [self._stored(file) for file in body.get("files", ())]
        return body

    def _spoken(self, pieces: Iterator[str]) -> Any:
        """Say every piece; return what the generator returns."""
        try:
            while not self.cancelled:
                try:
                    self.say(next(pieces))
                except StopIteration as stop:
                    return stop.value
        finally:
            getattr(pieces, "close", lambda: None)()
        return None

    def _stored(self, file: Any) -> str:
        """A path is uploaded, a string is the id of what was."""
        return self.upload(file.name, file.read_bytes()) if isinstance(file, Path) else str(file)

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """Return what `call` gives, trying for as long as the task may still be ours."""
        until_s = time.monotonic() + max(60.0, 2 * float(self.get("lease_s", 30)))
        tries = 0
        while True:
            try:
                return call()
            except Away:
                if time.monotonic() > until_s:
                    raise
            time.sleep(pause_s(tries))
            tries += 1

    # -- the thread that keeps it alive

    def _report(self) -> None:
        alive_s = min(ALIVE_S, float(self.get("lease_s", 30)) / 4)
        tries = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._over or self._held or self._step, alive_s if not tries else 0
                )
                if self._over:  # the end says everything
                    return
                text, step, self._step = self._held, self._step, {}
                body = {**({"text": text, "offset": self._sent} if text else {}), **step}
            try:
                answer = self._api.report(self, "delta", body)
            except Away:
                tries += 1
                with self._changed:
                    self._step = self._step or step
                    self._changed.wait_for(lambda: self._over, pause_s(tries))
                continue
            except Refused as error:
                self._refused(error)
                self._cancel()
                return
            tries = 0
            if answer.get("cancel"):
                self._cancel()
            with self._changed:
                self._held, self._sent = self._held[len(text) :], self._sent + len(text)
                self._changed.wait_for(lambda: self._over, FLUSH_S)

    def _refused(self, error: Refused) -> None:
        if error.code in LOST:
            self.lost = True
        elif self.problem is None:
            self.problem = error

    def _cancel(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            for call in self._stoppers:
                _thread(call)  # it may take its time, and we are what keeps the task alive


class Worker:
    """Asks for tasks and does them, `slots` at a time, until it is stopped."""

    def __init__(self, api: Api, *, drain_s: float = 10.0) -> None:
        self._api = api
        self._drain_s = drain_s
        self._tasks: dict[str, threading.Thread] = {}
        self._freed = threading.Condition()
        self._stopping = threading.Event()
        self._refused: Refused | None = None

    def stop(self) -> None:
        """Take no more tasks, let those in hand end in time, leave."""
        self._stopping.set()

    def run(self, do_inference: Callable[[Task], Any]) -> None:
        """Serve until stopped. Raises Refused if the API will never give this worker a task."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _stopped)
        asking = _thread(lambda: self._ask(do_inference))
        try:
            self._stopping.wait()
        except (Stopped, KeyboardInterrupt):
            self._stopping.set()
        if self._refused is not None:
            raise self._refused
        with self._freed:
            self._freed.notify_all()
        until_s = time.monotonic() + self._drain_s
        for thread in list(self._tasks.values()):
            thread.join(max(0.0, until_s - time.monotonic()))
        try:
            self._api.leave()
            asking.join(LEAVE_S)  # leaving ends its poll,
            if asking.is_alive():  # unless that was on its way, and brought us back
                self._api.leave()
        except (Away, Refused) as error:
            _log(f"left without saying so: {error}")

    def _ask(self, do_inference: Callable[[Task], Any]) -> None:
        tries = 0
        try:
            while not self._stopping.is_set():
                with self._freed:
                    self._freed.wait_for(
                        lambda: len(self._tasks) < self._api.slots or self._stopping.is_set()
                    )
                    holds = list(self._tasks)
                if self._stopping.is_set():
                    return
                try:
                    fields = self._api.poll(holds)
                except Away as error:
                    if not tries:
                        _log(f"no answer, trying again: {error}")
                    self._stopping.wait(pause_s(tries))
                    tries += 1
                    continue
                tries = 0
                if fields is not None and not self._stopping.is_set():
                    self._start(Task(self._api, fields), do_inference)
        except Refused as error:
            self._refused = error
        finally:
            self._stopping.set()

    def _start(self, task: Task, do_inference: Callable[[Task], Any]) -> None:
        def work() -> None:
            try:
                task.perform(do_inference)
            finally:
                with self._freed:
                    self._tasks.pop(task["task_id"], None)
                    self._freed.notify_all()

        thread = threading.Thread(target=work, daemon=True)
        with self._freed:
            self._tasks[task["task_id"]] = thread
        thread.start()


def command(words: list[str], *, timeout_s: float | None = None) -> Callable[[Task], Any]:
    """Return a do_inference that runs a program for each task: prompt on stdin, stdout is the answer.

    It finds HELIX_SESSION, HELIX_PARAMS (JSON), and HELIX_OUTPUT_DIR: files that it puts there are results too.
    """

    def do_inference(task: Task) -> Generator[str, None, dict[str, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            told = {"HELIX_SESSION": task["session_id"], "HELIX_PARAMS": json.dumps(task["params"])}
            own = {name: value for name, value in os.environ.items() if name != "HELIX_API_KEY"}
            try:
                process = subprocess.Popen(  # the words are the operator's: the prompt is not among them
                    words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**own, **told, "HELIX_OUTPUT_DIR": folder},
                    start_new_session=True,
                )
            except OSError as error:
                raise TaskFailed("command_failed", f"{words[0]}: {error.strerror}") from error
            with process:
                yield from _Running(process, words[0]).talk(task, timeout_s)
            made = sorted(path for path in Path(folder).iterdir() if path.is_file())
            return {"files": [task.upload(path.name, path.read_bytes()) for path in made]}

    return do_inference


class _Running:
    """A program with the ends of its pipes."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._process = process
        self._name = name
        self._tail = b""
        self._closed = threading.Event()
        self._late = False

    def talk(self, task: Task, timeout_s: float | None) -> Iterator[str]:
        """Yield what it says to the task's prompt. Raises TaskFailed if it fails or takes too long."""
        errors = _thread(self._read_errors)
        _thread(lambda: self._write(task["template_prompt"].encode()))
        _thread(self._wait)
        overdue = threading.Timer(timeout_s or 0, self._overdue)
        overdue.daemon = True
        if timeout_s is not None:
            overdue.start()
        task.on_cancel(self.stop)
        try:
            yield from self._read()
            code = self._process.wait()
            errors.join(GRACE_S)
        finally:
            self._closed.set()
            overdue.cancel()
            self.stop()
        if self._late:
            raise TaskFailed("command_timeout", f"{self._name} took more than {timeout_s:g} s")
        if code and not task.cancelled:
            said = self._tail.decode("utf-8", "replace").strip()
            raise TaskFailed("command_failed", f"{self._name} ended with code {code}: {said}")

    def _read(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        out = self._process.stdout
        while out is not None:
            piece = os.read(out.fileno(), 65536)
            yield decoder.decode(piece, final=not piece)
            if not piece:
                return

    def _write(self, data: bytes) -> None:
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(data)
                self._process.stdin.close()
        except (OSError, ValueError):  # it has read enough, or has ended
            return

    def _read_errors(self) -> None:
        err = self._process.stderr
        piece = b"-"
        while err is not None and piece:
            try:
                piece = os.read(err.fileno(), 65536)
            except (OSError, ValueError):  # closed: it has ended
                return
            self._tail = (self._tail + piece)[-TAIL_BYTES:]

    def _wait(self) -> None:
        """What it has started and left behind must not hold its pipes open for ever."""
        self._process.wait()
        if not self._closed.wait(GRACE_S):
            self.stop()

    def _overdue(self) -> None:
        self._late = True
        self.stop()

    def stop(self) -> None:
        """End it and whatever it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(KILL_S)
            except subprocess.TimeoutExpired:
                continue
            except OSError:
                return


def _thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _stopped(number: int, _frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)  # the second one does not wait
    raise Stopped


def _log(text: str) -> None:
    print(f"helix-worker: {text}", file=sys.stderr, flush=True)


def serve(
    do_inference: Callable[[Task], Any],
    *,
    url: str | None = None,
    name: str | None = None,
    key: str | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. What is not given is read from the environment."""
    api = Api(
        url or os.environ.get("HELIX_GET_JOB_URL", ""),
        name or os.environ.get("HELIX_WORKER"),
        key or os.environ.get("HELIX_API_KEY"),
    )
    Worker(api).run(do_inference)


def main(words: list[str]) -> int:
    """Run a command for each task."""
    if len(words) < 2 or words[0] != "--":
        print(__doc__, file=sys.stderr)
        return 2
    try:
        serve(command(words[1:]))
    except (Refused, ValueError) as error:
        _log(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
