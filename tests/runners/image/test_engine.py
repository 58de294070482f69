"""Pictures take turns on one set of weights, and none of them can tell that there are others."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from helix_es.core.errors import EngineError
from helix_runners.image.picture import Wanted
from helix_runners.image.studio import Studio
from helix_runners.image.weights import SCENES
from tests.runners.image.engines import CLEAN, RED, bench, other, pixels, steps_of

pytestmark = [pytest.mark.anyio, CLEAN]

START = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
MIXED = [
    RED,
    other(prompt="two moons over brown fields", seed=2, steps=7),
    other(height=32, seed=3, guidance=1.0),
    other(seed=4, steps=6, start=START, strength=0.5, negative_prompt="a house"),
    other(width=96, seed=5, steps=2),
]


@pytest.mark.parametrize(
    ("scenes", "dtype"),
    [(True, "float32"), (False, "float32"), (False, "float16"), (False, "bfloat16")],
)
async def test_pixels_are_the_same_with_and_without_company(
    scenes: bool, dtype: str, tiny_folder: Path
) -> None:
    async with bench(SCENES if scenes else tiny_folder, dtype=dtype) as made:
        alone = [await pixels(made.engine, each) for each in MIXED]
        together = await asyncio.gather(*(pixels(made.engine, each) for each in MIXED))
        assert together == alone
        assert len(set(alone)) == len(alone)
        assert made.unet.grad_modes == {False}  # whoever ends first must not switch gradients on for the rest
        assert len(made.unet.threads) == 1


@pytest.mark.parametrize("zeros", [True, False])
async def test_pixels_are_those_of_plain_diffusers(zeros: bool, tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["force_zeros_for_empty_prompt"] = zeros
    (folder / "model_index.json").write_text(json.dumps(index))
    plain: Any = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    expected = plain(
        RED.prompt,
        width=RED.width,
        height=RED.height,
        num_inference_steps=RED.steps,
        guidance_scale=RED.guidance,
        generator=torch.Generator("cpu").manual_seed(RED.seed),
    ).images[0]
    async with bench(folder) as made:
        assert await pixels(made.engine, RED) == expected.tobytes()


async def test_a_picture_that_is_over_leaves_nothing_in_memory(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views: list[weakref.ref[Any]] = []
    make = Studio._view

    def noted(studio: Studio, wanted: Wanted) -> Any:
        view = make(studio, wanted)
        views.append(weakref.ref(view))
        return view

    monkeypatch.setattr(Studio, "_view", noted)
    gc.disable()  # what only the collector finds would hold a GPU's memory until it runs
    try:
        async with bench(tiny_folder, gated=True) as made:
            with made.engine.painting(RED) as cancelled:
                await made.unet.has_begun()
                cancelled.cancel()
                made.unet.allow(100)
                while await cancelled.next_step() is not None:
                    pass
            made.unet.fail = lambda shape: torch.OutOfMemoryError() if shape == (8, 12) else None
            with pytest.raises(EngineError):
                await pixels(made.engine, other(width=96))
            await pixels(made.engine, RED)
        assert len(views) == 3
        assert [view() for view in views] == [None] * 3
    finally:
        gc.enable()


async def test_pictures_take_turns_step_by_step(tiny_folder: Path) -> None:
    async with bench(tiny_folder, gated=True) as made:
        sides = [64, 72, 80]
        tasks = [asyncio.create_task(pixels(made.engine, other(width=side))) for side in sides]
        await made.unet.has_begun()  # only the first is there for sure; the others wait behind it
        await asyncio.sleep(0)
        made.unet.allow(100)
        await asyncio.gather(*tasks)
        order = [width * 8 for _, width in made.unet.shapes]
        assert order == sides * RED.steps


async def test_every_step_is_told_with_its_number(tiny_folder: Path) -> None:
    async with bench(tiny_folder, gated=True) as made:
        with made.engine.painting(RED) as painting:
            for number in range(1, RED.steps + 1):
                made.unet.allow(1)
                step = await painting.next_step()
                assert step is not None
                assert (step.step, step.steps) == (number, RED.steps)
            assert await painting.next_step() is None
            assert painting.painted is not None


async def test_the_same_seed_makes_the_same_picture_and_another_one_another(tiny_folder: Path) -> None:
    async with bench(tiny_folder) as made:
        first = await pixels(made.engine, RED)
        assert await pixels(made.engine, RED) == first
        assert await pixels(made.engine, other(seed=2)) != first
        assert await pixels(made.engine, other(negative_prompt="red")) != first
        assert await pixels(made.engine, other(guidance=7.0)) != first


async def test_a_cancelled_picture_computes_no_further_step_and_disturbs_no_other(tiny_folder: Path) -> None:
    async with bench(tiny_folder, gated=True) as made:
        made.unet.allow(RED.steps)
        undisturbed = await pixels(made.engine, RED)
        before = len(made.unet.shapes)
        kept = asyncio.create_task(pixels(made.engine, RED))
        with made.engine.painting(other(width=96, steps=50)) as painting:
            made.unet.allow(4)
            assert await painting.next_step() is not None
            painting.cancel()
            made.unet.allow(100)
            while await painting.next_step() is not None:
                pass
            assert painting.painted is None
        assert await kept == undisturbed
        wide = [shape for shape in made.unet.shapes[before:] if shape[1] == 12]
        assert 1 <= len(wide) <= 4
        assert await pixels(made.engine, other(width=96, steps=2))  # it can be begun again
        assert made.engine.stats().running == 0


async def test_whoever_leaves_early_stops_the_computation(tiny_folder: Path) -> None:
    async with bench(tiny_folder, gated=True) as made:
        with made.engine.painting(other(steps=50)) as painting:
            made.unet.allow(1)
            await painting.next_step()
        made.unet.allow(1000)
        await pixels(made.engine, RED)
        assert len(made.unet.shapes) <= 2 + RED.steps
        assert made.engine.stats().running == 0


async def test_a_prompt_longer_than_the_model_reads_is_cut_and_says_so(tiny_folder: Path) -> None:
    async with bench(tiny_folder) as made:
        for prompt in ("a red circle " * 20, "a" * 100_000, "x " * 100_000):
            painted, steps = await steps_of(made.engine, other(prompt=prompt))
            assert painted is not None
            assert painted.truncated
            assert all(step.truncated for step in steps)
        painted, _ = await steps_of(made.engine, other(negative_prompt="a red circle " * 20))
        assert painted is not None
        assert painted.truncated
        painted, _ = await steps_of(made.engine, RED)
        assert painted is not None
        assert not painted.truncated


@pytest.mark.parametrize(
    ("steps", "strength", "told"), [(1, 0.05, 1), (3, 0.05, 1), (49, 0.02, 1), (10, 0.5, 5)]
)
async def test_going_on_from_a_picture_takes_a_part_of_the_steps_but_at_least_one(
    steps: int, strength: float, told: int, tiny_folder: Path
) -> None:
    async with bench(tiny_folder) as made:
        wanted = other(start=START, steps=steps, strength=strength)
        await pixels(made.engine, wanted)
        assert len(made.unet.shapes) == told


async def test_an_idle_engine_computes_nothing(tiny_folder: Path) -> None:
    async with bench(tiny_folder) as made:
        await pixels(made.engine, RED)
        await pixels(made.engine, RED)
        assert len(made.unet.shapes) == 2 * RED.steps
        stats = made.engine.stats()
        assert (stats.running, stats.pictures) == (0, 2)
        assert 0.5e6 < stats.weights_bytes < 5e6
