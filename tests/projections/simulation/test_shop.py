"""The simulated shop keeps the rules of the real one, serves everybody, and is the same each time."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_es.core.snapshot import dump
from helix_projections.simulation.arrival import Arrival
from tests.examples import many
from tests.projections.simulation.floor import OPEN_MS, arrivals, mooncake_shop, most_held, simulated


def ends(records: list[e.Recorded]) -> Counter[tuple[str, int]]:
    return Counter(
        (each.event.session, each.event.turn) for each in records if isinstance(each.event, e.TurnCompleted)
    )


@settings(max_examples=many(25), deadline=None)
@given(
    seed=st.integers(0, 1000),
    gap_ms=st.sampled_from([20, 200, 2000]),
    gpus=st.integers(1, 4),
    slots=st.integers(1, 4),
    owners=st.sampled_from([0, 1, 3]),
    idle_after_ms=st.sampled_from([0, 300, 10_000]),
)
def test_every_turn_ends_once_and_no_gpu_is_ever_above_its_slots(
    seed: int, gap_ms: int, gpus: int, slots: int, owners: int, idle_after_ms: int
) -> None:
    turns = arrivals(seed, sessions=60, gap_ms=gap_ms)
    policy = e.Policy(idle_after_ms=idle_after_ms)
    shop = simulated(turns, gpus, slots, owners=owners, policy=policy)
    assert ends(shop.records) == Counter({(each.session, each.turn): 1 for each in turns})
    assert max(most_held(shop.records).values()) <= slots
    assert shop.state.misfits == 0
    assert not shop.state.door.waiting


def test_the_same_trace_gives_the_same_records_and_their_fold_the_same_state() -> None:
    turns = arrivals(7, sessions=150, gap_ms=100)
    first, second = simulated(turns, 3, 2), simulated(turns, 3, 2)
    assert first.records == second.records
    again = Occupancy()
    for record in first.records:
        again.apply(record)
    assert dump(again) == dump(first.state)


def test_a_turn_waits_for_the_answer_before_it_and_continues_where_its_session_is() -> None:
    turns = [
        Arrival(at_ms=0, session="s0", turn=1, prompt_tokens=8000, output_tokens=100),
        Arrival(at_ms=1, session="s0", turn=2, prompt_tokens=9000, output_tokens=10, known_tokens=8000),
    ]
    shop = simulated(turns, 2, 1)
    first, second = (each for each in shop.records if isinstance(each.event, e.TurnCompleted))
    continued = [each for each in shop.records if isinstance(each.event, e.TurnContinued)]
    assert [each.at_ms for each in continued] == [first.at_ms]
    assert isinstance(first.event, e.TurnCompleted)
    assert isinstance(second.event, e.TurnCompleted)
    assert first.event.gpu == second.event.gpu
    assert first.event.first_token_ms == 1000  # 8,000 tokens at 8,000 a second
    assert second.event.first_token_ms == 125  # only what is new is read
    assert second.event.usage == e.Usage(prompt_tokens=9000, cached_tokens=8000, completion_tokens=10)


def test_a_session_that_was_released_is_queued_again() -> None:
    turns = [
        Arrival(at_ms=0, session="s0", turn=1, prompt_tokens=80, output_tokens=10),
        Arrival(at_ms=2_000, session="s1", turn=1, prompt_tokens=80, output_tokens=10),
        Arrival(at_ms=60_000, session="s0", turn=2, prompt_tokens=160, output_tokens=10, known_tokens=80),
    ]
    shop = simulated(turns, 1, 1)
    admitted = [each.event for each in shop.records if isinstance(each.event, e.TurnAdmitted)]
    assert [(each.session, each.turn) for each in admitted] == [("s0", 1), ("s1", 1), ("s0", 2)]
    assert 7_000 < admitted[1].waited_ms <= 10_000  # until s0 had been silent for ten seconds
    answers = [each.event for each in shop.records if isinstance(each.event, e.TurnCompleted)]
    assert answers[-1].usage.cached_tokens == 0


def test_those_who_decode_together_share_the_gpu() -> None:
    def total_ms(sessions: int) -> int:
        turns = [
            Arrival(at_ms=0, session=f"s{n}", turn=1, prompt_tokens=8, output_tokens=1001)
            for n in range(sessions)
        ]
        records = simulated(turns, 1, 8).records
        return max(each.event.total_ms for each in records if isinstance(each.event, e.TurnCompleted))

    assert total_ms(1) == pytest.approx(1000 * (7.1 + 0.53), rel=0.01)
    assert total_ms(8) == pytest.approx(1000 * (7.1 + 8 * 0.53), rel=0.01)


def test_nobody_waits_for_ever_where_there_is_no_gpu() -> None:
    shop = simulated(arrivals(1, sessions=2, gap_ms=1000), 0, 1)
    assert shop.state.door.waiting
    assert not ends(shop.records)


def test_the_first_turns_wait_until_the_weights_are_loaded() -> None:
    shop = simulated(arrivals(1, sessions=2, gap_ms=1), 1, 8, open_ms=0)
    admitted = [each for each in shop.records if isinstance(each.event, e.TurnAdmitted)]
    assert admitted[0].at_ms == 15_000 < OPEN_MS


def test_the_mooncake_trace_is_served_whole() -> None:
    begun = time.process_time()
    shop = mooncake_shop(32, 8)
    spent_s = time.process_time() - begun
    ended = ends(shop.records)
    assert len(ended) == 12_031
    assert set(ended.values()) == {1}
    assert len({session for session, _ in ended}) == 8_133
    assert max(most_held(shop.records).values()) <= 8
    assert spent_s < 10, "promised are 3 s; a shared machine may take longer"
