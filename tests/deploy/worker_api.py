"""The worker's routes with answers that a test wrote down, over a real socket; what came in is kept."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

PATIENCE_S = 20.0
PREFIX = "/api/v1/worker"


class Said:
    """One request of the worker."""

    def __init__(self, verb: str, task: str, body: Any, headers: dict[str, str]) -> None:
        self.verb = verb
        self.task = task
        self.body = body
        self.headers = headers


class WorkerApi:
    """Gives out `tasks`, answers reports with `answers[verb]` (a status and a body) or with `accepted`."""

    def __init__(self) -> None:
        self.tasks: deque[dict[str, Any]] = deque()
        self.answers: dict[str, deque[tuple[int, Any]]] = {}
        self.polls: list[dict[str, str]] = []
        self.heard: list[Said] = []
        self.changed = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"api": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def job_url(self) -> str:
        return f"{self.url}{PREFIX}/task?mode=Create&type=Text&model_name=mistral"

    def give(self, name: str = "s1.1.1.w1.http-1", **fields: Any) -> None:
        """Have the next poll answered with a task."""
        task = {
            "task_id": name,
            "session_id": name.split(".", maxsplit=1)[0],
            "turn": 1,
            "attempt": 1,
            "mode": "create",
            "prompt": "say it",
            "template_prompt": "[INST]say it[/INST]",
            "params": {},
            "lease_s": 1.0,
            "traceparent": None,
            **fields,
        }
        with self.changed:
            self.tasks.append(task)
            self.changed.notify_all()

    def on(self, verb: str, *answers: tuple[int, Any]) -> None:
        self.answers[verb] = deque(answers)

    def of(self, verb: str) -> list[Any]:
        """Return the bodies that came with `verb`."""
        return [said.body for said in self.heard if said.verb == verb]

    def until(self, good: Callable[[], bool], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(good, PATIENCE_S), (
                f"no {what}: {[(s.verb, s.body) for s in self.heard]}"
            )

    def ended(self, verb: str = "complete", times: int = 1) -> Any:
        """Wait for a task's end and return its body."""
        self.until(lambda: len(self.of(verb)) >= times, verb)
        return self.of(verb)[-1]

    def text(self) -> str:
        """Return what was said, each piece at its place."""
        text = ""
        for body in self.of("delta"):
            if "text" in body:
                assert body["offset"] <= len(text), "a gap"
                text = text[: body["offset"]] + body["text"]
        return text


class Handler(BaseHTTPRequestHandler):
    """Serves what its `api` says."""

    api: WorkerApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        api, parts = self.api, urlsplit(self.path)
        if parts.path != f"{PREFIX}/task":
            self._answer(200, b"the content")
            return
        with api.changed:
            api.polls.append(dict(parse_qsl(parts.query, keep_blank_values=True)))
            api.changed.notify_all()
            scripted = api.answers.get("poll")
            if scripted:
                status, body = scripted.popleft()
                self._answer(status, body)
                return
            api.changed.wait_for(lambda: bool(api.tasks), 0.5)
            task = api.tasks.popleft() if api.tasks else None
        self._answer(204 if task is None else 200, b"" if task is None else task)

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        _, _, rest = urlsplit(self.path).path.partition(f"{PREFIX}/task/")
        task, _, verb = rest.partition("/")
        self._hear(verb, task, raw if verb == "files" else json.loads(raw or b"{}"))
        scripted = self.api.answers.get(verb)
        usual: Any = {"file_id": "f1"} if verb == "files" else {"status": "accepted", "cancel": False}
        status, body = scripted.popleft() if scripted else (202, usual)
        self._answer(status, body)

    def do_DELETE(self) -> None:
        self._hear("leave", self.path.rpartition("/")[2], None)
        self._answer(204, b"")

    def _hear(self, verb: str, task: str, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.api.changed:
            self.api.heard.append(Said(verb, task, body, headers))
            self.api.changed.notify_all()

    def _answer(self, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.close_connection = True
        if status == 0:  # the connection breaks
            return
        self.send_response(status)
        if status in (301, 302, 307):
            self.send_header("Location", data.decode())
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def refusal(status: int, code: str) -> tuple[int, Any]:
    return status, {"code": code, "detail": f"no: {code}", "status": status}


@contextmanager
def worker_api() -> Iterator[WorkerApi]:
    """Serve on a free port."""
    made = WorkerApi()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join(10)
        made.server.server_close()
