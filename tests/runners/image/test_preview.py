"""Previews show what a picture will be before it is, are small, and are not made too often."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from helix_runners.image import preview
from helix_runners.image.picture import Wanted
from helix_runners.image.png import PREVIEW_BYTES
from helix_runners.image.weights import SCENES
from tests.runners.image.engines import CLEAN, RED, bench, other, steps_of

pytestmark = [pytest.mark.anyio, CLEAN]

SUNSET = Wanted(
    prompt="a sunset with two suns over green fields", width=64, height=64, steps=20, guidance=3.0, seed=1
)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "EVERY_S", 0.0)


def shown(data: bytes) -> Image.Image:
    assert len(data) < PREVIEW_BYTES
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return image.convert("RGB")


def distance(one: Image.Image, two: Image.Image) -> float:
    """Mean difference of a channel, 0 to 255."""
    difference = ImageChops.difference(one, two.resize(one.size))
    return sum(ImageStat.Stat(difference).mean) / 3


async def test_a_preview_comes_near_to_the_picture_long_before_its_end(every_step: None) -> None:
    async with bench(SCENES, gated=True) as made:
        previews = []
        with made.engine.painting(SUNSET) as painting:
            for _ in range(SUNSET.steps):
                made.unet.allow(1)
                step = await painting.next_step()
                assert step is not None
                previews.append(step.preview)
            assert await painting.next_step() is None
            assert painting.painted is not None
            final = painting.painted.image
    assert previews[0] == b""  # nothing but noise
    assert previews[-1] == b""  # the picture itself follows
    distances = [distance(shown(data), final) for data in previews[1:-1]]
    assert distances[-1] < 3
    assert distances[len(distances) // 2] < 15
    assert distances[0] > distances[-1]


async def test_previews_keep_the_proportions_and_fit_96_pixels(tiny_folder: Path, every_step: None) -> None:
    async with bench(tiny_folder) as made:
        for (width, height), size in (((64, 64), (64, 64)), ((256, 128), (96, 48)), ((64, 16), (64, 16))):
            _, steps = await steps_of(made.engine, other(width=width, height=height, steps=3))
            sizes = {shown(step.preview).size for step in steps if step.preview}
            assert sizes == {size}


async def test_there_are_not_more_than_five_in_a_second(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(tiny_folder) as made:
        clock = SimpleNamespace(monotonic=lambda: len(made.unet.shapes) / 16)  # sixteen steps in a second
        monkeypatch.setattr(preview, "time", clock)
        looks = []
        made.pipeline.vae.decode = partial(counted, made.pipeline.vae.decode, looks)
        await steps_of(made.engine, other(steps=41))
        assert len(looks) == 10 + 1  # every fourth from the second on, and the picture itself


def counted(decode: Any, looks: list[Any], latents: Any, **options: Any) -> Any:
    looks.append(latents.shape)
    return decode(latents, **options)


async def test_a_decoder_that_must_be_cast_up_makes_none(tiny_folder: Path, every_step: None) -> None:
    async with bench(tiny_folder, dtype="float16") as made:
        painted, steps = await steps_of(made.engine, RED)
        assert painted is not None
        assert not any(step.preview for step in steps)
    async with bench(tiny_folder, dtype="bfloat16") as made:
        _, steps = await steps_of(made.engine, RED)
        assert any(step.preview for step in steps)
