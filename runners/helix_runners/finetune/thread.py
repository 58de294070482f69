"""The one thread that computes: two would share the cores badly, and the event loop must never wait for torch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from helix_es.core.errors import HelixError
from helix_runners.finetune.failures import TrainingFailed, failed, fatal

log = structlog.get_logger(__name__)

Result = TypeVar("Result")


class Stopped(Exception):
    """Nobody waits for the result any more."""


class TorchThread:
    """Runs one computation after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="helix-finetune")
        self._stop = threading.Event()
        self.broken: str | None = None
        """Why nothing can be computed any more."""

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns. Raises TrainingFailed, in words for users, for whatever it raises.

        When this is cancelled, `check` raises within `work`, and its end is waited for.
        """
        computing = asyncio.wrap_future(self._executor.submit(self._guarded, work))
        try:
            return await asyncio.shield(computing)
        except asyncio.CancelledError:
            self._stop.set()
            await _end_of(computing)
            raise
        finally:
            self._stop.clear()

    def check(self) -> None:
        """Called by long computations between their parts. Raises Stopped if they are in vain."""
        if self._stop.is_set():
            raise Stopped

    def _guarded(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except Stopped:
            raise
        except (TrainingFailed, HelixError) as error:
            meant = failed(error)
        except Exception as error:
            log.exception("computation_failed")
            if fatal(error):
                self.broken = f"{type(error).__name__}: {error}"
            meant = failed(error)
        raise meant  # out here it does not drag along the frames, which hold tensors

    async def close(self) -> None:
        """End the thread after what it computes now."""
        await asyncio.to_thread(self._executor.shutdown)


async def _end_of(computing: asyncio.Future[Result]) -> None:
    """Wait until it has ended, however often we are told to hurry: nothing may go on computing behind our back."""
    while not computing.done():
        try:
            await asyncio.wait([computing])
        except asyncio.CancelledError:
            continue
    computing.exception()  # looked at, or asyncio complains of it
