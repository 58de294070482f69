"""Whoever has had less than its share, or is of a higher class, will go ahead: how many a ms."""

from __future__ import annotations

from helix_es.core.fairqueue import FairQueue, Place
from helix_es.core.overtaking import LEAST_SPAN_MS, REMEMBERED, Overtaking


class Line:
    """A queue and what is remembered of its arrivals."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.overtaking = Overtaking()
        self.seq = 0

    def come(self, owner: str, priority: int = 0, at_ms: int = 0) -> Place:
        self.seq += 1
        place = self.queue.arrive(f"s{self.seq}", owner, priority=priority, seq=self.seq)
        self.overtaking.arrived(place, owner, self.queue, at_ms)
        return place

    def per_span(self, place: Place, owner: str) -> tuple[float, float]:
        above, chasing = self.overtaking.rates(place, owner, self.queue, LEAST_SPAN_MS)
        return round(above * LEAST_SPAN_MS, 6), round(chasing * LEAST_SPAN_MS, 6)


def test_in_a_line_of_one_owner_nobody_is_overtaken() -> None:
    line = Line()
    places = [line.come("ann") for _ in range(10)]
    assert {line.per_span(place, "ann") for place in places} == {(0.0, 0.0)}


def test_who_is_ahead_of_its_share_is_overtaken_by_owners_who_are_not() -> None:
    line = Line()
    places = [line.come("ann") for _ in range(5)]
    for n in range(3):
        line.come(f"new{n}")
    assert line.per_span(places[0], "ann") == (0.0, 0.0)
    assert line.per_span(places[4], "ann") == (0.0, 3.0)


def test_a_higher_class_goes_ahead_and_a_lower_one_does_not() -> None:
    line = Line()
    high, low = line.come("ann", priority=5), line.come("bob", priority=-5)
    assert line.per_span(low, "bob") == (1.0, 0.0)
    assert line.per_span(high, "ann") == (0.0, 0.0)


def test_an_owner_who_comes_often_is_as_far_ahead_as_it_is_now() -> None:
    line = Line()
    for _ in range(4):
        line.come("bob")
    mine = [line.come("ann") for _ in range(2)][1]
    assert line.per_span(mine, "ann") == (0.0, 0.0)  # bob's next turn comes after five shares


def test_only_the_last_arrivals_count() -> None:
    line = Line()
    for n in range(REMEMBERED * 2):
        line.come(f"o{n}", at_ms=n)
    assert len(line.overtaking.arrivals) == len(line.overtaking.comers) == REMEMBERED
    assert line.overtaking.arrivals[0][0] == REMEMBERED
