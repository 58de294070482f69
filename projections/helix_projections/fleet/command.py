"""Provider `command`: a shell command makes the pool as large as its environment says."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog

from helix_projections.fleet.children import start
from helix_projections.fleet.provider import Gpus, ProviderError

log = structlog.get_logger(__name__)

LIMIT_S = 300.0
GRACE_S = 5.0  # between SIGTERM and SIGKILL: a cloud's CLI may hold a lock there
TAIL_BYTES = 4096
TAIL_LINES = 10


class Command:
    """Runs `command` whenever the size is another than the last that it succeeded for, and once at start.

    How many GPUs it has started it alone knows: one that ends by itself is not started again.
    """

    def __init__(
        self, command: str, folder: Path, env: Mapping[str, str], *, limit_s: float = LIMIT_S
    ) -> None:
        self._command = command
        self._output = folder / "command.log"
        self._env = dict(env)
        self._limit_s = limit_s
        self._made: int | None = None

    async def present(self) -> int | None:
        """Return None: it cannot know."""
        return None

    async def make(self, size: int, previous: int, gpus: Gpus) -> float | None:
        """Run the command if there is a reason to; see `Provider.make`."""
        if size == self._made:
            return None
        env = {**self._env, "HELIX_SIZE": str(size), "HELIX_PREVIOUS": str(previous)}
        self._made = None  # from here until it succeeds nobody knows
        process = await start(["/bin/sh", "-c", self._command], self._output, env, append=False)
        try:
            async with asyncio.timeout(self._limit_s):
                code = await process.wait()
        except TimeoutError:
            raise ProviderError(f"the command took longer than {self._limit_s:g} s{self._tail()}") from None
        finally:
            if process.returncode is None:
                await asyncio.shield(_end_group(process))
        if code:
            raise ProviderError(f"the command failed with exit code {code}{self._tail()}")
        self._made = size
        log.info("command_succeeded", size=size, previous=previous, said=self._said())
        return None

    def _tail(self) -> str:
        said = self._said()
        return f": {said}" if said else ""

    def _said(self) -> str:
        """Return the last of what it said, in one line."""
        with self._output.open("rb") as file:
            file.seek(max(0, self._output.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
        return " | ".join([line.strip() for line in lines if line.strip()][-TAIL_LINES:])

    async def close(self) -> None:
        """Nothing to end: what it started is meant to stay."""


async def _end_group(process: asyncio.subprocess.Process) -> None:
    """End the command with all that it started in its process group."""
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_S):
            await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # also what the shell has left behind
    await process.wait()
