"""The model that comes with Helix makes what it is asked for, and changes a picture without making another."""

from __future__ import annotations

import pytest
from PIL import Image, ImageStat

from helix_runners.image.engine import ImageEngine
from helix_runners.image.picture import Wanted
from helix_runners.image.weights import SCENES
from tests.runners.image.engines import CLEAN, bench, other, steps_of
from tests.runners.image.test_preview import distance

pytestmark = [pytest.mark.anyio, CLEAN]


async def image(engine: ImageEngine, wanted: Wanted) -> Image.Image:
    painted, _ = await steps_of(engine, wanted)
    assert painted is not None
    return painted.image


def middle(picture: Image.Image) -> tuple[float, ...]:
    """Return the mean colour of the part in the middle."""
    return tuple(ImageStat.Stat(picture.crop((26, 26, 38, 38))).mean)


async def test_a_circle_has_the_colour_that_was_asked_for() -> None:
    async with bench(SCENES) as made:
        red = middle(await image(made.engine, other(prompt="a red circle on a blue background", steps=20)))
        blue = middle(await image(made.engine, other(prompt="a blue circle on a red background", steps=20)))
    assert red[0] > red[2] + 40
    assert blue[2] > blue[0] + 40


async def test_a_changed_picture_is_nearer_to_the_one_before_than_a_new_one() -> None:
    async with bench(SCENES) as made:
        before = await image(made.engine, other(prompt="a red circle on a blue background", steps=20))
        wish = other(prompt="a green circle on a blue background", steps=20, seed=77, strength=0.6)
        new = await image(made.engine, wish)
        changed = await image(
            made.engine, other(prompt=wish.prompt, steps=20, seed=77, strength=0.6, start=before)
        )
    assert middle(changed)[1] > middle(changed)[0]  # it is green now
    # where nothing was to change, less is changed than a new picture has otherwise
    assert distance(changed, before) < distance(new, before)
