"""What was told is held against what happened, by rules that are written down."""

from __future__ import annotations

import pytest

from helix_es.core import events as e
from helix_es.core.accuracy import RECENT, Accuracy
from helix_es.core.snapshot import dump, load
from tests.core.shop import WORK, Shop


@pytest.mark.parametrize(
    ("estimated_ms", "waited_ms", "within", "near"),
    [
        (13_000, 10_000, 1, 1),
        (13_001, 10_000, 0, 0),
        (7_000, 10_000, 1, 1),
        (6_999, 10_000, 0, 0),
        (1_500, 2_400, 0, 1),  # a second more or less, of a wait of seconds
        (1_399, 2_400, 0, 0),
        (1_000, 0, 0, 1),
        (1_001, 0, 0, 0),
    ],
)
def test_an_estimate_is_within_if_it_is_wrong_by_at_most_three_tenths_of_the_wait(
    estimated_ms: int, waited_ms: int, within: int, near: int
) -> None:
    accuracy = Accuracy()
    accuracy.admitted(estimated_ms, waited_ms)
    assert (accuracy.told, accuracy.within, accuracy.near) == (1, within, near)
    assert accuracy.mean_error_ms == abs(estimated_ms - waited_ms)


def test_who_need_not_wait_and_who_was_told_nothing_are_counted_apart() -> None:
    accuracy = Accuracy()
    accuracy.admitted(0, 3)
    accuracy.admitted(None, 7000)
    assert (accuracy.at_once, accuracy.unknown, accuracy.told) == (1, 1, 0)
    assert accuracy.share_within is None
    assert accuracy.mean_error_ms is None
    accuracy.admitted(0, 900)  # told that there is no wait, and there was
    assert (accuracy.told, accuracy.within) == (1, 0)


def test_only_the_last_estimates_are_recent() -> None:
    accuracy = Accuracy()
    for _ in range(RECENT):
        accuracy.admitted(9_000, 90_000)
    for _ in range(RECENT):
        accuracy.admitted(90_000, 90_000)
    assert accuracy.share_within == 0.5
    assert accuracy.recent_within == 1.0
    assert len(accuracy.recent) == RECENT


def test_the_fold_counts_each_turn_at_its_first_admission_and_a_snapshot_keeps_it() -> None:
    shop = Shop(e.Policy(idle_after_ms=0))
    shop.join("box-0", 1)
    shop.schedule()
    runner = shop.runners["box-0"]
    shop.hear(runner)
    for sid in ("s0", "s1"):
        shop.open(sid)
    shop.schedule()
    assert shop.take(runner)
    shop.now_ms += 10_000
    shop.finish(runner, "s0")
    shop.schedule()  # s0 goes
    shop.schedule()  # s1 is admitted
    state = shop.catch_up(shop.live)
    accuracy = state.door.rate(WORK).accuracy
    assert accuracy.at_once == 1
    assert [(each.estimated_ms, each.waited_ms) for each in accuracy.recent] == [(10_000, 10_000)]
    assert load(dump(state)).door.rate(WORK).accuracy == accuracy
