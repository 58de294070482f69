"""What happens to pictures when one cannot be computed, when the engine closes, or nobody waits any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from helix_es.core.errors import EngineError
from helix_runners.image.engine import ImageEngine
from tests.runners.image.engines import CLEAN, RED, Bench, bench, other, pixels

pytestmark = [pytest.mark.anyio, CLEAN]

WIDE = other(width=96)


def for_the_wide(error: Exception) -> Any:
    return lambda shape: error if shape == (8, 12) else None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("CUDA error: an illegal memory access"), "engine_error"),
        (ValueError("shapes do not fit"), "engine_error"),
    ],
)
async def test_a_failing_picture_fails_alone(error: Exception, code: str, tiny_folder: Path) -> None:
    async with bench(tiny_folder) as made:
        undisturbed = await pixels(made.engine, RED)
        made.unet.fail = for_the_wide(error)
        results = await asyncio.gather(
            *(pixels(made.engine, each) for each in (RED, WIDE, RED)), return_exceptions=True
        )
        assert [results[0], results[2]] == [undisturbed, undisturbed]
        assert isinstance(results[1], EngineError)
        assert results[1].code == code
        made.unet.fail = lambda shape: None
        assert await pixels(made.engine, WIDE)
        assert made.engine.stopped is None


async def test_three_failures_in_a_row_stop_the_engine(tiny_folder: Path) -> None:
    async with bench(tiny_folder) as made:
        made.unet.fail = lambda shape: RuntimeError("device lost")
        for _ in range(3):
            assert made.engine.stopped is None
            with pytest.raises(EngineError, match="device lost"):
                await pixels(made.engine, RED)
        with pytest.raises(EngineError) as stopped:
            await pixels(made.engine, RED)
        assert stopped.value.code == "engine_stopped"
        assert made.engine.stopped is not None


async def test_a_picture_between_failures_shows_that_the_device_works(tiny_folder: Path) -> None:
    async with bench(tiny_folder) as made:
        made.unet.fail = for_the_wide(RuntimeError("no"))
        for _ in range(4):
            with pytest.raises(EngineError):
                await pixels(made.engine, WIDE)
            await pixels(made.engine, RED)
        assert made.engine.stopped is None


async def test_who_asks_for_too_large_a_picture_again_and_again_stops_nobody(tiny_folder: Path) -> None:
    async with bench(tiny_folder) as made:
        made.unet.fail = for_the_wide(torch.OutOfMemoryError("CUDA out of memory"))
        for _ in range(5):
            with pytest.raises(EngineError, match="96 x 64"):
                await pixels(made.engine, WIDE)
        assert made.engine.stopped is None


async def test_a_device_without_memory_for_the_models_own_size_is_given_up(tiny_folder: Path) -> None:
    async with bench(tiny_folder) as made:
        made.unet.fail = lambda shape: torch.OutOfMemoryError("CUDA out of memory")
        for _ in range(3):
            with pytest.raises(EngineError):
                await pixels(made.engine, RED)
        assert made.engine.stopped is not None


async def test_numbers_that_are_none_are_no_picture(tiny_folder: Path) -> None:
    async with bench(tiny_folder) as made:
        made.pipeline.unet.conv_out.bias.fill_(float("nan"))
        with pytest.raises(EngineError, match="no numbers"):
            await pixels(made.engine, RED)


async def test_a_decoder_that_failed_while_cast_up_works_again(tiny_folder: Path) -> None:
    async with bench(tiny_folder, dtype="float16") as made:
        vae = made.pipeline.vae
        undisturbed = await pixels(made.engine, RED)
        assert vae.dtype == torch.float16
        decode, seen = vae.decode, []

        def failing(*_args: Any, **_kwargs: Any) -> Any:
            seen.append(vae.dtype)
            vae.decode = decode
            raise torch.OutOfMemoryError("CUDA out of memory")

        vae.decode = failing
        with pytest.raises(EngineError):
            await pixels(made.engine, RED)
        assert seen == [torch.float32]
        assert await pixels(made.engine, RED) == undisturbed


async def test_closing_ends_what_runs_and_what_waits(tiny_folder: Path) -> None:
    async with bench(tiny_folder, gated=True) as made:
        tasks = [asyncio.create_task(pixels(made.engine, other(steps=90))) for _ in range(3)]
        await made.unet.has_begun()
        closing = asyncio.create_task(made.engine.close())
        await asyncio.sleep(0)  # the command to stop is posted
        made.unet.allow(1)
        await closing
        for task in tasks:
            with pytest.raises(EngineError, match="closed"):
                await task
        with pytest.raises(EngineError, match="closed"):
            await pixels(made.engine, RED)
        assert len(made.unet.shapes) == 1


def test_what_loading_raises_reaches_the_caller() -> None:
    def load() -> Any:
        raise EngineError("no weights")

    with pytest.raises(EngineError, match="no weights"):
        ImageEngine(load)


def test_a_loop_that_is_gone_does_not_harm_the_engine(tiny_folder: Path) -> None:
    made = Bench(tiny_folder, gated=True)

    left = made.engine.painting(other(steps=50))

    async def leave() -> None:
        left.__enter__()
        await made.unet.has_begun()
        # neither the picture nor the engine is ended: the loop just is gone

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    made.unet.allow(1000)

    async def again() -> None:
        await pixels(made.engine, RED)
        assert len(made.unet.shapes) < 50
        assert made.engine.stats().running == 0
        await made.engine.close()

    asyncio.run(again())
