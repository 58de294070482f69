"""Fine-tunes, pictures and several models share one floor: nobody is forgotten, and no work is done twice."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from helix_es.core import events as e
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.offer import Offer, uniform
from helix_projections.simulation.outcome import Outcome
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.service import Service
from helix_projections.simulation.shop import Shop, simulate
from helix_projections.simulation.traces import merged
from tests.examples import many
from tests.projections.simulation.floor import OPEN_MS, WORK, arrivals, most_held

TUNE = e.Workload("finetune", "text", "mistral")
DRAW = e.Workload("create", "image", "sdxl")
SMALL = e.Workload("create", "text", "smollm2")


def tunes(count: int, work_ms: int, every_ms: int) -> list[Arrival]:
    return [
        Arrival(at_ms=n * every_ms, session=f"t{n}", turn=1, work_ms=work_ms, workload=TUNE)
        for n in range(count)
    ]


def started_after_ms(outcome: Outcome, workload: e.Workload) -> list[int | None]:
    return [turn.took_ms("start") for turn in outcome.turns if turn.workload == workload]


def test_a_fine_tune_runs_for_its_work_on_a_gpu_that_is_kept_free() -> None:
    policy = e.Policy(reserved=1)
    turns = list(merged(arrivals(3, sessions=200, gap_ms=50), tunes(3, work_ms=30_000, every_ms=40_000)))
    found = simulate(
        Scenario(policy=policy, offers=uniform(3, WORK, slots=2, batch=True), open_ms=OPEN_MS), turns
    )
    assert started_after_ms(found, TUNE) == [0, 0, 0]
    ended = [turn for turn in found.turns if turn.workload == TUNE]
    assert [turn.ended_ms - turn.started_ms for turn in ended if turn.ended_ms and turn.started_ms] == [
        30_000
    ] * 3
    assert (found.measures()["first_wait_p50_ms"] or 0) > 10_000  # chats had to queue meanwhile


def test_a_fine_tune_that_gave_way_goes_on_with_the_rest() -> None:
    turns = [
        *tunes(1, work_ms=60_000, every_ms=1),
        *(
            Arrival(at_ms=20_000, session=f"s{n}", turn=1, prompt_tokens=80, output_tokens=300, closes_ms=0)
            for n in range(4)
        ),
    ]
    shop = Shop(Scenario(offers=uniform(1, WORK, slots=2, batch=True), open_ms=OPEN_MS), turns)
    shop.run()
    found = shop.outcome()
    assert found.preempted == 1
    run_ms, begun = 0, 0
    for record in shop.records:
        if isinstance(record.event, e.TurnStarted) and record.event.session == "t0":
            begun = record.at_ms
        elif isinstance(record.event, e.SessionReleased) and record.event.session == "t0":
            run_ms += record.at_ms - begun
    assert run_ms == pytest.approx(60_000, abs=300)  # what ran between its checkpoint and its release is lost
    assert found.measures()["unfinished"] == 0


def test_a_checkpoint_that_comes_too_late_loses_the_attempt() -> None:
    slow = Service(checkpoint_ms=60_000)
    turns = [
        *tunes(1, work_ms=40_000, every_ms=1),
        Arrival(at_ms=20_000, session="s", turn=1, prompt_tokens=80, output_tokens=300, closes_ms=0),
    ]
    scenario = Scenario(offers=uniform(1, WORK, slots=2, batch=True), open_ms=OPEN_MS, service=slow)
    shop = Shop(scenario, turns)
    shop.run()
    starts = [r.at_ms for r in shop.records if isinstance(r.event, e.TurnStarted) and r.event.session == "t0"]
    ends = [r.at_ms for r in shop.records if isinstance(r.event, e.TurnCompleted) and r.event.session == "t0"]
    assert len(starts) == 2
    assert ends[0] - starts[1] == 40_000


def test_pictures_share_their_gpu_in_turns() -> None:
    turns = [
        Arrival(at_ms=0, session=f"d{n}", turn=1, work_ms=1000 * (n + 1), workload=DRAW) for n in range(2)
    ]
    offers = [Offer(gpu=e.GpuId("g"), kind="l4-24", workloads=[DRAW], slots={"sdxl": 2})]
    found = simulate(Scenario(offers=offers, open_ms=OPEN_MS), turns)
    took = {turn.session: turn.took_ms("first_token") for turn in found.turns}
    assert took == {"d0": 2000, "d1": 3000}
    assert found.measures()["pictures"] == 2
    assert found.measures()["first_token_p50_ms"] is None  # no chat


def test_each_kind_of_gpu_takes_its_own_time_for_each_model() -> None:
    services = {"l4-24/smollm2": Service(prefill_tokens_per_s=1000.0), "a100-80/mistral": Service()}
    offers = [
        *uniform(1, WORK, slots=1),
        Offer(gpu=e.GpuId("l4-0"), kind="l4-24", workloads=[SMALL], slots={"smollm2": 1}),
    ]
    turns = [
        Arrival(at_ms=0, session="a", turn=1, prompt_tokens=800, workload=WORK),
        Arrival(at_ms=0, session="b", turn=1, prompt_tokens=800, workload=SMALL),
    ]
    found = simulate(Scenario(offers=offers, services=services, open_ms=OPEN_MS), turns)
    assert {turn.session: turn.took_ms("first_token") for turn in found.turns} == {"a": 100, "b": 800}


def test_who_would_rather_fail_than_wait_is_given_up_and_counted() -> None:
    turns = [
        Arrival(at_ms=0, session="a", turn=1, prompt_tokens=80, output_tokens=2000),
        Arrival(at_ms=0, session="b", turn=1, prompt_tokens=80, output_tokens=10, max_wait_ms=3000),
        Arrival(at_ms=1, session="b", turn=2, prompt_tokens=80, output_tokens=10),
    ]
    found = simulate(Scenario(offers=uniform(1, WORK, slots=1), open_ms=OPEN_MS), turns)
    assert found.measures()["unfinished"] == 1
    failed = next(turn for turn in found.turns if turn.failed)
    assert failed.ended_ms == pytest.approx(OPEN_MS + 3000, abs=250)
    assert found.share("all", "first_token", 3_600_000) == pytest.approx(2 / 3)


def test_a_closed_loop_waits_for_the_answer_and_then_thinks() -> None:
    turns = [
        Arrival(at_ms=0, session="a", turn=1, prompt_tokens=8000, output_tokens=1),
        Arrival(at_ms=10, session="a", turn=2, prompt_tokens=8000, known_tokens=8000, think_ms=500),
    ]
    found = simulate(Scenario(offers=uniform(1, WORK, slots=1), open_ms=OPEN_MS), turns)
    assert [turn.said_ms - OPEN_MS for turn in found.turns] == [0, 1500]


def test_delays_of_scheduler_and_start_add_to_every_wait() -> None:
    turns = [Arrival(at_ms=0, session="a", turn=1, prompt_tokens=80)]
    scenario = Scenario(offers=uniform(1, WORK, slots=1), open_ms=OPEN_MS, decide_ms=7, start_ms=5)
    (turn,) = simulate(scenario, turns).turns
    assert (turn.took_ms("wait"), turn.took_ms("start"), turn.took_ms("first_token")) == (7, 12, 22)


@settings(max_examples=many(10), deadline=None)
@given(
    seed=st.integers(0, 1000),
    gpus=st.integers(1, 4),
    reserved=st.integers(0, 2),
    work_ms=st.sampled_from([500, 20_000, 90_000]),
    starve_after_ms=st.sampled_from([1_000, 30_000]),
    decide_ms=st.sampled_from([0, 20, 300]),
)
def test_on_a_mixed_floor_everything_ends_once_and_within_its_slots(
    seed: int, gpus: int, reserved: int, work_ms: int, starve_after_ms: int, decide_ms: int
) -> None:
    kinds = [WORK, SMALL, DRAW, TUNE]
    offers = [
        Offer(
            gpu=e.GpuId(f"g{n}"),
            kind="a100-80",
            workloads=kinds,
            slots={"mistral": 2, "smollm2": 3, "sdxl": 1},
        )
        for n in range(gpus + reserved)
    ]
    small = (
        replace(each, session=f"x{each.session}", workload=SMALL)
        for each in arrivals(seed + 1, 20, gap_ms=900)
    )
    drawn = (Arrival(at_ms=n * 4000, session=f"d{n}", turn=1, work_ms=1500, workload=DRAW) for n in range(6))
    said = list(merged(arrivals(seed, 25, gap_ms=700), small, drawn, tunes(4, work_ms, every_ms=9_000)))
    policy = e.Policy(reserved=reserved, starve_after_ms=starve_after_ms, idle_after_ms=2_000)
    scenario = Scenario(
        policy=policy, offers=offers, service=Service(load_ms=3_000), decide_ms=decide_ms, start_ms=decide_ms
    )
    shop = Shop(scenario, said)
    shop.run()
    ended = Counter(r.event.session for r in shop.records if isinstance(r.event, e.TurnCompleted))
    assert ended == Counter(each.session for each in said)
    assert shop.state.misfits == 0
    assert max(chain(most_held(shop.records).values(), [0])) <= 3
    found = shop.outcome()
    assert found.measures()["unfinished"] == 0
    assert 0 <= found.held_ms <= found.offered_ms
    assert 0 < found.busy_ms <= found.present_ms


def test_the_same_scenario_gives_the_same_outcome() -> None:
    said = list(merged(arrivals(2, 60, gap_ms=100), tunes(3, 20_000, every_ms=5_000)))
    scenario = Scenario(offers=uniform(3, WORK, slots=2, batch=True), open_ms=OPEN_MS)
    assert simulate(scenario, said) == simulate(scenario, said)
