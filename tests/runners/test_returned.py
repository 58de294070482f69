"""How turns end that this GPU could not do: given back, failed or cancelled; and what becomes of their sessions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helix_es.core import events as e
from helix_es.core.errors import EngineError, PromptTooLong
from helix_es.core.events import Failure
from helix_runners.faults import fault
from helix_runners.work import Job, Outcome, Output
from tests.runners.floor import BATCH, CHAT, GPU, PATIENCE_S, Floor, Pretended, echo, running

pytestmark = pytest.mark.anyio


class OutOfMemoryError(RuntimeError):
    """Called as torch calls it."""


def gives(outcome: Outcome) -> Any:
    async def perform(job: Job, output: Output) -> Outcome:
        return outcome

    return perform


def raises(error: Exception) -> Any:
    async def perform(job: Job, output: Output) -> Outcome:
        raise error

    return perform


FULL = Outcome(error=Failure(code="out_of_memory", message="no room"), retry=True)


async def returned(floor: Floor, session: str) -> e.TurnReturned:
    event = (await floor.turn(session, e.TurnReturned)).event
    assert isinstance(event, e.TurnReturned)
    return event


async def test_a_turn_without_memory_goes_back_and_its_session_stays_until_it_is_released(
    floor: Floor,
) -> None:
    work = Pretended()
    async with running(floor, work) as (runner, _):
        await floor.put(CHAT, 2)
        await floor.open("s1")
        await floor.answered("s1")
        work.do = gives(FULL)
        await floor.open("s2")
        event = await returned(floor, "s2")
        assert (event.turn, event.attempt, event.gpu, event.held) == (1, 1, GPU, 2)
        assert event.error == Failure(code="out_of_memory", message="no room")
        assert len(runner._bindings) == 2
        await floor.open("s3")
        assert await floor.another_gets() == "s3", "there is no slot yet"
        work.do = echo
        await floor.release("s2", "returned")
        await floor.admit("s2", attempt=2)
        ended = (await floor.turn("s2", e.TurnCompleted)).event
        assert isinstance(ended, e.TurnCompleted)
        assert (ended.attempt, ended.output) == (2, "Hello")
        await floor.go_on("s1", 2)
        await floor.answered("s1", 2)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("odd"), "runner_error"),
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (EngineError("no model is loaded"), "runner_error"),
    ],
)
async def test_what_nobody_expected_may_be_done_by_another(floor: Floor, error: Exception, code: str) -> None:
    async with running(floor, Pretended(raises(error))):
        await floor.put(CHAT, 1)
        await floor.open("s1")
        event = await returned(floor, "s1")
        assert event.error.code == code
        assert type(error).__name__ in event.error.message


async def test_what_is_the_requests_fault_fails(floor: Floor) -> None:
    async with running(floor, Pretended(gives(Outcome(error=Failure(code="prompt_too_long", message="x"))))):
        await floor.put(CHAT, 1)
        await floor.open("s1")
        event = (await floor.turn("s1", e.TurnFailed)).event
        assert isinstance(event, e.TurnFailed)
        assert event.error.code == "prompt_too_long"


async def test_a_turn_that_broke_the_engine_goes_back_before_the_runner_leaves(floor: Floor) -> None:
    work = Pretended()

    async def perform(job: Job, output: Output) -> Outcome:
        work.broken = "the device is lost"
        return Outcome(error=Failure(code="engine_error", message="illegal access"), retry=True)

    work.do = perform
    async with running(floor, work) as (_, serving):
        await floor.put(CHAT, 1)
        await floor.open("s1")
        with pytest.raises(ExceptionGroup) as raised:
            await asyncio.wait_for(serving, PATIENCE_S)
        assert raised.group_contains(EngineError, match="the device is lost")
        event = await returned(floor, "s1")
        assert event.error == Failure(code="engine_broken", message="illegal access")


async def test_a_turn_that_was_to_stop_is_not_tried_again(floor: Floor) -> None:
    begun, stop = asyncio.Event(), asyncio.Event()

    async def perform(job: Job, output: Output) -> Outcome:
        begun.set()
        await stop.wait()
        return FULL

    work = Pretended(perform)
    async with running(floor, work):
        await floor.put(CHAT, 1)
        await floor.open("s1")
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        await floor.say(e.TurnCancelling(session=e.SessionId("s1"), turn=1, gpu=GPU))
        async with asyncio.timeout(PATIENCE_S):
            while not work.cancelled:  # noqa: ASYNC110 - it is told by the log, not by us
                await asyncio.sleep(0.01)
        stop.set()
        await floor.turn("s1", e.TurnCancelled)


async def test_a_session_that_comes_back_before_its_release_was_heard_is_not_stopped_by_it(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[e.Recorded] = []
    gone_on = asyncio.Event()

    async def perform(job: Job, output: Output) -> Outcome:
        if job.turn.attempt == 1:
            return FULL
        await gone_on.wait()
        await output.say("still here")
        return Outcome(output="still here")

    work = Pretended(perform)
    async with running(floor, work) as (runner, _):
        hear = runner._hear

        async def late(record: e.Recorded) -> None:
            if isinstance(record.event, e.SessionReleased):
                held.append(record)
            else:
                await hear(record)

        monkeypatch.setattr(runner, "_hear", late)
        await floor.put(CHAT, 2)
        await floor.open("s1")
        await returned(floor, "s1")
        await floor.release("s1", "returned")
        await floor.admit("s1", attempt=2)
        await floor.turn("s1", e.TurnStarted, 2)
        await floor.say(e.TurnCancelling(session=e.SessionId("nobody"), turn=1, gpu=GPU))
        async with asyncio.timeout(PATIENCE_S):
            while not held:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.01)
        await hear(held[0])
        gone_on.set()
        ended = (await floor.answered("s1")).event
        assert isinstance(ended, e.TurnCompleted)
        assert ended.attempt == 2
        assert len(runner._bindings) == 1
        assert work.performed == [("s1", 1, 1), ("s1", 1, 2)]


async def test_who_was_released_is_not_spoken_for_any_more(floor: Floor) -> None:
    begun, released = asyncio.Event(), asyncio.Event()
    ended: list[Exception] = []

    async def perform(job: Job, output: Output) -> Outcome:
        begun.set()
        await released.wait()
        try:
            await output.step(1, 2)
        except Exception as error:
            ended.append(error)
            raise
        return Outcome(output="x")

    work = Pretended(perform)
    async with running(floor, work) as (runner, _):
        await floor.put(BATCH, 1)
        await floor.open("t1", BATCH)
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        await floor.release("t1", "preempted")
        await asyncio.wait_for(runner._bindings.room(), PATIENCE_S)
        assert work.cancelled == ["t1"]
        released.set()
        work.do = echo
        await floor.open("t2", BATCH)
        await floor.answered("t2")
        assert [type(error).__name__ for error in ended] == ["NotOurs"]
        facts = [type(record.event) for record in await floor.facts("session.t1.>")]
        assert facts[-1] is e.SessionReleased


async def test_a_fine_tune_hears_that_it_must_give_way(floor: Floor) -> None:
    begun = asyncio.Event()
    work = Pretended()

    async def perform(job: Job, output: Output) -> Outcome:
        begun.set()
        async with asyncio.timeout(PATIENCE_S):
            while not work.gave_way:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.01)
        await output.step(3, 9, checkpoint=["f1"])
        return Outcome(output="done")

    work.do = perform
    async with running(floor, work):
        await floor.put(BATCH, 1)
        await floor.open("t1", BATCH)
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        sid = e.SessionId("t1")
        yielding = e.TurnYielding(session=sid, turn=1, attempt=1, gpu=GPU, decided_seq=0, decided_at_ms=0)
        seq = await floor.say(yielding)
        kept = await floor.turn("t1", e.TurnProgressed)
        assert isinstance(kept.event, e.TurnProgressed)
        assert (kept.event.checkpoint, kept.seq > seq) == (["f1"], True)
        await floor.answered("t1")
        assert work.gave_way == ["t1"]


def test_whose_fault_it_is() -> None:
    assert fault(PromptTooLong("x")) == (Failure(code="prompt_too_long", message="x"), False)
    assert fault(EngineError("x", code="engine_stopped")) == (
        Failure(code="engine_broken", message="x"),
        True,
    )
    assert fault(EngineError("x", code="kv_budget_exceeded"))[1] is False
