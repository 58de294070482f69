"""The engine as runners see it: streams, cancellation, refusals."""

from __future__ import annotations

import asyncio

import pytest

from helix_es.core.errors import EngineError, PromptTooLong
from helix_runners.engine.port import Finished, Piece, Sampling
from tests.runners.engine.engines import HELLO, PROMPT_TOKENS, GatedPrompt, collect, opened, runs
from tests.runners.engine.models import CountingNetwork, GatedNetwork


def test_an_answer_streams_and_ends() -> None:
    async def test() -> None:
        async with opened(CountingNetwork()) as engine:
            text, ended = await collect(engine, "s", Sampling(max_tokens=5))
            assert len(text) == 5
            assert ended == Finished(
                reason="length", prompt_tokens=PROMPT_TOKENS, cached_tokens=0, completion_tokens=5
            )
            assert engine.stats().running == 0
            assert engine.stats().generated_tokens == 5

    runs(test)


def test_many_sessions_stream_at_once_and_a_second_turn_finds_its_keys() -> None:
    async def test() -> None:
        async with opened(CountingNetwork()) as engine:
            for cached in (0, PROMPT_TOKENS - 1):
                answers = await asyncio.gather(
                    *(collect(engine, f"s{number}", Sampling(max_tokens=9)) for number in range(12))
                )
                assert {ended.cached_tokens for _, ended in answers} == {cached}
                assert len({text for text, _ in answers}) == 1

    runs(test)


def test_closing_the_iterator_cancels_at_the_next_step() -> None:
    async def test() -> None:
        network = GatedNetwork()
        async with opened(network) as engine:
            stream = engine.generate("s", HELLO, Sampling(max_tokens=300))
            network.allow(3)
            assert isinstance(await anext(stream), Piece)
            await asyncio.to_thread(lambda: [network.begun.acquire() for _ in range(4)])
            await stream.aclose()  # the fourth step has begun and may end
            network.allow(100)
            await collect(engine, "other", Sampling(max_tokens=1))
            assert engine.stats().running == 0
            assert len(network.batches) == 5  # four of the closed one, one of the other

    runs(test)


def test_cancelling_the_consumer_cancels_the_generation() -> None:
    async def test() -> None:
        network = GatedNetwork()
        async with opened(network) as engine:
            task = asyncio.create_task(collect(engine, "s", Sampling(max_tokens=300)))
            await asyncio.to_thread(network.begun.acquire)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            network.allow(100)
            await collect(engine, "other", Sampling(max_tokens=1))
            assert (engine.stats().running, len(network.batches)) == (0, 2)

    runs(test)


def test_cancel_ends_the_stream_with_its_reason() -> None:
    async def test() -> None:
        network = GatedNetwork()
        async with opened(network) as engine:
            task = asyncio.create_task(collect(engine, "s", Sampling(max_tokens=300)))
            await asyncio.to_thread(network.begun.acquire)
            await engine.cancel("s")
            await engine.cancel("nobody")
            network.allow(1)
            text, ended = await task
            assert (ended.reason, ended.completion_tokens, len(text)) == ("cancelled", 1, 1)

    runs(test)


def test_cancel_reaches_a_turn_whose_prompt_is_still_being_tokenised() -> None:
    async def test() -> None:
        network, prompt = CountingNetwork(), GatedPrompt()
        async with opened(network, prompt=prompt) as engine:
            task = asyncio.create_task(collect(engine, "s", Sampling(max_tokens=300)))
            await asyncio.to_thread(prompt.begun.wait)
            await engine.cancel("s")
            prompt.go_on.set()
            assert (await task)[1].reason == "cancelled"
            assert network.batches == []

    runs(test)


def test_a_session_whose_prompt_is_being_tokenised_is_busy() -> None:
    async def test() -> None:
        prompt = GatedPrompt()
        async with opened(CountingNetwork(), prompt=prompt) as engine:
            task = asyncio.create_task(collect(engine, "s", Sampling(max_tokens=2)))
            await asyncio.to_thread(prompt.begun.wait)
            with pytest.raises(EngineError, match="has a generation running"):
                await collect(engine, "s", Sampling())
            prompt.go_on.set()
            assert (await task)[1].reason == "length"

    runs(test)


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_computed() -> None:
    async def test() -> None:
        network = CountingNetwork()
        async with opened(network, context_tokens=PROMPT_TOKENS) as engine:
            with pytest.raises(PromptTooLong, match=f"{PROMPT_TOKENS} tokens, the context {PROMPT_TOKENS}"):
                await collect(engine, "s", Sampling())
            assert network.batches == []

    runs(test)


def test_max_tokens_is_lowered_to_what_the_context_holds() -> None:
    async def test() -> None:
        async with opened(CountingNetwork(), context_tokens=PROMPT_TOKENS + 3) as engine:
            _, ended = await collect(engine, "s", Sampling(max_tokens=500))
            assert (ended.reason, ended.completion_tokens) == ("length", 3)

    runs(test)


def test_a_second_generation_of_a_busy_session_is_refused() -> None:
    async def test() -> None:
        network, prompt = GatedNetwork(), GatedPrompt()
        prompt.go_on.set()
        async with opened(network, prompt=prompt) as engine:
            task = asyncio.create_task(collect(engine, "s", Sampling(max_tokens=300)))
            await asyncio.to_thread(network.begun.acquire)
            prompt.ended.clear()
            refused = asyncio.create_task(collect(engine, "s", Sampling()))
            await asyncio.to_thread(prompt.ended.wait)
            while not refused.done():  # it is seen between two steps
                network.allow(1)
                await asyncio.to_thread(network.begun.acquire)
            with pytest.raises(EngineError) as error:
                await refused
            assert error.value.code == "session_busy"
            network.allow(300)
            assert (await task)[1].reason == "length"

    runs(test)
