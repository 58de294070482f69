"""The engine that the image runner uses: one thread loads and computes, any number of tasks wait for pictures."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import msgspec
import structlog
import torch

from helix_es.core.errors import EngineError
from helix_runners.image.painting import End, Painting
from helix_runners.image.picture import Step, Wanted
from helix_runners.image.studio import Studio
from helix_runners.image.weights import load_pipeline

log = structlog.get_logger(__name__)

# Of weights. Operations of so small a model are too short to be shared among threads: with idle cores that gains
# nothing, and beside another busy process on two cores a step took 2.4 s instead of 0.03 s
SMALL_BYTES = 100_000_000
FAILED_BEFORE_STOP = 3  # once may be memory; three in a row is a device that does not come back

CLOSED = "the engine was closed"


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine holds now."""

    running: int
    pictures: int
    """Made since start."""
    weights_bytes: int


class ImageEngine:
    """Pictures in progress take turns, step by step, in one thread.

    In no other may torch compute: OpenMP keeps a team of threads for each thread that ever did, and as soon as
    there are more than cores it puts them to sleep between operations: half the speed.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        """Start the thread and wait until `load` has returned a pipeline in it. Raises what `load` raises."""
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopped: str | None = None
        loaded: Future[int] = Future()
        # a daemon, so that a program that fails without closing can end; stopped by atexit, since torch in
        # a daemon thread that outlives the interpreter crashes it
        self._thread = threading.Thread(
            target=self._work, args=(load, loaded), name="helix-image-engine", daemon=True
        )
        self._thread.start()
        self._weights_bytes = loaded.result()
        atexit.register(self._stop_and_wait)

    @property
    def stopped(self) -> str | None:
        """Why it computes no more, None while it does."""
        return self._stopped

    @contextlib.contextmanager
    def painting(self, wanted: Wanted) -> Iterator[Painting]:
        """Begin a picture, for the event loop that runs here; it is cancelled if it is not done at the end."""
        painting = Painting(wanted, asyncio.get_running_loop())
        self._post(lambda: self._studio.begin(painting))
        try:
            yield painting
        finally:
            painting.cancel()

    def stats(self) -> EngineStats:
        """What the engine holds now."""
        return EngineStats(
            running=len(self._studio), pictures=self._studio.pictures, weights_bytes=self._weights_bytes
        )

    async def close(self) -> None:
        """Stop after the step that runs; pictures that are not done end with EngineError."""
        with contextlib.suppress(EngineError):
            self._post(partial(self._stop, CLOSED))
        await asyncio.to_thread(self._thread.join)
        atexit.unregister(self._stop_and_wait)

    def _post(self, command: Callable[[], None]) -> None:
        """Have `command` run in the engine's thread between two steps, in order."""
        with self._wake:
            if self._stopped is not None:
                raise EngineError(f"{self._stopped}; load the model again", code="engine_stopped")
            self._inbox.append(command)
            self._wake.notify()

    def _stop_and_wait(self) -> None:
        with contextlib.suppress(EngineError):
            self._post(partial(self._stop, CLOSED))
        self._thread.join()

    # The engine's thread

    def _work(self, load: Callable[[], Any], loaded: Future[int]) -> None:
        torch.set_grad_enabled(False)  # of this thread, see Studio
        try:
            pipeline = load()
            self._studio = Studio(pipeline)
            loaded.set_result(_bytes_of(pipeline))
        except BaseException as error:
            loaded.set_exception(error)
            return
        reason = "the engine's thread ended"
        try:
            self._serve()
        except BaseException as error:
            reason = f"the engine failed: {error!r}"
            log.exception("image_engine.failed")
        finally:
            self._finish(reason)

    def _serve(self) -> None:
        while self._stopped is None:
            for command in self._commands():
                command()
            if self._stopped is None and len(self._studio):
                painting, item = self._studio.step()
                failed = self._studio.failed_in_a_row
                if failed >= FAILED_BEFORE_STOP:  # before anybody can see the last of them
                    self._stop(f"the engine stopped after {failed} pictures in a row could not be computed")
                _give(painting, item)

    def _commands(self) -> list[Callable[[], None]]:
        """What was posted; waits only if there is nothing to compute."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or len(self._studio))
            commands = list(self._inbox)
            self._inbox.clear()
            return commands

    def _stop(self, reason: str) -> None:
        with self._wake:
            self._stopped = self._stopped or reason

    def _finish(self, reason: str) -> None:
        """Nothing is computed any more: whoever waits must hear of it."""
        self._stop(reason)
        with self._wake:
            left = list(self._inbox)
            self._inbox.clear()
        for command in left:
            command()
        for painting in self._studio.abandon():
            _give(painting, EngineError(self._stopped or reason, code="engine_stopped"))


def open_engine(source: str, *, device: str, dtype: str, threads: int | None = None) -> ImageEngine:
    """Load the model and start its engine. Blocks for seconds: use a thread.

    `threads`: at most so many compute on a CPU; None: torch's choice; a small model takes one in any case.
    Raises Misconfigured, naming the setting, if it cannot work; EngineError if the model cannot be had.
    """

    def load() -> Any:
        if threads is not None:
            torch.set_num_threads(threads)
        pipeline = load_pipeline(source, device=device, dtype=dtype)
        if _bytes_of(pipeline) < SMALL_BYTES:
            torch.set_num_threads(1)
        return pipeline

    return ImageEngine(load)


def _bytes_of(pipeline: Any) -> int:
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    return sum(weight.nbytes for part in parts for weight in part.parameters())


def _give(painting: Painting, item: Step | End) -> None:
    try:
        painting.loop.call_soon_threadsafe(painting.put, item)
    except RuntimeError:  # the loop is closed: nobody waits for this any more
        painting.cancel()
