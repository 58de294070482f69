"""One simulated GPU by itself: what frees a slot, and what came too late to."""

from __future__ import annotations

import pytest

from helix_es.core import events as e
from helix_runners.simulated.attempt import Attempt
from helix_runners.simulated.gpu import SimulatedGpu

pytestmark = pytest.mark.anyio

MISTRAL = e.Workload("create", "text", "mistral")


def admitted(session: str = "s1", model: str = "mistral") -> e.TurnAdmitted:
    return e.TurnAdmitted(
        session=e.SessionId(session),
        turn=1,
        attempt=1,
        mode="create",
        type="text",
        model=model,
        waited_ms=0,
        estimated_ms=None,
        reason="",
        decided_seq=0,
        decided_at_ms=0,
    )


def gpu(slots: int = 1) -> SimulatedGpu:
    return SimulatedGpu(e.GpuId("sim-0"), incarnation="i1", workload=MISTRAL, slots=slots, ready=True)


def seated(on: SimulatedGpu, seq: int, session: str = "s1") -> Attempt:
    """Seat a session there whose `started` is at `seq`."""
    event = admitted(session)
    started = e.TurnStarted(session=event.session, turn=1, attempt=1, gpu=on.gpu, incarnation="i1")
    attempt = on.seat(session, seq).attempt = Attempt(event, started, seq, on.stall)
    return attempt


async def test_who_is_being_started_takes_a_slot() -> None:
    one = gpu()
    assert one.accepts(admitted())
    start = one.begin("s1")
    assert not one.room
    assert not one.accepts(admitted("s2"))
    one.settle("s1", start)
    assert start.settled.done()
    assert one.room


async def test_only_what_it_is_assigned_is_accepted() -> None:
    one = gpu()
    assert not one.accepts(admitted(model="smollm2"))
    one.ready = False
    assert not one.accepts(admitted())


async def test_a_release_frees_the_slot_and_drops_the_turn() -> None:
    one = gpu()
    attempt = seated(one, 10)
    one.released("s1", 11)
    assert one.room
    assert attempt.dropped


async def test_a_release_from_before_it_was_seated_again_frees_nothing() -> None:
    one = gpu()
    before = seated(one, 10)
    attempt = seated(one, 20)
    assert before.dropped
    one.released("s1", 15)
    assert not one.room
    assert not attempt.stopped


async def test_a_release_heard_before_our_own_started_was_acknowledged_is_remembered() -> None:
    one = gpu()
    start = one.begin("s1")
    one.released("s1", 12)
    assert start.released_seq == 12


async def test_a_stop_is_for_the_turn_that_it_names() -> None:
    one = gpu()
    attempt = seated(one, 10)
    one.cancelling("s1", 2)
    assert not attempt.stopped
    one.cancelling("s1", 1)
    assert attempt.stopped
    assert not attempt.dropped


async def test_a_gpu_that_was_given_up_holds_nobody() -> None:
    one = gpu(slots=3)
    attempt = seated(one, 10)
    start = one.begin("s2")
    one.give_up()
    assert attempt.dropped
    assert one.taken == 0
    assert not one.ready
    one.settle("s2", start)
    assert start.settled.done(), "whoever waits for it goes on"


async def test_the_emptier_it_is_the_sooner_it_is_served() -> None:
    one = gpu(slots=4)
    loads = [one.load]
    for index in range(4):
        seated(one, index, f"s{index}")
        loads.append(one.load)
    assert loads == [0, 2, 5, 7, 9]
