"""Decisions, one rule at a time: given a history, then these facts."""

from __future__ import annotations

import os
import subprocess
import sys

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_es.core.placement import decide
from helix_es.core.snapshot import dump, load
from tests.core.shop import Shop


def shop_with(slots: int, idle_after_ms: int = 1000) -> Shop:
    shop = Shop(e.Policy(idle_after_ms=idle_after_ms))
    shop.join("box-0", slots)
    settle(shop)
    return shop


def settle(shop: Shop) -> None:
    """Let everybody act until nothing changes: all that is admitted is started."""
    while True:
        before = len(shop.log.records)
        shop.schedule()
        for runner in list(shop.runners.values()):
            shop.hear(runner)
            while runner.ready and shop.take(runner):
                pass
        if len(shop.log.records) == before:
            return


def planned(shop: Shop, now_ms: int | None = None) -> list[e.AnyEvent]:
    state = shop.catch_up(shop.live)
    return [decision.event for decision in decide(state, now_ms or state.now_ms)]


def test_a_gpu_that_joins_is_assigned_what_it_offers() -> None:
    shop = Shop()
    shop.join("box-0", 3)
    (event,) = planned(shop)
    assert isinstance(event, e.GpuAssigned)
    assert (event.model, event.purpose, event.slots) == ("mistral", "chat", 3)


def test_the_configured_coefficient_goes_before_the_offer() -> None:
    shop = Shop(e.Policy(coefficients={"cpu/mistral": 7}))
    shop.join("box-0", 3)
    (event,) = planned(shop)
    assert isinstance(event, e.GpuAssigned)
    assert event.slots == 7


def test_as_many_are_admitted_as_there_are_slots_in_the_order_of_arrival() -> None:
    shop = shop_with(slots=2)
    for n in range(4):
        shop.open(f"s{n}")
    events = planned(shop)
    assert [x.session for x in events if isinstance(x, e.TurnAdmitted)] == ["s0", "s1"]


def test_a_higher_class_goes_first_and_owners_take_turns() -> None:
    shop = shop_with(slots=16)
    for n in range(3):
        shop.open(f"ann{n}", "ann")
    shop.open("bob0", "bob")
    shop.open("vip", "cyd", priority=5)
    admitted = [x.session for x in planned(shop) if isinstance(x, e.TurnAdmitted)]
    assert admitted == ["vip", "ann0", "bob0", "ann1", "ann2"]


def test_an_idle_session_keeps_its_slot_until_others_wait_long_enough() -> None:
    shop = shop_with(slots=1)
    shop.open("s0")
    settle(shop)
    shop.finish(shop.runners["box-0"], "s0")
    assert planned(shop, shop.now_ms + 100_000) == [], "nobody waits"
    shop.open("s1")
    assert planned(shop) == [], "it was silent for a moment only"
    shop.now_ms += 1001
    (event,) = planned(shop, shop.now_ms)
    assert isinstance(event, e.SessionReleased)
    assert (event.session, event.reason) == ("s0", "idle")


def test_a_running_session_is_never_released_for_others() -> None:
    shop = shop_with(slots=1)
    shop.open("s0")
    settle(shop)
    shop.open("s1")
    assert planned(shop, shop.now_ms + 3_600_000) == []


def test_the_turn_of_a_lost_gpu_is_admitted_again_before_those_who_came_later() -> None:
    shop = shop_with(slots=1)
    shop.open("s0")
    settle(shop)
    shop.open("s1")
    shop.lose("box-0")
    del shop.runners["box-0"]
    (released,) = planned(shop)
    assert isinstance(released, e.SessionReleased)
    assert released.reason == "lost"
    shop.schedule()
    shop.join("box-1", 1)
    settle(shop)
    last = [r.event for r in shop.log.records if isinstance(r.event, e.TurnAdmitted)][-1]
    assert (last.session, last.attempt) == ("s0", 2)


