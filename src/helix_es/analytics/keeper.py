"""Starts the process that queries run in, asks it, and ends it when it does not answer in time."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from helix_es.analytics.child import ANSWERED, ASKED, FAILED, HEAD, OVERDUE
from helix_es.analytics.questions import Failure, Limits, Question, Unanswered

START_S = 10.0  # an interpreter and DuckDB from a cold disk; 0.3 s here
ENDING_S = 0.2  # from the end of its pipe to its own
GRACE_S = 2.0  # the child's own, and the way of a large answer
PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")


class Keeper:
    """One such process, started when it is needed. Not for two threads at once."""

    def __init__(self, target: Path, limits: Limits) -> None:
        self._target = target.absolute()
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Question) -> bytes:
        """Return the answer as JSON; blocks for as long as the question may take. Raises Unanswered."""
        used = self._process is not None and self._process.poll() is None
        kind, body = self._exchange(question)
        code = None if kind else self._ended()
        if code == 0 and used:  # it went for want of questions as this one came
            kind, body = self._exchange(question)
            code = None if kind else self._ended()
        if kind == ANSWERED:
            return body
        if kind == FAILED:
            failure = msgspec.json.decode(body, type=Failure)
            raise Unanswered(failure.code, failure.message)
        raise _broken(question, code)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._ended()

    def _start(self) -> subprocess.Popen[bytes]:
        self.close()
        command = [sys.executable, "-m", "helix_es.analytics.child", str(self._target)]
        self._process = subprocess.Popen(
            [*command, msgspec.json.encode(self._limits).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Neither addresses nor keys are in reach of a query.
            env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            start_new_session=True,  # Ctrl-C is for its parent, which ends it
            bufsize=0,
        )
        return self._process

    def _exchange(self, question: Question) -> tuple[bytes, bytes]:
        """Return the kind of answer and its bytes; no kind: the process has ended, or does not answer."""
        until = time.monotonic() + question.timeout_s + GRACE_S
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
            until += START_S
        if process.stdin is None or process.stdout is None:
            return b"", b""
        body = msgspec.json.encode(question)
        self._write(process.stdin.fileno(), HEAD.pack(ASKED, len(body)) + body, until)
        head = self._read(process.stdout.fileno(), HEAD.size, until)
        if len(head) < HEAD.size:
            return b"", b""
        kind, length = HEAD.unpack(head)
        body = self._read(process.stdout.fileno(), length, until)
        return (kind, body) if len(body) == length else (b"", b"")

    @staticmethod
    def _write(pipe: int, data: bytes, until: float) -> None:
        """Write `data`, or what of it is taken by `until`; whether it came is seen by the answer."""
        os.set_blocking(pipe, False)
        with suppress(BrokenPipeError):
            while data and select.select([], [pipe], [], max(0.0, until - time.monotonic()))[1]:
                data = data[os.write(pipe, data) :]

    @staticmethod
    def _read(pipe: int, size: int, until: float) -> bytes:
        """Return `size` bytes, or fewer if they do not come by `until` or the pipe ends."""
        pieces: list[bytes] = []
        while size > 0 and (left := until - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                break
            piece = os.read(pipe, min(size, 1 << 20))
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _ended(self) -> int | None:
        """Return the exit code of the process, None if it had to be killed or there is none; forget it."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            code: int | None = process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        return code


def _broken(question: Question, code: int | None) -> Unanswered:
    if code is None or code == OVERDUE:
        said = f"the query did not end within {question.timeout_s:g} s; select less of it"
        return Unanswered("sql_timeout", said)
    said = (
        "the query ended the process that ran it, most likely for want of memory; select less, or aggregate"
    )
    return Unanswered("sql_too_large", said)
