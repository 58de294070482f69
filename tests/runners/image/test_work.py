"""Image turns from the session to files in a real object store."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from helix_es.core.catalogue import BUILTIN, Model
from helix_es.core.errors import Misconfigured
from helix_es.core.events import Workload
from helix_es.jetstream.files import Files
from helix_runners.image import png
from helix_runners.image.work import ImageWork
from tests.runners.image.engines import CLEAN
from tests.runners.image.test_png import GRADIENT
from tests.runners.image.turns import PICTURE, TINY, Heard, Shop, job, said_of

pytestmark = [pytest.mark.anyio, CLEAN]


async def test_a_turn_makes_a_file_that_says_how(shop: Shop) -> None:
    heard = Heard()
    wish = job("a größe 🚢 circle", seed=7, negative_prompt="a house", guidance=4.5, width=72)
    outcome = await shop.perform(wish, heard)
    [data] = await shop.contents(outcome)
    assert png.decoded(data, 128).size == (72, 64)
    assert said_of(data) == {
        "Software": "Helix ES",
        "prompt": "a größe 🚢 circle",
        "negative_prompt": "a house",
        "seed": "7",
        "steps": "4",
        "guidance": "4.5",
        "size": "72x64",
        "model": "tiny",
        "session": "s1",
        "turn": "1",
    }
    info = await shop.files.info(outcome.files[0], "ann")
    assert (info.name, info.media, info.purpose, info.session) == (
        "s1-1-1.png",
        "image/png",
        "image",
        "s1",
    )
    assert (outcome.output, outcome.cancelled) == ("", False)
    assert outcome.first_token_ms is not None
    assert heard.steps[-1] == (4, 4)
    assert all(len(preview) < png.PREVIEW_BYTES for preview in heard.previews)


async def test_a_second_attempt_without_a_seed_makes_the_same_picture(shop: Shop) -> None:
    first, again = [await shop.contents(await shop.perform(job("a circle"))) for _ in range(2)]
    assert first == again
    elsewhere = await shop.contents(await shop.perform(job("a circle", session="s2")))
    assert png.decoded(elsewhere[0], 128).tobytes() != png.decoded(first[0], 128).tobytes()


async def test_picture_k_of_several_is_that_of_seed_plus_k(shop: Shop) -> None:
    heard = Heard()
    outcome = await shop.perform(job("a circle", seed=5, count=3), heard)
    several = await shop.contents(outcome)
    assert [said_of(data)["seed"] for data in several] == ["5", "6", "7"]
    for index, data in enumerate(several):
        [single] = await shop.contents(await shop.perform(job("a circle", seed=5 + index)))
        assert single == data
    assert heard.steps[-1] == (12, 12)
    assert heard.details[-1] == {"picture": 3, "pictures": 3}
    assert [(await shop.files.info(file)).name for file in outcome.files] == [
        "s1-1-1.png",
        "s1-1-2.png",
        "s1-1-3.png",
    ]


async def test_the_largest_allowed_seed_has_room_for_several(shop: Shop) -> None:
    outcome = await shop.perform(job("a circle", seed=2**63 - 1, count=2))
    assert len(await shop.contents(outcome)) == 2


async def test_a_further_turn_goes_on_from_the_picture_before(shop: Shop) -> None:
    first = await shop.perform(job("a circle", width=72))
    wish = job("a circle", "make it blue", before=first.files[0], seed=3, strength=0.5)
    heard = Heard()
    [changed] = await shop.contents(await shop.perform(wish, heard))
    said = said_of(changed)
    assert (said["size"], said["strength"], said["from"], said["turn"]) == (
        "72x64",
        "0.5",
        first.files[0],
        "2",
    )
    assert heard.steps[-1] == (2, 2)
    [new] = await shop.contents(await shop.perform(job("make it blue", width=72, seed=3)))
    assert png.decoded(new, 128).tobytes() != png.decoded(changed, 128).tobytes()
    wider = msgspec.structs.replace(wish, params={**wish.params, "width": 96, "height": 32})
    [resized] = await shop.contents(await shop.perform(wider))
    assert png.decoded(resized, 128).size == (96, 32)


@pytest.mark.parametrize(("size", "made"), [((71, 65), (64, 64)), ((8, 100), (16, 96))])
async def test_a_picture_before_of_an_odd_size_is_brought_to_a_possible_one(
    size: tuple[int, int], made: tuple[int, int], shop: Shop
) -> None:
    data = png.encoded(GRADIENT.resize(size), {})
    file = await shop.files.put(data, owner="ann", name="x.png", media="image/png", purpose="image")
    [changed] = await shop.contents(await shop.perform(job("a circle", "blue", before=file)))
    assert png.decoded(changed, 128).size == made
    assert said_of(changed)["size"] == f"{made[0]}x{made[1]}"


async def test_a_prompt_that_was_cut_says_so(shop: Shop) -> None:
    heard = Heard()
    [data] = await shop.contents(await shop.perform(job("a circle " * 40), heard))
    assert said_of(data)["truncated"] == "true"
    assert heard.details[-1]["truncated"] is True


async def test_the_shipped_model_loads_and_another_takes_its_place(files: Files, tiny_folder: Path) -> None:
    made = ImageWork(files, device="cpu", threads=1)
    assert (made.detail(), made.broken) == ({}, None)
    try:
        await made.load(Workload("create", "image", "scenes"), BUILTIN["scenes"])
        outcome = await made.perform(job("a red circle", steps=2), Heard())
        assert len(outcome.files) == 1
        weights = made.detail()["weights_bytes"]
        other = Model(name="test/tiny", type="image", source=str(tiny_folder), image=PICTURE)
        await made.load(TINY, other)
        assert made.detail()["weights_bytes"] != weights
        assert made.broken is None
        with pytest.raises(Misconfigured, match=r"models\.x\.image"):
            await made.load(Workload("create", "image", "x"), msgspec.structs.replace(other, image=None))
    finally:
        await made.close()