def test_a_continued_turn_of_a_lost_gpu_goes_to_the_front() -> None:
    shop = shop_with(slots=1)
    shop.open("s0")
    settle(shop)
    shop.finish(shop.runners["box-0"], "s0")
    shop.open("s1")
    assert shop.say("s0")
    shop.lose("box-0")
    shop.schedule()
    state = shop.catch_up(shop.live)
    assert state.position(state.seats["s0"]) == 1
    assert state.position(state.seats["s1"]) == 2


def test_the_wait_is_what_was_measured() -> None:
    shop = shop_with(slots=1, idle_after_ms=0)
    for n in range(8):
        shop.open(f"s{n}")
    for _ in range(4):  # every four seconds one goes and the next is admitted
        settle(shop)
        runner = shop.runners["box-0"]
        shop.now_ms += 4000
        for sid in list(runner.running):
            shop.finish(runner, sid)
        shop.schedule()
    settle(shop)
    state = shop.catch_up(shop.live)
    waiting = [seat for seat in state.seats.values() if seat.phase == "queued"]
    waits = [state.wait_ms(seat.workload, state.position(seat) or 0) for seat in waiting]
    assert waits == [4000 * (n + 1) for n in range(len(waiting))]


def test_a_wait_is_unknown_while_nothing_serves_the_model() -> None:
    shop = Shop()
    shop.open("s0")
    state = shop.catch_up(shop.live)
    assert state.wait_ms(state.seats["s0"].workload, 1) is None


def test_a_snapshot_of_another_format_or_damaged_is_not_believed() -> None:
    import pytest

    from helix_es.core.errors import Unreadable

    good = dump(shop_with(slots=1).live)
    assert dump(load(good)) == good
    for bad in (b"", b"{}", good[:-1], good.replace(b'"format":3', b'"format":99')):
        with pytest.raises(Unreadable):
            load(bad)


SCRIPT = """
from tests.core.test_placement import shop_with, settle
from helix_es.core.placement import decide
from helix_es.core.snapshot import dump
import msgspec
shop = shop_with(slots=3)
for n in range(9): shop.open(f"s{n}", owner=f"o{n % 4}", priority=n % 2)
settle(shop)
shop.lose("box-0")
state = shop.catch_up(shop.live)
print(dump(state).decode(), msgspec.json.encode(decide(state, state.now_ms)).decode())
"""


def test_the_same_log_gives_the_same_bytes_in_any_process() -> None:
    outs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(outs) == 1
    assert len(outs.pop()) > 1000


def test_a_fold_ignores_what_cannot_happen_but_moves_the_fence() -> None:
    shop = shop_with(slots=1)
    shop.open("s0")
    state = shop.catch_up(Occupancy())
    seq = shop.log.store_raw("session.s0.turn.completed.box-0", b"garbage")
    shop.catch_up(state)
    assert state.seats["s0"].last_seq == seq
    assert state.seats["s0"].phase == "queued"
    assert state.misfits == 1


def test_a_turn_that_was_asked_to_stop_ends_with_its_gpu() -> None:
    shop = shop_with(slots=1)
    shop.open("s0")
    settle(shop)
    shop.cancel("s0")
    shop.lose("box-0")
    shop.schedule()
    session = shop.session("s0")
    assert (session.phase, session.turns[0].state, session.open_turn) == ("released", "cancelled", None)
    assert planned(shop) == [], "it does not begin anew"
    assert shop.say("s0")


def test_a_turn_admitted_to_a_slot_that_was_lost_gets_the_next_one_that_is_idle() -> None:
    shop = shop_with(slots=2)
    for n in range(2):
        shop.open(f"s{n}")
    shop.schedule()  # both are admitted, none has started
    shop.lose("box-0")
    del shop.runners["box-0"]
    shop.join("box-1", 1)
    settle(shop)
    (first,) = shop.runners["box-1"].running
    shop.finish(shop.runners["box-1"], first)
    shop.now_ms += 1001
    shop.catch_up(shop.live).tick(shop.now_ms)
    (event,) = planned(shop, shop.now_ms)
    assert isinstance(event, e.SessionReleased)
    settle(shop)
    assert list(shop.runners["box-1"].running) == ["s1"]
