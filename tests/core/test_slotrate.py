"""The measured durations: of work, and of silences and how they end."""

from __future__ import annotations

import pytest

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_es.core.slotrate import SlotRate
from helix_es.core.snapshot import dump, load
from tests.core.shop import WORK, Shop


def test_the_mean_work_is_what_sessions_worked_over_how_often_they_stopped() -> None:
    rate = SlotRate()
    for n in range(50):
        rate.began(n * 4000)
        rate.stopped(n * 4000 + 3000)
    assert rate.work_ms / rate.stops == pytest.approx(3000)


def test_turns_that_run_at_once_count_each() -> None:
    rate = SlotRate()
    for _ in range(4):
        rate.began(0)
    for _ in range(4):
        rate.stopped(2000)
    assert rate.working == 0
    assert rate.work_ms / rate.stops == pytest.approx(2000, rel=0.02)


def test_what_was_long_ago_fades() -> None:
    rate = SlotRate()
    for n in range(1000):
        rate.began(n * 10_000)
        rate.stopped(n * 10_000 + (8000 if n < 500 else 2000))
    assert rate.work_ms / rate.stops == pytest.approx(2000, rel=0.1)


def folded(shop: Shop) -> Occupancy:
    return shop.catch_up(shop.live)


def served(slots: int = 2) -> Shop:
    shop = Shop(e.Policy(idle_after_ms=5_000))
    shop.join("box-0", slots)
    shop.schedule()
    shop.hear(shop.runners["box-0"])
    for n in range(slots):
        shop.open(f"s{n}")
    shop.schedule()
    while shop.take(shop.runners["box-0"]):
        pass
    return shop


def test_who_works_and_who_is_silent_follows_from_the_log() -> None:
    shop = served()
    runner = shop.runners["box-0"]
    rate, silent_ms = folded(shop).door.rate(WORK), folded(shop).door.silent(WORK)
    assert (rate.working, list(silent_ms)) == (2, [])
    shop.now_ms += 1000
    shop.finish(runner, "s0")
    folded(shop)
    assert (rate.working, list(silent_ms)) == (1, [shop.now_ms])
    shop.now_ms += 1000
    assert shop.say("s0")
    folded(shop)
    assert (rate.working, list(silent_ms), rate.returns) == (2, [], 1.0)
    shop.close("s0")
    shop.close("s1")
    folded(shop)
    assert rate.working == 0
    shop.schedule()
    assert (folded(shop), rate.working, list(silent_ms)) == (shop.live, 0, [])


def test_a_gpu_that_is_lost_leaves_nobody_working_or_silent() -> None:
    shop = served()
    shop.finish(shop.runners["box-0"], "s0")
    shop.lose("box-0")
    shop.schedule()
    door = folded(shop).door
    assert (door.rate(WORK).working, list(door.silent(WORK))) == (0, [])


def test_a_snapshot_goes_on_as_the_fold_does() -> None:
    shop = served()
    shop.now_ms += 700
    shop.finish(shop.runners["box-0"], "s0")
    shop.open("s9", owner="bob")
    restored = load(dump(folded(shop)))
    shop.now_ms += 900
    shop.say("s0")
    shop.close("s1")
    shop.schedule()
    assert dump(shop.catch_up(restored)) == dump(folded(shop))


def test_an_estimate_is_told_once_a_gpu_loads_the_model() -> None:
    shop = Shop()
    shop.open("s0")
    shop.join("box-0", 2)
    assert folded(shop).wait_ms(WORK, 1) is None
    shop.schedule()
    shop.now_ms += 4_000
    shop.open("s1")
    state = folded(shop)
    assert state.wait_ms(WORK, 1) == state.fleet.load(WORK.model) - 4_000
    assert state.seats["s1"].estimated_ms == state.wait_ms(WORK, 1)
