"""A log is read back as what made it: its arrivals, fleet and rules give the same outcome again."""

from __future__ import annotations

import lzma
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from helix_es.archive import JsonLines
from helix_es.core import events as e
from helix_es.core.errors import Unreadable
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.fit import fit_heard
from helix_projections.simulation.heard import Heard
from helix_projections.simulation.listener import Listener, hear
from helix_projections.simulation.offer import uniform
from helix_projections.simulation.outcome import Outcome
from helix_projections.simulation.recorded import Recording, recorded, recording_of
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.service import Service
from helix_projections.simulation.shop import Shop, simulate
from tests.examples import many
from tests.projections.simulation.floor import OPEN_MS, WORK, arrivals

CHAOS = Path(__file__).parents[2] / "data/logs/chaos.jsonl.xz"
TUNE = e.Workload("finetune", "text", "mistral")


def read_back(shop: Shop) -> Recording:
    listener = Listener()
    for record in shop.records:
        listener.take(record)
    return recording_of(listener.heard, "a test")


def waits(outcome: Outcome) -> list[tuple[str, int, int | None, int | None, int | None]]:
    return sorted(
        (turn.session, turn.turn, turn.took_ms("wait"), turn.took_ms("start"), turn.took_ms("first_token"))
        for turn in outcome.turns
    )


class Records:
    """An archive in memory."""

    name = "records"

    def __init__(self, records: list[e.Recorded]) -> None:
        self._records = records

    async def read(self, after_seq: int = 0) -> AsyncIterator[list[e.Recorded]]:
        yield self._records[after_seq:]


@settings(max_examples=many(15), deadline=None)
@given(
    seed=st.integers(0, 1000),
    gap_ms=st.sampled_from([50, 300, 2000]),
    gpus=st.integers(1, 4),
    slots=st.integers(1, 4),
    closes_ms=st.sampled_from([None, 0, 700]),
)
def test_what_was_recorded_has_the_outcome_that_the_simulation_told(
    seed: int, gap_ms: int, gpus: int, slots: int, closes_ms: int | None
) -> None:
    turns = arrivals(seed, sessions=40, gap_ms=gap_ms)
    last = {each.session: each.turn for each in turns}
    turns = [
        replace(each, closes_ms=closes_ms if each.turn == last[each.session] else None) for each in turns
    ]
    shop = Shop(Scenario(offers=uniform(gpus, WORK, slots=slots), open_ms=OPEN_MS), turns)
    shop.run()
    told, recording = shop.outcome(), read_back(shop)
    assert waits(recording.outcome) == waits(told)
    assert len(recording.arrivals) == len(turns)
    assert recording.guessed == recording.left_out == recording.losses == 0
    real, simulated = recording.outcome, told
    assert (real.released, real.preempted, real.ended_ms) == (
        simulated.released,
        simulated.preempted,
        simulated.ended_ms,
    )
    assert real.busy_ms == simulated.busy_ms
    # the recording is counted from the log's first record, the simulation from its opening
    assert real.present_ms == simulated.present_ms + gpus * OPEN_MS


def test_a_recording_simulated_under_its_own_rules_has_the_same_waits() -> None:
    shop = Shop(Scenario(offers=uniform(3, WORK, slots=2), open_ms=OPEN_MS), arrivals(5, 120, gap_ms=400))
    shop.run()
    recording = read_back(shop)
    again = simulate(Scenario(policy=recording.policy, offers=recording.offers), recording.arrivals)
    was, now = recording.outcome.measures(), again.measures()
    assert was["wait_p95_ms"] is not None
    assert was["wait_p95_ms"] > 1000
    for name in ("wait_p50_ms", "wait_p95_ms", "first_token_p95_ms", "start_p99_ms"):
        assert now[name] == pytest.approx(was[name], rel=0.02), name


def test_a_fine_tune_is_recorded_with_the_work_that_was_not_lost() -> None:
    turns = [
        Arrival(at_ms=0, session="t", turn=1, work_ms=60_000, workload=TUNE),
        *(
            Arrival(at_ms=20_000, session=f"s{n}", turn=1, prompt_tokens=80, output_tokens=300, closes_ms=0)
            for n in range(4)
        ),
    ]
    shop = Shop(Scenario(offers=uniform(1, WORK, slots=2, batch=True), open_ms=OPEN_MS), turns)
    shop.run()
    assert shop.outcome().preempted == 1
    recording = read_back(shop)
    tune = next(each for each in recording.arrivals if each.workload == TUNE)
    assert tune.work_ms == pytest.approx(60_000, abs=5)
    assert recording.outcome.measures()["preempted"] == 1


