"""When a slot comes free: exactly, for those who are silent; from the means, for those who work."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sortedcontainers import SortedList

from helix_es.core.forecast import Ahead, Supply, wait_ms
from helix_es.core.loading import Coming
from helix_es.core.slotrate import SlotRate

NOW_MS = 1_000_000


def worked(work_ms: int, turns: int = 300) -> SlotRate:
    """Return what was measured when turns of `work_ms` followed one another."""
    rate = SlotRate(at_ms=0)
    for n in range(turns):
        rate.began(n * work_ms)
        rate.stopped((n + 1) * work_ms)
        rate.broken(10_000, idle_after_ms=10_000, returned=False)
    return rate


def supply(
    slots: int, silent_ms: Sequence[int] = (), *, idle_ms: int = 10_000, coming: tuple[Coming, ...] = ()
) -> Supply:
    return Supply(
        slots=slots,
        now_ms=NOW_MS,
        idle_after_ms=idle_ms,
        prior_work_ms=5_000,
        silent_ms=SortedList(silent_ms),
        coming=coming,
    )


def test_a_silent_session_gives_its_slot_at_a_known_instant() -> None:
    have = supply(3, [NOW_MS - 9_000, NOW_MS - 4_000])
    assert wait_ms(worked(5_000), Ahead(1), have) == 1_000
    assert wait_ms(worked(5_000), Ahead(2), have) == 6_000


def test_a_silence_that_is_over_is_no_wait() -> None:
    assert wait_ms(worked(5_000), Ahead(1), supply(1, [NOW_MS - 60_000])) == 0


def test_whoever_waits_for_those_who_work_waits_for_their_silence_too() -> None:
    assert 10_000 < wait_ms(worked(5_000), Ahead(1), supply(8)) < 15_000


def test_far_back_the_wait_is_the_number_ahead_over_the_mean_rate() -> None:
    held_ms, slots, ahead = 15_000, 8, 800  # five seconds of work, ten of silence
    found = wait_ms(worked(5_000), Ahead(ahead), supply(slots))
    assert found == pytest.approx(ahead * held_ms / slots, rel=0.01)


def test_before_anything_was_measured_a_turn_takes_what_it_is_said_to() -> None:
    assert wait_ms(SlotRate(), Ahead(4), supply(2, idle_ms=0)) == 10_000


def test_sessions_that_return_before_their_time_hold_their_slot_longer() -> None:
    rate = worked(5_000)
    for _ in range(300):
        rate.broken(0, idle_after_ms=10_000, returned=True)
        rate.broken(10_000, idle_after_ms=10_000, returned=False)
    assert wait_ms(rate, Ahead(800), supply(8)) == pytest.approx(800 * 20_000 / 8, rel=0.02)


def test_sessions_that_are_closed_give_their_slot_sooner() -> None:
    rate = worked(5_000)
    for _ in range(600):
        rate.broken(0, idle_after_ms=10_000, returned=False)
    assert wait_ms(rate, Ahead(800), supply(8)) == pytest.approx(800 * 5_000 / 8, rel=0.02)


def test_a_cold_start_is_as_long_as_the_loading() -> None:
    cold = supply(0, coming=(Coming(12_000, 4), Coming(14_000, 4)))
    assert wait_ms(SlotRate(), Ahead(1), cold) == 12_000
    assert wait_ms(SlotRate(), Ahead(5), cold) == 14_000
    assert wait_ms(SlotRate(), Ahead(9), cold) > 14_000


def test_a_gpu_that_is_ready_soon_shortens_the_wait() -> None:
    silent_ms = [NOW_MS - 1_000]
    assert wait_ms(worked(5_000), Ahead(1), supply(2, silent_ms)) == 9_000
    soon = supply(2, silent_ms, coming=(Coming(2_000, 2),))
    assert wait_ms(worked(5_000), Ahead(1), soon) == pytest.approx(2_000, abs=1_500)


def test_later_arrivals_that_go_ahead_make_the_wait_longer() -> None:
    have, rate = supply(8), worked(5_000)
    alone = wait_ms(rate, Ahead(100), have)
    slots_a_ms = 8 / 15_000
    halved = wait_ms(rate, Ahead(100, above=slots_a_ms / 2), have)
    assert halved == pytest.approx(2 * alone, rel=0.05)
    chased = wait_ms(rate, Ahead(100, smaller=50, chasing=slots_a_ms / 2), have)
    assert alone < chased < halved
    assert wait_ms(rate, Ahead(100, above=1.0), have) < 30 * alone  # more than there are slots: not for ever


@given(
    slots=st.integers(0, 20),
    ages=st.lists(st.integers(0, 40_000), max_size=20),
    work_ms=st.integers(0, 60_000),
    idle_ms=st.sampled_from([0, 1, 500, 10_000]),
    coming=st.lists(st.builds(Coming, st.integers(0, 50_000), st.integers(1, 8)), max_size=3),
    turns=st.integers(1, 200),
    growth=st.floats(0, 0.01),
)
def test_a_wait_is_never_negative_and_never_shorter_further_back(
    slots: int,
    ages: list[int],
    work_ms: int,
    idle_ms: int,
    coming: list[Coming],
    turns: int,
    growth: float,
) -> None:
    if not slots and not coming:
        slots = 1
    have = supply(
        slots, [NOW_MS - age for age in ages[:slots]], idle_ms=idle_ms, coming=tuple(sorted(coming))
    )
    rate = worked(work_ms, turns=20)
    here = wait_ms(rate, Ahead(turns, above=growth), have)
    behind = wait_ms(rate, Ahead(turns + 1, above=growth), have)
    assert here >= 0
    assert (
        behind >= here * 0.75 - 1_000
    )  # known instants give way to means: a small step down is possible there
