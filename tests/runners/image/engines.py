"""Engines on small pipelines, ways to watch and to disturb what they compute, and to wait for their pictures."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from helix_runners.image.engine import ImageEngine
from helix_runners.image.picture import Painted, Step, Wanted
from helix_runners.image.weights import load_pipeline

PATIENCE_S = 60
CLEAN = pytest.mark.filterwarnings(  # said of tensors by numpy 2.4 in diffusers 0.42, in nothing of ours
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

RED = Wanted(prompt="a red circle", width=64, height=64, steps=4, guidance=3.0, seed=1)


def other(**changes: Any) -> Wanted:
    """Return `RED` with changes."""
    return msgspec.structs.replace(RED, **changes)


class Unet:
    """Stands before a denoiser: notes every call, holds calls back or fails when told to."""

    def __init__(self, pipeline: Any, *, gated: bool = False) -> None:
        self.begun = threading.Semaphore(0)
        """Released when a call begins."""
        self.shapes: list[tuple[int, ...]] = []
        """Of the latents of each call, height and width."""
        self.grad_modes: set[bool] = set()
        self.threads: set[int] = set()
        self.fail: Callable[[tuple[int, ...]], Exception | None] = lambda shape: None
        self._allowed = threading.Semaphore(0)
        self._gated = gated
        self._forward = pipeline.unet.forward
        pipeline.unet.forward = self

    def __call__(self, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        shape = tuple(sample.shape[-2:])
        self.shapes.append(shape)
        self.grad_modes.add(torch.is_grad_enabled())
        self.threads.add(threading.get_ident())
        self.begun.release()
        if self._gated:
            assert self._allowed.acquire(timeout=PATIENCE_S)
        if (error := self.fail(shape)) is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame, which would hold it
        return self._forward(sample, *args, **kwargs)

    def allow(self, calls: int) -> None:
        """Let so many more calls through a gate."""
        self._allowed.release(calls)

    async def has_begun(self) -> None:
        """Wait until one more call has begun."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE_S)


class Bench:
    """An engine, and what its denoiser is asked."""

    def __init__(self, folder: Path | str, *, dtype: str = "float32", gated: bool = False) -> None:
        self.pipeline: Any = None
        self.unet: Unet

        def load() -> Any:
            torch.set_num_threads(1)  # many small operations: a second thread costs more than it gives
            self.pipeline = load_pipeline(str(folder), device="cpu", dtype=dtype)
            self.unet = Unet(self.pipeline, gated=gated)
            return self.pipeline

        self.engine = ImageEngine(load)


@contextlib.asynccontextmanager
async def bench(folder: Path | str, **options: Any) -> AsyncIterator[Bench]:
    made = await asyncio.to_thread(lambda: Bench(folder, **options))
    try:
        yield made
    finally:
        made.unet.allow(10_000)
        await made.engine.close()


async def steps_of(engine: ImageEngine, wanted: Wanted) -> tuple[Painted | None, list[Step]]:
    """Return a picture and the steps that were told on the way to it."""
    steps = []
    async with asyncio.timeout(PATIENCE_S):
        with engine.painting(wanted) as painting:
            while (step := await painting.next_step()) is not None:
                steps.append(step)
            return painting.painted, steps


async def pixels(engine: ImageEngine, wanted: Wanted) -> bytes:
    """Return the picture's pixels."""
    painted, _ = await steps_of(engine, wanted)
    assert painted is not None
    assert painted.image.size == (wanted.width, wanted.height)
    return bytes(painted.image.tobytes())
