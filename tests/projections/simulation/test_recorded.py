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
from helix_projections.simulation.listener import Listener, hear
from helix_projections.simulation.offer import uniform
from helix_projections.simulation.outcome import Outcome
from helix_projections.simulation.recorded import Recording, recorded, recording_of
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.service import Service
from helix_projections.simulation.shop import Shop, simulate
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


@settings(max_examples=15, deadline=None)
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
    assert recording.guessed == recording.losses == 0
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


@pytest.mark.anyio
async def test_a_turn_that_was_cancelled_at_the_door_would_have_left_any_queue_then() -> None:
    session = e.SessionId("s")
    queued = e.TurnQueued(
        session=session, turn=1, mode="create", type="text", model="mistral", owner="ann", prompt=""
    )
    cancelled = e.TurnCancelled(session=session, turn=1, attempt=0, gpu=e.NO_GPU)
    heard = await hear(Records([e.Recorded(1, 1000, "", queued), e.Recorded(2, 5000, "", cancelled)]))
    recording = recording_of(heard, "a test")
    assert recording.arrivals[0].max_wait_ms == 4000
    assert recording.guessed == 1
    assert recording.outcome.measures()["unfinished"] == 1


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
    assert recording.guessed == was.measures()["unfinished"] > 0
    service = fit_heard(heard, Service()).services["a100-80/mistral"]
    # its GPUs were told to say 25 tokens/s, and 7 % more slowly for each further session
    assert service.weights_ms == pytest.approx(0.93 * 40, rel=0.05)
    assert service.session_ms == pytest.approx(0.07 * 40, rel=0.15)
    assert not service.serial
    again = simulate(Scenario(policy=recording.policy, offers=recording.offers), recording.arrivals)
    assert len(again.turns) == len(was.turns)