@pytest.mark.anyio
async def test_an_archive_is_heard_and_one_in_which_nobody_speaks_is_refused() -> None:
    shop = Shop(Scenario(offers=uniform(1, WORK, slots=2)), arrivals(1, 3, gap_ms=100))
    shop.run()
    assert (await recorded(Records(shop.records))).arrivals == read_back(shop).arrivals
    with pytest.raises(Unreadable, match="nobody said anything"):
        await recorded(Records(shop.records[:1]))


def told(events: list[e.AnyEvent]) -> Heard:
    """Return what a log of `events` tells, one a second."""
    listener = Listener()
    for n, event in enumerate(events):
        listener.take(e.Recorded(n + 1, 1000 * (n + 1), "", event))
    return listener.heard


def queued(session: str, turn: int = 1, workload: e.Workload = WORK) -> e.TurnQueued:
    return e.TurnQueued(
        session=e.SessionId(session),
        turn=turn,
        mode=workload.mode,
        type=workload.type,
        model=workload.model,
        owner="ann",
        prompt="",
    )


def cancelled(session: str) -> e.TurnCancelled:
    return e.TurnCancelled(session=e.SessionId(session), turn=1, attempt=0, gpu=e.NO_GPU)


def test_turns_that_ended_before_their_first_token_are_left_out_of_both_rows() -> None:
    failure = e.Failure(code="wait_exceeded", message="no slot came free")
    failed = e.TurnFailed(session=e.SessionId("b"), turn=1, attempt=0, gpu=e.NO_GPU, error=failure)
    closed = e.SessionClosed(session=e.SessionId("c"))
    events = [queued("a"), cancelled("a"), queued("b"), failed, queued("c"), closed, queued("a", 2)]
    recording = recording_of(told(events), "a test")
    assert (recording.left_out, recording.gave_up, recording.guessed) == (3, 1, 1)
    # the second turn of `a` is its first that anybody could compare
    assert [(each.session, each.turn, each.think_ms) for each in recording.arrivals] == [("a", 1, None)]
    assert [(each.session, each.turn) for each in recording.outcome.turns] == [("a", 1)]
    with pytest.raises(Unreadable, match="every turn in it was cancelled or failed before its first token"):
        recording_of(told(events[:6]), "a test")


def test_a_fine_tune_that_was_cancelled_while_it_ran_is_as_long_as_what_was_computed() -> None:
    turns = [Arrival(at_ms=0, session="t", turn=1, work_ms=60_000, workload=TUNE)]
    shop = Shop(Scenario(offers=uniform(1, WORK, slots=2, batch=True), open_ms=OPEN_MS), turns)
    shop.run()
    listener = Listener()
    started = None
    for record in shop.records:
        if not isinstance(record.event, e.TurnCompleted):
            listener.take(record)
        if isinstance(record.event, e.TurnStarted):
            started = record
            break
    assert started is not None
    event = started.event
    assert isinstance(event, e.TurnStarted)
    stop = e.TurnCancelled(session=event.session, turn=1, attempt=event.attempt, gpu=event.gpu)
    listener.take(e.Recorded(started.seq + 1, started.at_ms + 7_000, "", stop))
    recording = recording_of(listener.heard, "a test")
    assert [each.work_ms for each in recording.arrivals] == [7_000]
    assert (recording.left_out, recording.outcome.measures()["unfinished"]) == (0, 0)


@pytest.mark.anyio
async def test_the_log_of_a_fault_run_is_heard_whole_and_its_service_found(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(lzma.decompress(CHAOS.read_bytes()))
    heard = await hear(JsonLines(path))
    recording = recording_of(heard, "a test")
    was = recording.outcome
    assert len(was.turns) == len(recording.arrivals) == was.measures()["turns"] + was.measures()["finetunes"]  # type: ignore[operator]
    assert 0 < was.held_ms <= was.offered_ms
    assert 0 < was.busy_ms <= was.present_ms
    assert recording.losses > 10
    assert recording.guessed == was.measures()["unfinished"]
    assert recording.left_out == len(heard.turns) - len(was.turns) > 0
    service = fit_heard(heard, Service()).services["a100-80/mistral"]
    # its GPUs were told to say 25 tokens/s, and 7 % more slowly for each further session
    assert service.weights_ms == pytest.approx(0.93 * 40, rel=0.05)
    assert service.session_ms == pytest.approx(0.07 * 40, rel=0.15)
    assert not service.serial
    again = simulate(Scenario(policy=recording.policy, offers=recording.offers), recording.arrivals)
    assert len(again.turns) == len(was.turns)
    arrived = {(each.session, each.turn) for each in recording.arrivals}
    assert {(each.session, each.turn) for each in again.turns} == arrived
    assert {(each.session, each.turn) for each in was.turns} == arrived
