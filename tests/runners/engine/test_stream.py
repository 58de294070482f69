"""What waits is joined; the last item ends the stream."""

from __future__ import annotations

import asyncio

import pytest

from helix_es.core.errors import EngineError
from helix_runners.engine.port import Finished, Piece
from helix_runners.engine.stream import Item, Stream

DONE = Finished(reason="stop", prompt_tokens=1, cached_tokens=0, completion_tokens=2)


def piece(text: str, tokens: int) -> Piece:
    return Piece(text=text, tokens=tokens)


def taken(*items: Item, count: int) -> list[Piece | Finished]:
    async def take() -> list[Piece | Finished]:
        stream = Stream(asyncio.get_running_loop())
        for item in items:
            stream.put(item)
        return [await asyncio.wait_for(stream.take(), 5) for _ in range(count)]

    return asyncio.run(take())


def test_a_consumer_that_is_late_gets_one_joined_piece() -> None:
    assert taken(piece("a", 1), piece("b", 2), DONE, count=2) == [piece("ab", 2), DONE]


def test_nothing_comes_after_the_last_item() -> None:
    assert taken(DONE, piece("late", 3), EngineError("late"), count=2) == [DONE, DONE]


def test_text_comes_before_the_error_that_ended_it() -> None:
    assert taken(piece("a", 1), EngineError("broken"), count=1) == [piece("a", 1)]
    with pytest.raises(EngineError, match="broken"):
        taken(piece("a", 1), EngineError("broken"), count=2)


def test_a_consumer_waits_for_what_comes_later() -> None:
    async def test() -> None:
        stream = Stream(asyncio.get_running_loop())
        stream.put(piece("a", 1))
        assert await stream.take() == piece("a", 1)
        waiting = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        stream.put(piece("b", 2))
        assert await asyncio.wait_for(waiting, 5) == piece("b", 2)

    asyncio.run(test())
