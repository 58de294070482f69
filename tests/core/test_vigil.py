"""What came free while a turn waited: every change is counted, and the first and the last ones are kept."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings

from helix_es.core import events as e
from helix_es.core import vigil
from helix_es.core.codec import type_of
from helix_es.core.occupancy import Occupancy
from helix_es.core.story import Wait
from helix_es.core.why import Why
from tests.core.doings import doings, shop_of, step
from tests.core.shop import Shop
from tests.examples import many

ENDS = (e.TurnAdmitted, e.TurnFailed, e.TurnCancelled, e.SessionClosed)
FEW = 2
"""Changes of either kind that are kept while hypothesis plays: its shops are too small for the real number."""


@dataclass(frozen=True)
class Change:
    """What a record did to the slots of the workload, by the fold alone."""

    seq: int
    slots: int
    free: int
    source: str


def waits(shop: Shop, sid: str) -> list[Wait]:
    asked = Why(sid)
    for record in shop.log.records:
        asked.take(record)
    assert asked.story is not None
    return [wait for turn in asked.story.turns for wait in turn.waits]


def changes(shop: Shop, sid: str, wait: Wait) -> list[Change]:
    """Return every change from the first record of `wait` to the session's own that ends it."""
    state = shop.catch_up(Occupancy(), wait.seq)
    capacity = state.door.capacity(state.seats[sid].workload)
    found = []
    for record in shop.log.records[wait.seq :]:
        own = getattr(record.event, "session", None) == sid
        if own and isinstance(record.event, ENDS):
            break
        slots, room = capacity.slots, capacity.room
        state.apply(record)
        more, free = capacity.slots - slots, capacity.room - room
        if record.event is not None and not own and (more or free > 0):
            found.append(Change(record.seq, more, free, source(record.event)))
    return found


def source(event: e.AnyEvent) -> str:
    return event.reason if isinstance(event, e.SessionReleased) else type_of(event)


def freed_by(every: list[Change]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in every:
        if each.free > 0:
            found[each.source] = found.get(each.source, 0) + each.free
    return found


def ends(every: list[Change], most: int) -> list[int]:
    """Return which are to be kept: of either kind the first and the last, `most` in all."""
    kept = []
    for kind in (True, False):
        alike = [each.seq for each in every if bool(each.slots) == kind]
        kept += alike if len(alike) <= most else [*alike[: most // 2], *alike[-(most - most // 2) :]]
    return sorted(kept)


def check(shop: Shop, sid: str, wait: Wait, most: int) -> None:
    every = changes(shop, sid, wait)
    assert wait.freed == sum(wait.freed_by.values())
    assert wait.freed_by == freed_by(every)
    assert (wait.changed, wait.resized) == (len(every), sum(each.slots != 0 for each in every))
    assert [each.seq for each in wait.changes] == ends(every, most)


@settings(max_examples=many(100), deadline=None)
@given(done=doings)
def test_the_sources_add_up_to_what_came_free(done: list[tuple[str, int]]) -> None:
    shop = shop_of(done)
    created = [each.event.session for each in shop.log.records if isinstance(each.event, e.SessionCreated)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vigil, "MOST_NAMED", FEW)
        for sid in created:
            for wait in waits(shop, sid):
                check(shop, sid, wait, FEW)


def barred(rounds: int) -> Shop:
    """Return a shop in which s1 waits, since ann holds as many slots as one may, and much happens meanwhile.

    In each round box-1 is lost, and comes back, and bob says something on it and closes his session.
    """
    shop = Shop(e.Policy(slots_per_owner=1))
    shop.join("box-0", 1)
    shop.join("box-1", 2)
    step(shop)
    for sid in ("s0", "s1"):
        shop.open(sid, "ann")
        step(shop)
    for n in range(rounds):
        shop.lose("box-1")
        step(shop)
        shop.open(f"b{n}", "bob")
        step(shop)
        runner = next(each for each in shop.runners.values() if f"b{n}" in each.running)
        shop.finish(runner, f"b{n}")
        shop.close(f"b{n}")
        step(shop)
    return shop


def test_changes_beyond_those_that_are_kept_are_counted_and_the_last_ones_are_kept() -> None:
    rounds = vigil.MOST_NAMED + 10
    shop = barred(rounds)
    (wait,) = waits(shop, "s1")
    assert wait.freed_by == {"gpu.ready": 2 * rounds, "closed": rounds}
    assert wait.freed == 3 * rounds
    assert (wait.changed, wait.resized) == (3 * rounds, 2 * rounds)
    of_slots = [each for each in wait.changes if each.slots]
    releases = [each for each in wait.changes if not each.slots]
    half = vigil.MOST_NAMED // 2
    assert [each.session for each in releases] == [
        f"b{n}" for n in (*range(half), *range(rounds - half, rounds))
    ]
    assert [each.what for each in of_slots] == ["gpu.lost", "gpu.ready"] * half
    check(shop, "s1", wait, vigil.MOST_NAMED)


def test_few_changes_are_all_kept_in_order() -> None:
    (wait,) = waits(barred(2), "s1")
    assert [each.what for each in wait.changes] == ["gpu.lost", "gpu.ready", "session.released"] * 2
