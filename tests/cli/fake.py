"""An API that gives the answers a test wrote down, over a real socket; and a terminal to run commands in."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATIENCE_S = 30.0
SID = "s1"


class Answered:
    """A status and a JSON body."""

    def __init__(self, body: Any, status: int = 200, media: str = "application/json") -> None:
        self.data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status = status
        self.media = media


class Streamed:
    """Server-sent events; with `cut`, the connection breaks after them. `wait` holds the rest back."""

    def __init__(self, *events: bytes, cut: bool = False, wait: threading.Event | None = None) -> None:
        self.events = events
        self.cut = cut
        self.wait = wait


Answer = Answered | Streamed | None
"""None: the connection is closed without an answer."""


class FakeApi:
    """Answers `METHOD /path` with what was written down for it, one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.hooks: dict[str, Callable[[], None]] = {}
        self.seen: dict[str, list[tuple[dict[str, str], Any]]] = defaultdict(list)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"api": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def on(self, request: str, *answers: Answer) -> None:
        self.answers[request] = list(answers)

    def take(self, request: str, headers: dict[str, str], body: Any) -> Answer:
        self.seen[request].append((headers, body))
        if request in self.hooks:
            self.hooks[request]()
        answers = self.answers.get(request)
        if not answers:
            return problem(404, "not_found", f"nothing at {request}")
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Handler(BaseHTTPRequestHandler):
    """Serves what its `api` says."""

    api: FakeApi
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        length = int(self.headers.get("content-length", 0))
        raw = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        uploaded = headers.get("content-type", "").startswith("multipart/")
        body = raw if uploaded else json.loads(raw) if raw else None
        answer = self.api.take(f"{self.command} {self.path}", headers, body)
        self.close_connection = True
        if isinstance(answer, Answered):
            self._plain(answer)
        elif isinstance(answer, Streamed):
            with suppress(BrokenPipeError, ConnectionResetError):  # who has heard the end hangs up
                self._stream(answer)

    do_GET = do_POST = _any

    def _plain(self, answer: Answered) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.media)
        self.send_header("Content-Length", str(len(answer.data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.data)

    def _stream(self, answer: Streamed) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        for index, event in enumerate(answer.events):
            if answer.wait is not None and index == len(answer.events) - 1:
                answer.wait.wait(PATIENCE_S)
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            self.wfile.flush()
        if not answer.cut:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def problem(status: int, code: str, detail: str) -> Answered:
    body = {
        "type": f"urn:helix:problem:{code}",
        "title": "",
        "status": status,
        "detail": detail,
        "code": code,
    }
    return Answered(body, status, "application/problem+json")


def turn(state: str = "queued", output: str = "", *, attempt: int = 1, **others: Any) -> dict[str, Any]:
    return {
        "turn": 1,
        "state": state,
        "prompt": "hi",
        "output": output,
        "files": [],
        "error": None,
        "attempt": attempt,
        "gpu": "n-0",
        "usage": {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 2},
        **others,
    }


def session(*turns: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "session_id": SID,
        "mode": "create",
        "type": "text",
        "model": "smollm2",
        "state": "queued",
        "gpu": None,
        "owner": "local",
        "created_at": "2026-11-22T18:00:00.000Z",
        "queue": None,
        "turns": list(turns),
        **others,
    }


def sse(name: str, data: Any, event_id: str = "") -> bytes:
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def fact(name: str, told: dict[str, Any], event_id: str = "") -> bytes:
    return sse(
        name, {"session_id": SID, "state": "active", "gpu": None, "queue": None, "turn": told}, event_id
    )


def delta(text: str, offset: int, *, attempt: int = 1, event_id: str = "") -> bytes:
    return sse("delta", {"turn": 1, "attempt": attempt, "offset": offset, "text": text}, event_id)


def helix(*words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "helix_es.cli.__main__", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
    )


class Terminal:
    """A command in a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self._bytes = b""

    @property
    def shown(self) -> str:
        return self._bytes.decode("utf-8", "replace")

    def write(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str, after: int = 0) -> int:
        """Read until `text` is shown after so many characters; return how many there are to its end."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.shown[after:]:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} was never shown, but {self.shown!r}"
            if select.select([self._master], [], [], left)[0]:
                try:
                    self._bytes += os.read(self._master, 65536)
                except OSError:  # how Linux says that the other side is closed
                    assert text in self.shown[after:], f"{text!r} was never shown, but {self.shown!r}"
        return self.shown.index(text, after) + len(text)

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)


@contextmanager
def terminal(*words: str) -> Iterator[Terminal]:
    """Run the command line in a terminal of 100 columns."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "helix_es.cli.__main__", *words]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=_own_terminal
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches the command
