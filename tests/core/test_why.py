"""Why a turn waited: the story told by the log of a shop whose people and machines are known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from msgspec import json
from msgspec.structs import replace

from helix_es.core import events as e
from helix_es.core.history import fold
from helix_es.core.occupancy import Occupancy
from helix_es.core.placement import decide
from helix_es.core.story import Run, Story, TurnStory, Wait
from helix_es.core.subjects import session_filter
from helix_es.core.why import Why
from helix_es.testing import matches
from tests.core.doings import OTHER, TRAINS, doings, shop_of, step
from tests.core.shop import WORK, Shop
from tests.examples import many


def why(shop: Shop, sid: str) -> Story:
    asked = Why(sid)
    for record in shop.log.records:
        asked.take(record)
    story = asked.story
    assert story is not None
    return story


def opened(slots: int = 1, policy: e.Policy | None = None, works: list[e.Workload] | None = None) -> Shop:
    """Return a shop with one GPU that serves."""
    shop = Shop(policy)
    shop.join("box-0", slots, works)
    step(shop)
    return shop


def ended(shop: Shop, sid: str, *, over: bool = True) -> None:
    """The running turn of `sid` is done; with `over` the session is closed, and its slot freed."""
    runner = next(each for each in shop.runners.values() if sid in each.running)
    shop.finish(runner, sid)
    if over:
        shop.close(sid)


def last_wait(story: Story) -> Wait:
    return story.turns[-1].waits[-1]


def test_whoever_need_not_wait_is_told_so() -> None:
    shop = opened()
    shop.open("s1")
    step(shop)
    story = why(shop, "s1")
    (turn,) = story.turns
    (wait,), (run,) = turn.waits, turn.runs
    assert (wait.place, wait.told_ms, wait.slots, wait.free, wait.ahead) == (1, 0, 1, 1, [])
    assert [(each.gpu, each.why) for each in wait.obstacles] == [("box-0", "free")]
    assert wait.decision is not None
    assert (wait.decision.reason, wait.decision.decided_seq) == ("1 free", wait.seq)
    assert (run.gpu, run.slots, run.beside, run.end) == ("box-0", 1, [], None)
    assert (turn.state, story.owner, story.log_seq) == ("running", "ann", len(shop.log.records))


def test_those_who_came_earlier_are_ahead_and_their_slots_are_counted() -> None:
    shop = opened()
    for n, owner in enumerate(["ann", "bob", "cyd"]):
        shop.open(f"s{n}", owner)
        step(shop, 1000)
    for n in range(2):
        ended(shop, f"s{n}")
        step(shop, 2000)
    wait = last_wait(why(shop, "s2"))
    assert [(each.session, each.owner, each.why) for each in wait.ahead] == [("s1", "bob", "earlier")]
    assert (wait.place, wait.served_ahead, wait.freed, wait.passed_by) == (2, 1, 2, 0)
    assert [(each.what, each.reason, each.free, each.slots) for each in wait.changes] == [
        ("session.released", "closed", 1, 0)
    ] * 2
    assert [(each.why, each.held) for each in wait.obstacles] == [("full", 1)]
    assert wait.lasted_ms == wait.decision.waited_ms == 5000  # type: ignore[union-attr]


def test_a_higher_class_passes() -> None:
    shop = opened()
    for sid, priority in (("s0", 0), ("s1", 0), ("s2", 5)):
        shop.open(sid, priority=priority)
        step(shop)
    ended(shop, "s0")
    step(shop)
    assert [(each.session, each.why, each.priority) for each in last_wait(why(shop, "s1")).passed] == [
        ("s2", "priority", 5)
    ]
    assert last_wait(why(shop, "s2")).ahead == []
    shop.open("s3")
    assert [each.why for each in last_wait(why(shop, "s3")).ahead] == ["earlier"]


def test_an_owner_who_had_less_passes_by_the_fair_share_and_is_ahead_by_it() -> None:
    shop = opened()
    for sid, owner in (("s0", "ann"), ("s1", "ann"), ("s2", "ann"), ("s3", "bob"), ("s4", "ann")):
        shop.open(sid, owner)
        step(shop)
    for sid in ("s0", "s1"):
        ended(shop, sid)
        step(shop)
    wait = last_wait(why(shop, "s2"))
    assert [(each.session, each.why) for each in wait.passed] == [("s3", "fair_share")]
    assert [(each.session, each.why) for each in wait.ahead] == [("s1", "earlier")]
    assert (wait.served_ahead, wait.passed_by) == (1, 1)
    assert [(each.session, each.why) for each in last_wait(why(shop, "s4")).ahead] == [
        ("s1", "earlier"),
        ("s3", "earlier"),
        ("s2", "earlier"),
    ]


def test_a_turn_whose_gpu_is_lost_waits_again_where_it_stood() -> None:
    shop = opened()
    for sid, owner in (("s0", "ann"), ("s1", "ann"), ("s2", "ann"), ("s3", "bob")):
        shop.open(sid, owner)
        step(shop)
    ended(shop, "s0")
    step(shop)
    shop.lose("box-0")
    step(shop)
    wait = last_wait(why(shop, "s1"))  # it ran, lost its GPU, and is back where it stood
    assert (wait.because, wait.place, wait.ahead) == ("lost", 1, [])
    assert [each.end for each in why(shop, "s1").turns[0].runs] == ["lost", None]


def test_whoever_was_served_before_is_ahead_again_and_passes() -> None:
    shop = opened()
    shop.open("s0", "ann")
    step(shop)
    shop.open("s1", "bob")
    step(shop)
    shop.lose("box-0")
    step(shop)
    step(shop)
    passed = last_wait(why(shop, "s1")).passed
    assert [(each.session, each.why) for each in passed] == [("s0", "came_back")]
    shop.lose("box-0")
    shop.now_ms += 10
    shop.schedule()
    shop.open("s2", "cyd")
    assert [(each.session, each.why) for each in last_wait(why(shop, "s2")).ahead] == [
        ("s0", "came_back"),
        ("s1", "earlier"),
    ]
    first, second = why(shop, "s0").turns[0].waits[:2]
    assert (first.because, second.because, second.told_ms) == ("said", "lost", None)
    assert second.decision is None or second.decision.attempt == 2


def test_whoever_was_ahead_and_comes_back_passes_the_second_time() -> None:
    shop = opened()
    for n, owner in enumerate(["ann", "bob", "cyd"]):
        shop.open(f"s{n}", owner)
        step(shop)
    ended(shop, "s0")
    step(shop)
    shop.lose("box-0")
    step(shop)
    step(shop)
    wait = last_wait(why(shop, "s2"))
    assert (wait.served_ahead, wait.passed_by) == (1, 1)
    assert [(each.session, each.why) for each in wait.passed] == [("s1", "came_back")]


def test_whoever_waits_for_something_else_passes_nobody() -> None:
    shop = opened()
    shop.join("box-1", 1, [OTHER])
    step(shop)
    shop.open("s0")
    shop.open("s1")
    step(shop)
    shop.open("p0", work=OTHER)
    step(shop)
    wait = last_wait(why(shop, "s1"))
    assert [(each.session, each.why) for each in wait.ahead] == [("s0", "earlier")]
    assert (wait.served_ahead, wait.passed_by, wait.freed) == (1, 0, 0)


def test_an_owner_at_the_limit_is_passed_over() -> None:
    shop = opened(2, e.Policy(slots_per_owner=1))
    shop.open("s0", "ann")
    step(shop)
    shop.open("s1", "ann")
    step(shop, 1000)
    shop.open("s2", "bob")
    step(shop, 1000)
    wait = last_wait(why(shop, "s1"))
    assert (wait.owner_held, wait.owner_most, wait.end) == (1, 1, None)
    assert [(each.session, each.why) for each in wait.passed] == [("s2", "owner_limit")]
    assert wait.barred_ms == 2000
    assert wait.slot_there_ms == 0


def test_each_gpu_has_a_reason_why_it_does_not_help() -> None:
    shop = opened(1, e.Policy(reserved=1, coefficients={"tiny/mistral": 0}), [WORK])
    shop.join("box-1", 1, [WORK, TRAINS])
    shop.join("box-2", 1, [OTHER])
    shop.join("box-3", 1, [WORK], kind="tiny")
    shop.join("box-4", 1, [OTHER, WORK], pool="mixed")
    shop.open("s0")
    shop.open("p0", work=OTHER)
    shop.open("p1", work=OTHER)
    step(shop)
    shop.join("box-5", 1, [WORK], load_ms=None)
    shop.now_ms += 100
    shop.schedule()
    shop.join("box-6", 1, [WORK])
    shop.open("s1")
    assert {each.gpu: each.why for each in last_wait(why(shop, "s1")).obstacles} == {
        "box-0": "full",
        "box-1": "reserved",
        "box-2": "unfit",
        "box-3": "no_slots",
        "box-4": "other_work",
        "box-5": "loading",
        "box-6": "unassigned",
    }


def test_batch_work_beyond_the_reservation_is_not_called_reserved() -> None:
    shop = opened(1, None, [WORK, TRAINS])
    shop.join("box-1", 1, [WORK, TRAINS])
    step(shop)
    shop.open("f0", work=TRAINS)
    step(shop)
    shop.open("s0")
    step(shop)
    shop.open("s1")
    assert "batch" in [each.why for each in last_wait(why(shop, "s1")).obstacles]


def test_a_drained_gpu_says_for_what() -> None:
    shop = opened(1, e.Policy(starve_after_ms=1000, switch_after_ms=0), [WORK, OTHER])
    shop.open("s0")
    step(shop)
    shop.open("s1", work=OTHER)
    for _ in range(4):
        step(shop, 1000)
    shop.open("s2", work=OTHER)
    shop.open("s3")
    here, elsewhere = last_wait(why(shop, "s2")).obstacles[0], last_wait(why(shop, "s3")).obstacles[0]
    assert (here.why, here.model, here.since_ms is None) == ("draining_for_it", "sdxl", False)
    assert (elsewhere.why, elsewhere.model) == ("draining", "sdxl")


def test_room_that_is_promised_to_those_ahead_is_told_from_room() -> None:
    shop = opened(2)
    for n in range(3):
        shop.open(f"s{n}")
    assert [last_wait(why(shop, f"s{n}")).obstacles[0].why for n in range(3)] == ["free", "free", "promised"]


def test_only_as_many_gpus_are_free_as_hold_slots_that_no_admitted_turn_is_promised() -> None:
    shop = opened(2)
    shop.join("box-1", 2)
    step(shop)
    for n in range(3):
        shop.open(f"s{n}")
    shop.schedule()  # admitted, and no runner has heard of it yet
    shop.open("s3")
    wait = last_wait(why(shop, "s3"))
    assert (wait.slots, wait.free) == (4, 1)
    assert [(each.why, each.held) for each in wait.obstacles] == [("free", 0), ("promised", 0)]


def test_a_gpu_that_comes_meanwhile_is_a_change() -> None:
    shop = opened()
    shop.open("s0")
    step(shop)
    shop.open("s1")
    shop.join("box-1", 3)
    step(shop)
    wait = last_wait(why(shop, "s1"))
    assert [(each.gpu, each.slots, each.free) for each in wait.changes] == [("box-1", 3, 3)]
    assert (wait.freed, wait.end) == (3, "admitted")


def test_a_gpu_that_is_lost_meanwhile_is_a_change() -> None:
    shop = opened()
    shop.join("box-1", 2)
    step(shop)
    for n in range(4):
        shop.open(f"s{n}")
    step(shop)
    shop.lose("box-1")
    shop.lose("box-0")
    assert [(each.what, each.slots) for each in last_wait(why(shop, "s3")).changes] == [
        ("gpu.lost", -2),
        ("gpu.lost", -1),
    ]


def test_a_scheduler_that_does_not_look_is_told_from_a_full_shop() -> None:
    shop = opened(1)
    shop.open("s0")
    shop.now_ms += 7000
    shop.join("box-1", 1)  # somebody else's fact, so that time passes in the log
    step(shop)
    wait = last_wait(why(shop, "s0"))
    assert wait.slot_there_ms >= 7000
    assert wait.undecided_ms >= 7000


def test_one_decision_that_admits_several_lets_nobody_pass() -> None:
    shop = opened(2)
    shop.open("s0", "ann")
    shop.open("s1", "bob", priority=1)
    step(shop)
    assert last_wait(why(shop, "s0")).passed == []
    assert last_wait(why(shop, "s0")).passed_by == 0


def test_what_was_decided_before_it_came_does_not_count_as_unfair() -> None:
    shop = opened()
    shop.open("s0", "ann")
    stale = shop.catch_up(Occupancy())
    shop.now_ms += 10
    shop.open("s1", "bob", priority=3)
    shop.schedule(stale)
    assert [(each.session, each.why) for each in last_wait(why(shop, "s1")).ahead] == []
    assert [(each.session, each.why) for each in last_wait(why(shop, "s1")).passed] == [
        ("s0", "decided_before")
    ]


def test_what_was_told_is_what_the_log_says_not_what_would_be_told_today() -> None:
    shop = opened()
    shop.open("s0")
    state = shop.catch_up(shop.live)
    (decision,) = decide(state, shop.now_ms)
    old = replace(decision.event, estimated_ms=77_000)  # by another release
    assert shop.append(old, decision.expected_seq)
    assert last_wait(why(shop, "s0")).told_ms == 77_000


def test_an_older_rule_that_let_others_first_is_shown() -> None:
    shop = opened()
    shop.open("s0")
    shop.open("s1")
    state = shop.catch_up(shop.live)
    seat = state.seats["s1"]
    (decision,) = decide(state, shop.now_ms)
    odd = replace(decision.event, session=seat.session)
    assert shop.append(odd, seat.last_seq)
    assert [(each.session, each.why) for each in last_wait(why(shop, "s0")).passed] == [("s1", "behind")]


def test_a_continued_turn_goes_past_the_door_and_a_release_is_told() -> None:
    shop = opened(1, e.Policy(idle_after_ms=1000))
    shop.open("s0")
    step(shop)
    ended(shop, "s0", over=False)
    assert shop.say("s0")
    step(shop)
    ended(shop, "s0", over=False)
    shop.open("s1", "bob")
    step(shop, 5000)
    assert shop.say("s0")
    story = why(shop, "s0")
    assert [(turn.straight, len(turn.waits), len(turn.runs)) for turn in story.turns] == [
        (False, 1, 1),
        (True, 0, 1),
        (False, 1, 0),
    ]
    assert [(each.gpu, each.reason, each.waiting) for each in story.releases] == [("box-0", "idle", 1)]
    assert [each.state for each in story.turns] == ["completed", "completed", "queued"]


def test_those_beside_are_named() -> None:
    shop = opened(2)
    shop.open("s0", "ann")
    step(shop)
    ended(shop, "s0", over=False)
    shop.open("s1", "bob")
    step(shop)
    (run,) = why(shop, "s1").turns[0].runs
    assert [(each.session, each.owner, each.state) for each in run.beside] == [("s0", "ann", "idle")]


@pytest.mark.parametrize("over", [True, False])
def test_a_turn_that_ends_at_the_door(over: bool) -> None:
    shop = opened()
    shop.open("s0")
    step(shop)
    shop.open("s1")
    shop.now_ms += 300
    (shop.close if over else shop.cancel)("s1")
    (turn,) = why(shop, "s1").turns
    assert (turn.state, turn.ended_ms, turn.runs) == ("cancelled", shop.now_ms, [])
    assert (turn.waits[0].end, turn.waits[0].lasted_ms) == ("closed" if over else "cancelled", 300)


def test_a_turn_that_is_given_back_waits_again() -> None:
    shop = opened()
    shop.open("s0")
    step(shop)
    runner = shop.runners["box-0"]
    assert shop.give_back(runner, "s0", "out_of_memory")
    step(shop)
    (turn,) = why(shop, "s0").turns
    assert [(each.end, each.error.code if each.error else None) for each in turn.runs[:1]] == [
        ("returned", "out_of_memory")
    ]
    assert [each.because for each in turn.waits] == ["said", "returned"]
    assert [each.attempt for each in turn.runs] == [1, 2]


def test_a_fine_tune_that_must_give_way_is_told_so() -> None:
    shop = opened(1, e.Policy(switch_after_ms=0), [WORK, TRAINS])
    shop.open("f0", work=TRAINS)
    for _ in range(3):
        step(shop, 20_000)
    assert "f0" in shop.runners["box-0"].running
    shop.open("s0")
    for _ in range(3):
        step(shop, 1000)
    shop.give_way(shop.runners["box-0"], "f0")
    step(shop)
    (turn,) = why(shop, "f0").turns
    (run,) = turn.runs
    assert (run.end, run.checkpoints, run.asked_to_yield_ms is None) == ("preempted", 1, False)
    assert turn.waits[-1].because == "preempted"


def test_a_session_that_the_log_does_not_know_has_no_story_and_names_like_it() -> None:
    shop = opened()
    for sid in ("abc-1", "abc-2", "xyz"):
        shop.open(sid)
    asked = Why("abc")
    for record in shop.log.records:
        asked.take(record)
    assert asked.story is None
    assert asked.similar == ["abc-1", "abc-2"]


@settings(max_examples=many(100), deadline=None)
@given(done=doings)
def test_every_story_agrees_with_the_session_and_with_the_fold(done: list[tuple[str, int]]) -> None:
    shop = shop_of(done)
    for sid in {r.event.session for r in shop.log.records if isinstance(r.event, e.SessionCreated)}:
        story = why(shop, sid)
        session = fold(sid, [r for r in shop.log.records if matches(r.subject, session_filter(sid))])
        assert [(t.turn, t.state, t.ended_ms, t.at_ms) for t in story.turns] == [
            (t.turn, t.state, t.ended_ms, t.queued_ms) for t in session.turns
        ]
        for turn in story.turns:
            _check_turn(shop, turn)
        json.decode(json.encode(story), type=Story)


def _check_turn(shop: Shop, turn: TurnStory) -> None:
    parts: list[Wait | Run] = [*turn.waits, *turn.runs]
    assert all(part.end is not None or part is max(parts, key=lambda p: p.seq) for part in parts)
    for wait in turn.waits:
        _check_wait(shop, wait)


def _check_wait(shop: Shop, wait: Wait) -> None:
    state = shop.catch_up(Occupancy(), wait.seq)
    seat = state.seats[shop.log.records[wait.seq - 1].event.session]  # type: ignore[union-attr]
    assert state.position(seat) == wait.place == len(wait.ahead) + 1
    assert {each.gpu for each in wait.obstacles} == set(state.gpus)
    if wait.decision is None:
        return
    admitted = [
        record.event
        for record in shop.log.records[wait.seq : wait.decision.seq - 1]
        if isinstance(record.event, e.TurnAdmitted)
        and e.Workload(record.event.mode, record.event.type, record.event.model) == seat.workload
    ]
    others = sum(each.decided_seq != wait.decision.decided_seq for each in admitted)
    assert others <= wait.served_ahead + wait.passed_by <= len(admitted)
