"""Steps that come faster than they are told are joined; the end comes after the last of them."""

from __future__ import annotations

import asyncio

import pytest

from helix_es.core.errors import EngineError
from helix_runners.image.painting import Cancelled, End, Painting
from helix_runners.image.picture import Painted, Step
from tests.runners.image.engines import RED
from tests.runners.image.test_png import GRADIENT

pytestmark = pytest.mark.anyio


def begun() -> Painting:
    return Painting(RED, asyncio.get_running_loop())


def step(number: int, preview: bytes = b"") -> Step:
    return Step(step=number, steps=9, preview=preview)


async def test_steps_that_wait_are_one_with_the_newest_preview() -> None:
    painting = begun()
    for each in (step(1, b"old"), step(2, b"new"), step(3)):
        painting.put(each)
    assert await painting.next_step() == step(3, b"new")
    waiting = asyncio.ensure_future(painting.next_step())
    await asyncio.sleep(0)
    assert not waiting.done()
    painting.put(step(4))
    assert await waiting == step(4)


@pytest.mark.parametrize("end", [Painted(image=GRADIENT, truncated=False), Cancelled()])
async def test_the_end_comes_after_the_last_step(end: End) -> None:
    painting = begun()
    painting.put(step(9))
    painting.put(end)
    assert await painting.next_step() == step(9)
    assert await painting.next_step() is None
    assert painting.painted is (end if isinstance(end, Painted) else None)


async def test_an_error_is_raised_after_the_last_step() -> None:
    painting = begun()
    painting.put(step(2))
    painting.put(EngineError("no"))
    assert await painting.next_step() == step(2)
    with pytest.raises(EngineError, match="no"):
        await painting.next_step()
