"""What a runner is for may change: slots go up and down, models and kinds of work come and go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helix_es.core import events as e
from helix_es.core.errors import EngineError
from tests.runners.floor import (
    BATCH,
    CHAT,
    GPU,
    OTHER,
    PATIENCE_S,
    PICTURES,
    Floor,
    Pretended,
    offer,
    running,
)

pytestmark = pytest.mark.anyio


async def started(floor: Floor) -> list[str]:
    """Return whose turns this GPU has started."""
    records = await floor.facts(f"session.*.turn.started.{GPU}")
    return [record.event.session for record in records if isinstance(record.event, e.TurnStarted)]


async def test_a_runner_says_what_it_offers_and_for_which_pool(floor: Floor) -> None:
    async with running(floor, Pretended(), offer(pool="night")):
        joined = (await floor.facts(f"gpu.{GPU}.joined"))[0].event
        assert isinstance(joined, e.GpuJoined)
        assert joined.workloads == [CHAT, OTHER, PICTURES, BATCH]
        assert joined.pool == "night"
        assert joined.slots == {"smollm2": 2, "mistral": 2, "scenes": 2}


async def test_every_assignment_is_answered_and_a_loaded_model_is_not_loaded_again(floor: Floor) -> None:
    work = Pretended()
    async with running(floor, work):
        for slots in (1, 3, 0, 2):
            ready = (await floor.put(CHAT, slots)).event
            assert isinstance(ready, e.GpuReady)
            assert (ready.model, ready.incarnation) == ("smollm2", "i1")
            assert (ready.load_ms > 0) == (slots == 1), "what the first took is not told again"
        assert work.loads == [CHAT]


async def test_slots_go_up(floor: Floor) -> None:
    async with running(floor, Pretended()):
        await floor.put(CHAT, 1)
        await floor.open("s1")
        await floor.answered("s1")
        await floor.open("s2")  # s1 is bound: it waits
        assert await started(floor) == ["s1"]
        await floor.put(CHAT, 2)
        await floor.answered("s2")


async def test_a_gpu_that_drains_takes_nobody_new_and_goes_on_with_who_is_bound(floor: Floor) -> None:
    async with running(floor, Pretended()):
        await floor.put(CHAT, 2)
        await floor.open("s1")
        await floor.answered("s1")
        await floor.put(CHAT, 0)
        await floor.open("s2")
        assert await floor.another_gets() == "s2", "the task of the pull that waited was given back"
        await floor.go_on("s1", 2)
        await floor.answered("s1", 2)
        assert await started(floor) == ["s1", "s1"]


async def test_slots_that_go_down_throw_nobody_out(floor: Floor) -> None:
    async with running(floor, Pretended()):
        await floor.put(CHAT, 3)
        for name in ("s1", "s2", "s3"):
            await floor.open(name)
            await floor.answered(name)
        await floor.put(CHAT, 2)
        await floor.release("s1")
        await floor.go_on("s2", 2)
        await floor.answered("s2", 2)
        await floor.open("s4")
        assert await floor.another_gets() == "s4", "two are bound, and there are two slots"
        await floor.release("s2")
        await floor.open("s5")
        await floor.answered("s5")


async def test_ready_waits_for_whoever_is_being_seated(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, reached = asyncio.Event(), asyncio.Event()
    async with running(floor, Pretended()) as (runner, _):
        append = runner._log.append

        async def gated(event: e.AnyEvent, **options: Any) -> int:
            if isinstance(event, e.TurnStarted):
                reached.set()
                await gate.wait()
            return await append(event, **options)

        monkeypatch.setattr(runner._log, "append", gated)
        await floor.put(CHAT, 1)
        await floor.open("s1")
        await asyncio.wait_for(reached.wait(), PATIENCE_S)
        assigned = await floor.assign(CHAT, 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(floor.ready(assigned), 0.5)
        gate.set()
        ready = await floor.ready(assigned)
        assert (await floor.turn("s1", e.TurnStarted)).seq < ready.seq
        await floor.answered("s1")


async def test_a_gpu_is_given_to_another_model_and_back(floor: Floor) -> None:
    work = Pretended()
    async with running(floor, work):
        await floor.put(CHAT, 2)
        await floor.open("s1")
        await floor.answered("s1")
        await floor.put(CHAT, 0, next=OTHER)
        await floor.release("s1")
        await floor.put(OTHER, 2)
        await floor.open("s2", OTHER)
        await floor.answered("s2")
        await floor.go_on("s2", 2, OTHER)  # its own line goes on
        await floor.answered("s2", 2)
        await floor.open("s3", CHAT)
        assert await floor.another_gets(CHAT) == "s3", "it pulls no more from the line that it served"
        await floor.put(OTHER, 0)
        await floor.release("s2")
        await floor.put(CHAT, 1)
        await floor.open("s4", CHAT)
        await floor.answered("s4")
        assert work.loads == [CHAT, OTHER, CHAT]


async def test_what_a_gpu_is_for_decides_the_mode(floor: Floor) -> None:
    work = Pretended()
    async with running(floor, work):
        await floor.put(BATCH, 1)
        await floor.open("t1", BATCH)
        await floor.answered("t1")
        await floor.open("s1", CHAT)
        await floor.release("t1", "ended")
        await floor.put(BATCH, 0, next=CHAT)
        await floor.put(CHAT, 1)
        await floor.answered("s1")
        assert work.loads == [BATCH, CHAT]


async def test_the_old_line_ends_beside_the_new_one(floor: Floor) -> None:
    async with running(floor, Pretended()):
        await floor.put(CHAT, 1)  # from now on a pull waits in its line
        async with asyncio.timeout(1.9):  # sooner than that pull ends
            await floor.put(CHAT, 0)
            await floor.put(OTHER, 1)
            await floor.open("s1", OTHER)
            await floor.answered("s1")
        await floor.open("s2", CHAT)
        assert await floor.another_gets(CHAT) == "s2"


async def test_what_was_not_offered_ends_the_runner(floor: Floor) -> None:
    async with running(floor, Pretended(), offer(CHAT)) as (_, serving):
        await floor.assign(OTHER, 1)
        with pytest.raises(ExceptionGroup) as raised:
            await asyncio.wait_for(serving, PATIENCE_S)
        assert raised.group_contains(
            EngineError, match="create/text/mistral, which this runner does not offer"
        )


async def test_a_model_that_cannot_be_loaded_ends_the_runner(floor: Floor) -> None:
    work = Pretended()
    async with running(floor, work) as (_, serving):
        await floor.put(CHAT, 0)
        work.load_error = EngineError("no weights")
        await floor.assign(OTHER, 1)
        with pytest.raises(ExceptionGroup) as raised:
            await asyncio.wait_for(serving, PATIENCE_S)
        assert raised.group_contains(EngineError, match="no weights")
        assert work.closed
        await floor.until(f"gpu.{GPU}.left", lambda fact: True)


async def test_a_gpu_that_is_not_needed_leaves_when_nobody_is_bound(floor: Floor) -> None:
    work = Pretended()
    async with running(floor, work) as (_, serving):
        await floor.put(CHAT, 2)
        await floor.open("s1")
        await floor.answered("s1")
        ready = await floor.put(CHAT, 0, leaving=True)
        await floor.go_on("s1", 2)
        await floor.answered("s1", 2)
        assert not serving.done()
        await floor.release("s1", "drained")
        await asyncio.wait_for(serving, PATIENCE_S)
        left = await floor.until(f"gpu.{GPU}.left", lambda fact: True)
        assert left.seq > ready.seq
        assert work.closed


async def test_a_gpu_that_holds_nobody_leaves_at_once_after_it_said_so(floor: Floor) -> None:
    async with running(floor, Pretended()) as (_, serving):
        await floor.put(CHAT, 2)
        assigned = await floor.assign(CHAT, 2, leaving=True)  # whatever its slots, it takes nobody
        await asyncio.wait_for(serving, PATIENCE_S)
        facts = [record.event for record in await floor.facts(f"gpu.{GPU}.>")][-2:]
        assert isinstance(facts[0], e.GpuReady)
        assert facts[0].assigned_seq == assigned
        assert isinstance(facts[1], e.GpuLeft)


async def test_a_gpu_that_is_needed_after_all_stays(floor: Floor) -> None:
    async with running(floor, Pretended()) as (_, serving):
        await floor.put(CHAT, 1)
        await floor.open("s1")
        await floor.answered("s1")
        await floor.put(CHAT, 0, leaving=True)
        await floor.put(CHAT, 1)
        await floor.release("s1")
        await floor.open("s2")
        await floor.answered("s2")
        assert not serving.done()


async def test_a_gpu_that_was_silent_begins_a_new_life_and_takes_nobody_before_it_is_assigned(
    floor: Floor,
) -> None:
    work = Pretended()
    async with running(floor, work):
        await floor.put(CHAT, 2)
        await floor.open("s1")
        await floor.answered("s1")
        await floor.lose("i1")
        assert await floor.joined(life=2) == "i2"
        await floor.release("s1", "lost")
        await floor.open("s2")
        assert await floor.another_gets() == "s2"
        await floor.assign(CHAT, 2, incarnation="i1")  # said to the life that is over
        await floor.put(CHAT, 1, incarnation="i2")
        await floor.open("s3")
        await floor.answered("s3")
        assert work.loads == [CHAT], "the weights are still there"
        assert await started(floor) == ["s1", "s3"]


async def test_who_is_being_seated_when_the_gpu_is_given_up_holds_no_slot_of_its_new_life(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, reached = asyncio.Event(), asyncio.Event()
    async with running(floor, Pretended()) as (runner, _):
        append = runner._log.append

        async def gated(event: e.AnyEvent, **options: Any) -> int:
            if isinstance(event, e.TurnStarted) and event.session == "s1":
                reached.set()
                await gate.wait()
            return await append(event, **options)

        monkeypatch.setattr(runner._log, "append", gated)
        await floor.put(CHAT, 1)
        await floor.open("s1")
        await asyncio.wait_for(reached.wait(), PATIENCE_S)
        await floor.lose("i1")
        gate.set()
        await floor.joined(life=2)
        await floor.put(CHAT, 1, incarnation="i2")
        await floor.open("s2")
        await floor.answered("s2")
