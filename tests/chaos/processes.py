"""Processes that are killed and frozen on purpose, and started again; each in a group of its own."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.chaos.told import Ending

PR_SET_PDEATHSIG = 1  # linux/prctl.h
AGAIN_S = 0.5  # after a process has ended by itself
LAST_BYTES = 2000


def _die_with_parent() -> None:
    """Whatever happens to us, nothing of ours stays behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def now_ms() -> int:
    """Return Unix ms, by the clock that the broker on this machine stamps with."""
    return time.time_ns() // 1_000_000


class Process:
    """One process of the shop. It is up, down (killed by us) or frozen."""

    def __init__(self, name: str, command: list[str], folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.command = command
        self.log = folder / f"{name}.log"
        self.endings: list[Ending] = []
        """Its ends that we had no part in."""
        self.lives = 0
        self.frozen = False
        self._env = dict(env)
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._log_start = 0
        self._turn = asyncio.Lock()
        """Held while it is started or killed, so that there are never two of it."""

    @property
    def up(self) -> bool:
        """Whether it runs and is not frozen."""
        return not self.frozen and self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, and again whenever it ends by itself."""
        async with self._turn:
            await self._start()

    async def _start(self) -> None:
        with self.log.open("ab") as out:
            self._log_start = out.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **self._env},
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.lives += 1
        self._watching = asyncio.create_task(self._watch(self._process))

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        said = self.said()[-LAST_BYTES:]
        self.endings.append(Ending(process=self.name, code=code, at_ms=now_ms(), said=said))
        await asyncio.sleep(AGAIN_S)
        await self.start()

    def said(self) -> str:
        """Return what it said in this life."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")
        return ""

    async def kill(self) -> None:
        """Kill it with -9, and its children; it stays down until `start`."""
        async with self._turn:
            if self._watching is not None:
                self._watching.cancel()
            process = self._process
            if process is not None and process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            self.frozen = False

    def freeze(self) -> None:
        """Stop it where it is; it does not notice."""
        self._signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)
        self.frozen = False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
