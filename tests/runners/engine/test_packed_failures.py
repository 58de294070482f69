"""What happens to streams when a step fails, the engine closes or a consumer's loop is gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from helix_es.core.errors import EngineError
from helix_runners.engine.network import Network
from helix_runners.engine.packed import PackedEngine, Parts
from helix_runners.engine.port import Sampling
from tests.runners.engine.engines import HELLO, collect, opened, runs
from tests.runners.engine.models import CountingNetwork, GatedNetwork, limits, llama


def test_a_failed_step_ends_its_turns_and_the_engine_stays_usable() -> None:
    async def test() -> None:
        network = CountingNetwork()
        async with opened(network) as engine:
            network.fail_with = [RuntimeError("shapes differ")]
            with pytest.raises(EngineError, match="shapes differ") as failed:
                await collect(engine, "s", Sampling())
            assert failed.value.code == "engine_error"
            assert engine.stats().cache_bytes == 0
            assert (await collect(engine, "s", Sampling(max_tokens=2)))[1].cached_tokens == 0

    runs(test)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_a_step_without_memory_says_so(error: Exception) -> None:
    async def test() -> None:
        network = CountingNetwork()
        async with opened(network) as engine:
            network.fail_with = [error]
            with pytest.raises(EngineError) as failed:
                await collect(engine, "s", Sampling())
            assert failed.value.code == "out_of_memory"
            assert engine.stopped is None
            await collect(engine, "s", Sampling(max_tokens=2))

    runs(test)


def test_after_an_allocation_that_failed_the_other_sessions_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real model: the keys and values of a long conversation find no room, and nothing of it stays."""

    async def test() -> None:
        network = Network(llama())
        room = limits(budget_tokens=1_000_000, step_tokens=64)
        async with opened(network, room) as engine:  # type: ignore[arg-type]  # a real one
            before, _ = await collect(engine, "kept", Sampling(max_tokens=8))
            held = engine.stats().cache_bytes
            empty, batches = torch.empty, []

            def full(*args: Any, **options: Any) -> torch.Tensor:
                batches.append(args)
                if len(batches) == 2:  # the second layer's: the first one's is there already
                    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
                return empty(*args, **options)

            with monkeypatch.context() as patched:
                patched.setattr(torch, "empty", full)
                with pytest.raises(EngineError) as failed:
                    await collect(engine, "large", Sampling(max_tokens=300))
            assert failed.value.code == "out_of_memory"
            assert engine.stats().cache_bytes == held, "what it had is free, what others keep is there"
            again, finished = await collect(engine, "kept", Sampling(max_tokens=8))
            assert again == before
            assert finished.cached_tokens > 0
            await collect(engine, "large", Sampling(max_tokens=8))

    runs(test)


def test_an_engine_whose_steps_keep_failing_stops_and_says_so() -> None:
    async def test() -> None:
        network = CountingNetwork()
        async with opened(network) as engine:
            network.fail_with = [RuntimeError("device lost") for _ in range(3)]
            for _ in range(3):
                with pytest.raises(EngineError, match="device lost"):
                    await collect(engine, "s", Sampling())
            with pytest.raises(EngineError, match="device lost") as stopped:
                await collect(engine, "s", Sampling())
            assert stopped.value.code == "engine_stopped"
            assert engine.stopped is not None
            await engine.cancel("s")
            await engine.forget("s")

    runs(test)


def test_closing_ends_what_runs_and_what_waits() -> None:
    async def test() -> None:
        network = GatedNetwork()
        async with opened(network, limits(max_batch=1, step_tokens=64)) as engine:
            tasks = [asyncio.create_task(collect(engine, name, Sampling(max_tokens=99))) for name in "ab"]
            await asyncio.to_thread(network.begun.acquire)
            closing = asyncio.create_task(engine.close())
            await asyncio.sleep(0)  # the command to stop is posted
            network.allow(1)
            await closing
            for task in tasks:
                with pytest.raises(EngineError, match="closed"):
                    await task
            with pytest.raises(EngineError, match="closed"):
                await collect(engine, "c", Sampling())
            await engine.close()

    runs(test)


def test_an_idle_engine_computes_nothing() -> None:
    async def test() -> None:
        network = CountingNetwork()
        async with opened(network) as engine:
            await collect(engine, "s", Sampling(max_tokens=2))
            woken = len(network.batches)
            await engine.forget("s")
            await collect(engine, "t", Sampling(max_tokens=1))
            assert len(network.batches) == woken + 1

    runs(test)


def test_what_loading_raises_reaches_the_caller() -> None:
    def load() -> Parts:
        raise EngineError("no weights")

    with pytest.raises(EngineError, match="no weights"):
        PackedEngine(load)


def test_a_loop_that_is_gone_does_not_harm_the_engine() -> None:
    network = GatedNetwork()
    engines: list[PackedEngine] = []

    async def leave() -> None:
        context = opened(network)
        engines.append(await context.__aenter__())
        stream = engines[0].generate("s", HELLO, Sampling(max_tokens=300))
        network.allow(1)
        await anext(stream)
        # neither the stream nor the engine is closed: the loop just ends

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    network.allow(3)

    async def again() -> None:
        network.allow(100)
        assert (await collect(engines[0], "t", Sampling(max_tokens=2)))[1].reason == "length"
        assert engines[0].stats().running == 0
        await engines[0].close()

    runs(again)
