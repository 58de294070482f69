"""Where fake runners appear: the test hears of each, tells it what to do and sees it end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

WAIT_S = 60.0  # an interpreter that starts on a busy machine
FAKE = Path(__file__).with_name("fake_runner.py")


def command(socket: Path, gpu: str) -> list[str]:
    """Return how to start a fake runner that passes for one of ours."""
    return [sys.executable, str(FAKE), str(socket), "helix_es.cli.__main__", "--gpu", gpu]


class Actor:
    """One fake runner that has appeared."""

    def __init__(self, words: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.gpu, pid, self.url = words
        self.pid = int(pid)
        self._reader = reader
        self._writer = writer

    async def tell(self, word: str) -> None:
        """Tell it something and wait until it has done it; it must be alive."""
        self._writer.write(f"{word}\n".encode())
        assert await asyncio.wait_for(self._reader.readline(), WAIT_S) == b"done\n", f"{self.gpu} is gone"

    async def leave(self, code: int) -> None:
        """Have it end with `code`."""
        self._writer.write(f"exit {code}\n".encode())
        await self.ended()

    async def ended(self) -> None:
        """Wait until its process is over: the kernel closes its socket."""
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(self._reader.read(), WAIT_S) == b""

    async def close(self) -> None:
        """Let go of it."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


class Stage:
    """A socket that fake runners connect to."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.actors: list[Actor] = []
        self._arrived: asyncio.Queue[Actor] = asyncio.Queue()

    async def arrive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        actor = Actor((await reader.readline()).decode().split(), reader, writer)
        self.actors.append(actor)
        self._arrived.put_nowait(actor)

    async def next(self) -> Actor:
        """Return the next to appear."""
        return await asyncio.wait_for(self._arrived.get(), WAIT_S)

    async def cast(self, count: int) -> dict[str, Actor]:
        """Return the next `count` to appear, by GPU."""
        actors = [await self.next() for _ in range(count)]
        return {actor.gpu: actor for actor in sorted(actors, key=lambda actor: actor.gpu)}

    @property
    def empty(self) -> bool:
        return self._arrived.empty()


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """Give a stage in `folder`."""
    stage = Stage(folder / "stage")
    server = await asyncio.start_unix_server(stage.arrive, stage.socket)
    try:
        yield stage
    finally:
        server.close()
        for actor in stage.actors:
            await actor.close()
