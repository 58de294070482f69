"""Child processes of `helix up`: started, watched, started again when they die, ended cleanly."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import structlog

log = structlog.get_logger(__name__)

RESTART_S = 0.25  # between a death and the next life, doubled for each death in quick succession
MOST_RESTART_S = 10.0
STEADY_S = 20.0  # a life that long forgives the deaths before
STOP_S = 8.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass
class Child:
    """One process: what it is called and how it is started."""

    name: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    stop_s: float = STOP_S
    """How long it may take to end in order."""
    process: asyncio.subprocess.Process | None = None


def leash() -> Callable[[], None]:
    """Return what a child does first: have the kernel end it, in order, if this process is killed.

    A server that nobody watches would hold the log's files.
    """
    libc, parent = ctypes.CDLL(None), os.getpid()

    def bind() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed before the line above could say so
            os._exit(1)

    return bind


async def end_leftovers(folder: Path) -> None:
    """End what an earlier supervisor of `folder`, killed with -9, may have left running."""
    try:
        pids = msgspec.json.decode((folder / "pids.json").read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        return
    left = [process for process in map(_process, pids.values()) if process is not None]
    for process in left:
        log.warning("ending_leftover", pid=process.pid)
        process.terminate()
    deadline = time.monotonic() + STOP_S
    while alive := [pid for pid in pids.values() if _process(pid) is not None]:
        if time.monotonic() > deadline:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
    (folder / "pids.json").unlink(missing_ok=True)


def _process(pid: int) -> psutil.Process | None:
    """Return the process if it runs and is one that we start: its number may be another program's by now."""
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.Error:
        return None
    ours = "helix_es.cli.__main__" in words or any(word.endswith("nats-server") for word in words[:1])
    return process if ours else None


class Supervisor:
    """Keeps children alive; `pids.json` always says who they are now."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: dict[str, Child] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._stopping = False

    async def start(self, child: Child) -> None:
        """Start `child` and watch it from now on."""
        self._children[child.name] = child
        await self._spawn(child)
        self._watching.append(asyncio.create_task(self._watch(child)))

    async def _spawn(self, child: Child) -> None:
        with (self._folder / f"{child.name}.log").open("ab") as out:
            child.process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **child.env},
                start_new_session=True,  # Ctrl-C is for us; we end them in order
                preexec_fn=leash(),
            )
        self._write_pids()

    def _write_pids(self) -> None:
        pids = {name: c.process.pid for name, c in self._children.items() if c.process is not None}
        fresh = self._folder / "pids.json.new"
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(pids), indent=1) + b"\n")
        fresh.replace(self._folder / "pids.json")

    async def _watch(self, child: Child) -> None:
        pause_s = RESTART_S
        while child.process is not None:
            begun = time.monotonic()
            code = await child.process.wait()
            if self._stopping:
                return
            log.warning("process_ended", name=child.name, code=code)
            if time.monotonic() - begun > STEADY_S:
                pause_s = RESTART_S
            await asyncio.sleep(pause_s)
            pause_s = min(MOST_RESTART_S, 2 * pause_s)
            await self._spawn(child)

    async def stop(self) -> None:
        """End all, last started first: each gets SIGTERM and its time, then SIGKILL."""
        self._stopping = True
        for watch in self._watching:
            watch.cancel()
        for child in reversed(self._children.values()):
            await self._end(child)
        (self._folder / "pids.json").unlink(missing_ok=True)

    async def _end(self, child: Child) -> None:
        process = child.process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), child.stop_s)
        except TimeoutError:
            log.warning("process_killed", name=child.name)
            process.kill()
            await process.wait()

    def exit_code(self, name: str) -> int | None:
        """Return how a child that is not alive now ended, None if it lives."""
        process = self._children[name].process
        return None if process is None else process.returncode
