"""One running program: its pipes, the last of its stderr, its end and that of everything it started."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import structlog

from helix_runners.command import group
from helix_runners.command.failures import CommandError
from helix_runners.command.pipes import Inlet, Outlet

log = structlog.get_logger(__name__)

LINGER_S = (
    1.0  # after its exit: a shell does not wait for what it substituted, and that may still have words to say
)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)  # loaded before any fork, where loading could wait for a lock for ever


def _end_with_parent() -> None:
    """Have the kernel end the program if the runner is killed, also before the guard knows of it."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Tail:
    """The last bytes of a stream."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._data = b""

    def add(self, data: bytes) -> None:
        self._data = (self._data + data)[-self._most :] if self._most else b""

    def clear(self) -> None:
        self._data = b""

    def text(self) -> str:
        """Return it as text; a character cut at the front is left out."""
        return self._data.decode("utf-8", "replace").lstrip("\ufffd").strip()


class Guard:
    """Ends programs, and removes their folder, when this process is gone by whatever means."""

    def __init__(self, folder: Path, grace_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", group.__file__, str(grace_s), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # what ends the runner must not end this
        )
        if self._process.stdin is None:
            raise CommandError("the guard was started without a pipe")
        self._pipe = self._process.stdin
        os.set_blocking(self._pipe.fileno(), False)

    def watch(self, pid: int) -> None:
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        try:
            os.write(self._pipe.fileno(), line.encode())
        except OSError as error:  # somebody ended the guard: what it is for can wait, turns cannot
            log.warning("guard_gone", error=str(error))

    async def close(self) -> None:
        """Let it do its work and wait for it."""
        self._pipe.close()
        await asyncio.to_thread(self._process.wait)


class Program:
    """A started program. Whoever started it calls `end`, whatever happens, and then nothing of it is left."""

    def __init__(
        self, command: list[str], env: dict[str, str], guard: Guard, *, grace_s: float, most_stderr_bytes: int
    ) -> None:
        """Start it. Raises OSError."""
        self._process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self.pid = self._process.pid
        self._guard = guard
        self._grace_s = grace_s
        self._loop = asyncio.get_running_loop()
        self.code: int | None = None
        """How it ended; negative: the signal that killed it."""
        self._exited, self._stop, self._news = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._lingering: asyncio.Timeout | None = None
        guard.watch(self.pid)
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise OSError("a program was started without pipes")
        self.stdin, self.stdout, self._stderr = Inlet(stdin), Outlet(stdout), Outlet(stderr)
        self.errors = Tail(most_stderr_bytes)
        threading.Thread(target=self._await_exit, name=f"exit-{self.pid}", daemon=True).start()
        self._listening = asyncio.create_task(self._listen())
        self.life = asyncio.create_task(self._live())
        """Ends when nothing of the program is left."""

    def _await_exit(self) -> None:
        """In a thread of its own. The dead program is left uncollected: its number stays its own until all is over."""
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        status = 0 if found is None else found.si_status
        by_signal = found is not None and found.si_code != os.CLD_EXITED
        try:
            self._loop.call_soon_threadsafe(self._note_exit, -status if by_signal else status)
        except RuntimeError:  # the loop has ended: there is nobody left to be told
            return

    def _note_exit(self, code: int) -> None:
        self.code = code
        self._exited.set()
        self._news.set()

    async def _listen(self) -> None:
        while data := await self._stderr.read():
            self.errors.add(data)

    async def _live(self) -> None:
        """Wait until the program ends or is to be ended, then see to it that nothing of it is left."""
        await self._news.wait()
        if not self._stop.is_set():
            await self._linger()
        await self._quell()
        await self._collect()
        self._guard.forget(self.pid)
        self.stdout.cut()
        self._stderr.cut()
        await self._listening
        await self._stop.wait()  # what it wrote last may still be on its way to a slow reader
        self.stdin.close()
        self.stdout.close()

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S) as self._lingering:
                await self.stdout.ended.wait()
                await self._stderr.ended.wait()
        except TimeoutError:
            return
        finally:
            self._lingering = None

    async def _quell(self) -> None:
        """End what lives of the program's session: SIGTERM, grace, SIGKILL."""
        for number, seconds in ((signal.SIGTERM, self._grace_s), (signal.SIGKILL, group.KILL_S)):
            deadline = self._loop.time() + seconds
            if not any(True for _ in group.members(self.pid)):
                break
            group.signal_all(self.pid, number)
            while any(True for _ in group.members(self.pid)) and self._loop.time() < deadline:
                if self._stop.is_set():
                    self.stdout.skim()
                await asyncio.sleep(group.POLL_S)  # they need not be our children: nobody tells us
                if number == signal.SIGKILL:
                    group.signal_all(self.pid, number)  # what was forked meanwhile

    async def _collect(self) -> None:
        """Take the dead program's entry from the kernel: from here its number may be another's."""
        try:
            async with asyncio.timeout(group.KILL_S):
                await self._exited.wait()
        except TimeoutError:
            log.error("program_does_not_die", pid=self.pid)
            return
        self._process.poll()

    async def exit_code(self) -> int:
        """Wait for the program's own end; negative: the signal that killed it."""
        await self._exited.wait()
        return self.code or 0

    def stop(self) -> None:
        """Begin to end it; `end` waits for that."""
        self._stop.set()
        self._news.set()
        if self._lingering is not None and not self._lingering.expired():  # nobody listens any more
            self._lingering.reschedule(self._loop.time())

    async def end(self) -> None:
        """End it and everything it started. When this is cancelled, that goes on all the same."""
        self.stop()
        await asyncio.shield(self.life)


class Programs:
    """Starts a runner's programs, and knows those that live."""

    def __init__(self, command: list[str], guard: Guard, *, grace_s: float, most_stderr_bytes: int) -> None:
        self._command = command
        self._guard = guard
        self._grace_s = grace_s
        self._most_stderr_bytes = most_stderr_bytes
        self._live: set[Program] = set()
        self.last_exit_code: int | None = None

    def start(self, env: dict[str, str]) -> Program:
        """Raises CommandError if it cannot be started."""
        try:
            program = Program(
                self._command,
                env,
                self._guard,
                grace_s=self._grace_s,
                most_stderr_bytes=self._most_stderr_bytes,
            )
        except OSError as error:
            raise CommandError(f"{self._command[0]} cannot be started: {error.strerror}") from error
        self._live.add(program)
        program.life.add_done_callback(lambda _: self._gone(program))
        return program

    def _gone(self, program: Program) -> None:
        self._live.discard(program)
        self.last_exit_code = program.code

    @property
    def pids(self) -> list[int]:
        return sorted(program.pid for program in self._live)

    async def close(self) -> None:
        """End all."""
        await asyncio.gather(*(program.end() for program in list(self._live)))
