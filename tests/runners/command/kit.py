"""Jobs, an output that listens, a store that has nothing, and ways to see that processes are gone."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from helix_es.core.events import Message, SessionId
from helix_es.core.history import Session, Turn
from helix_es.jetstream.files import Files
from helix_runners.command.work import CommandWork
from helix_runners.work import Job

PYTHON = sys.executable


class Start(Protocol):
    """Makes a loaded work of a command."""

    async def __call__(
        self, *command: str, files: Files | None = None, slug: str = ..., **more: Any
    ) -> CommandWork: ...


class Shelf(Files):
    """A store that nobody asks."""

    def __init__(self) -> None:
        """No connection."""


class Kept(Shelf):
    """A store in memory, which fails as often as it is told."""

    def __init__(self, failures: list[Exception] | None = None) -> None:
        self.put_names: list[str] = []
        self.content: list[bytes] = []
        self._failures = failures or []

    async def put(self, source: BinaryIO | bytes, **about: Any) -> str:
        if self._failures:
            raise self._failures.pop(0)
        assert not isinstance(source, bytes)
        self.content.append(source.read())
        self.put_names.append(about["name"])
        return f"f{len(self.put_names)}"


class Heard:
    """An `Output` that keeps what it is told."""

    def __init__(self, on_say: Callable[[str], Awaitable[None]] | None = None) -> None:
        self.pieces: list[str] = []
        self.steps: list[tuple[int, int, dict[str, Any]]] = []
        self.spoken = asyncio.Event()
        self._on_say = on_say

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    async def say(self, text: str) -> None:
        self.pieces.append(text)
        self.spoken.set()
        if self._on_say is not None:
            await self._on_say(text)

    async def step(
        self,
        step: int,
        steps: int,
        detail: Mapping[str, Any] | None = None,
        *,
        preview: bytes = b"",
        checkpoint: Sequence[str] = (),
    ) -> bool:
        self.steps.append((step, steps, dict(detail or {})))
        return False

    def alive(self) -> None:
        """Programs have time limits of their own."""


def job(
    prompt: str = "hello", *, session: str = "s1", history: Sequence[Message] | None = None, **more: Any
) -> Job:
    """Return the first turn of a session of ann's."""
    params = more.pop("params", {})
    turn = Turn(
        turn=1,
        state="running",
        prompt=prompt,
        history=None if history is None else list(history),
        attempt=1,
        queued_ms=0,
    )
    state = Session(
        session=SessionId(session),
        phase="running",
        owner="ann",
        **{"model": "smollm2", "turns": (turn,), **more},
    )
    return Job(state=state, params=params)


def alive(pid: int) -> bool:
    """Whether a process lives; one that nobody has collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def exists(path: str) -> bool:
    """Whether there is something."""
    return os.path.lexists(path)


async def until(good: Callable[[], bool], what: str, seconds: float = 10) -> None:
    """Poll what other processes do, with a deadline."""
    deadline = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        await asyncio.sleep(0.01)


def pids_in(folder: Path) -> list[int]:
    """Return the numbers that programs wrote into `folder`, a file each."""
    return [int(text) for each in folder.iterdir() if (text := each.read_text().strip())]


def leftovers() -> list[str]:
    """Return the folders of this process's runners that are still there."""
    return [
        name for name in os.listdir(tempfile.gettempdir()) if name.startswith(f"helix-command-{os.getpid()}-")
    ]
