"""Who is silent, and who acts: both judged by stored beats alone."""

from __future__ import annotations

from helix_projections.leadership import LEASE_MS, Leadership
from helix_projections.liveness import Liveness


def beating(liveness: Liveness, start_ms: int, count: int, every_ms: int = 250) -> int:
    for n in range(count):
        liveness.beat(start_ms + n * every_ms)
    return start_ms + count * every_ms


def test_a_gpu_is_lost_after_three_missed_heartbeats() -> None:
    liveness = Liveness(lost_after_ms=3000, most_gap_ms=500)
    liveness.beat(0)
    liveness.heard("a", "i1")
    beating(liveness, 250, 11)
    assert liveness.silent() == []
    liveness.beat(3000)
    assert liveness.silent() == [("a", "i1", 3000)]


def test_when_the_broker_stalls_time_stands_still() -> None:
    liveness = Liveness(lost_after_ms=3000, most_gap_ms=500)
    now_ms = beating(liveness, 0, 4)
    liveness.heard("a", "i1")
    liveness.beat(now_ms + 60_000)
    assert liveness.silent() == [], "a minute without a stored beat is no minute"
    liveness.heard("a", "i1")


def test_only_the_silent_ones_are_named_and_the_longest_first() -> None:
    liveness = Liveness(lost_after_ms=1000, most_gap_ms=500)
    liveness.beat(0)
    liveness.heard("a", "i1")
    liveness.beat(250)
    liveness.heard("b", "i2")
    liveness.heard("c", "i3")
    for at_ms in (500, 750, 1000, 1250):
        liveness.beat(at_ms)
        liveness.heard("c", "i3")
    assert [gpu for gpu, _, _ in liveness.silent()] == ["a", "b"]
    liveness.forget("a")
    assert [gpu for gpu, _, _ in liveness.silent()] == ["b"]


def test_a_worker_that_only_polls_may_be_silent_for_longer() -> None:
    liveness = Liveness(lost_after_ms=1000, most_gap_ms=500)
    liveness.beat(0)
    liveness.heard("poller", "i1", 4000)
    liveness.heard("runner", "i2")
    now_ms = beating(liveness, 250, 4)
    assert [gpu for gpu, _, _ in liveness.silent()] == ["runner"]
    beating(liveness, now_ms, 12)
    assert liveness.silent() == [("poller", "i1", 4000), ("runner", "i2", 4000)]
    liveness.heard("poller", "i3")  # joined anew, as a runner
    beating(liveness, now_ms + 3000, 4)
    assert ("poller", "i3", 1000) in liveness.silent()


def test_alone_a_scheduler_acts_at_its_first_beat() -> None:
    assert Leadership("a").beat("a", active=False, at_ms=0)


def test_a_newcomer_stands_by_while_another_acts_and_takes_over_when_it_is_gone() -> None:
    new = Leadership("b")
    assert not new.beat("a", active=True, at_ms=0)
    assert not new.beat("b", active=False, at_ms=100)
    assert not new.beat("b", active=False, at_ms=LEASE_MS)
    assert new.beat("b", active=False, at_ms=LEASE_MS + 1)


def test_of_two_that_act_at_once_one_steps_back_and_both_see_which() -> None:
    one, two = Leadership("a"), Leadership("b")
    assert one.beat("a", active=False, at_ms=0)
    assert two.beat("b", active=False, at_ms=0)
    for each in (one, two):
        each.beat("a", active=True, at_ms=10)
        each.beat("b", active=True, at_ms=11)
    assert one.active
    assert not two.active


def test_one_that_stands_by_keeps_nobody_from_acting() -> None:
    one = Leadership("b")
    one.beat("a", active=False, at_ms=0)
    assert one.beat("b", active=False, at_ms=1)
