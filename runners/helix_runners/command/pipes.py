"""Both ends of a program's pipes, without a buffer of our own for what it writes: the kernel's holds it back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import IO

CHUNK_BYTES = 65_536
MOST_LEFT_BYTES = 1 << 20  # what a pipe can hold at most: nothing written before the end is lost


class Outlet:
    """What a program writes. One reader at a time."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._fd = file.fileno()
        self._cut = False
        self._left = MOST_LEFT_BYTES
        self._waiter: asyncio.Future[None] | None = None
        self.ended = asyncio.Event()
        """Set when there is nothing more to be read."""
        os.set_blocking(self._fd, False)

    async def read(self) -> bytes:
        """Return what is there, as soon as there is something; b"" at the end."""
        while not self.ended.is_set():
            await asyncio.sleep(0)  # one that writes without end must not have the loop for itself
            try:
                data = os.read(self._fd, CHUNK_BYTES) if self._left > 0 else b""
            except BlockingIOError:
                if self._cut:
                    break
                await self._readable()
                continue
            if not data:
                break
            if self._cut:
                self._left -= len(data)
            return data
        self.close()
        return b""

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        loop.add_reader(self._fd, _wake, waiter)
        try:
            await waiter
        finally:
            if not self._file.closed:
                loop.remove_reader(self._fd)

    def cut(self) -> None:
        """End after what the pipe holds now: its writer is gone, whoever else may have it open."""
        self._cut = True
        if self._waiter is not None:
            _wake(self._waiter)

    def skim(self) -> None:
        """Throw away what is there, so that a program that is ending does not wait for a reader."""
        if self.ended.is_set():
            return
        try:
            os.read(self._fd, MOST_LEFT_BYTES)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Read no more; harmless when it is over."""
        self.ended.set()
        if not self._file.closed:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._file.close()
        if self._waiter is not None:
            _wake(self._waiter)


class Inlet:
    """What a program reads: sent as fast as it does, from memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._fd = file.fileno()
        self._buffer = bytearray()
        self._finishing = False
        self._waiting = False
        self.on_broken: Callable[[], None] | None = None
        """Called when the program reads no more, if there was something for it."""
        os.set_blocking(self._fd, False)

    def send(self, data: bytes) -> None:
        """Send `data` after what is waiting; nothing happens if the program has closed its end."""
        if self._file.closed:
            return
        self._buffer += data
        self._flush()

    def finish(self) -> None:
        """Close when all is sent: the program finds its input's end."""
        self._finishing = True
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._buffer:
                del self._buffer[: os.write(self._fd, self._buffer[:CHUNK_BYTES])]
        except BlockingIOError:
            if not self._waiting:
                loop.add_writer(self._fd, self._flush)
                self._waiting = True
            return
        except BrokenPipeError:
            # A program need not read its prompt. One that stays must, and `on_broken` says so.
            self.close()
            if self.on_broken is not None:
                self.on_broken()
            return
        if self._waiting:
            loop.remove_writer(self._fd)
            self._waiting = False
        if self._finishing:
            self.close()

    def close(self) -> None:
        """Send no more; harmless when it is closed."""
        self._buffer.clear()
        if self._file.closed:
            return
        if self._waiting:
            asyncio.get_running_loop().remove_writer(self._fd)
            self._waiting = False
        self._file.close()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
