"""Which runner processes to start and to end."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from helix_projections.fleet.provider import Standing
from helix_projections.fleet.staffing import Place, Plan, plan

STANDINGS: list[Standing | None] = ["serving", "draining", "drained", None]


def places(*standings: Standing | None) -> list[Place]:
    return [
        Place(gpu=gpu, standing=each) for gpu, each in zip(string.ascii_lowercase, standings, strict=False)
    ]


def test_what_is_missing_is_started() -> None:
    assert plan(3, places("serving"), most=3) == Plan(start=2)


def test_runners_that_have_not_joined_yet_count() -> None:
    assert plan(2, places(None, None), most=3) == Plan()


def test_another_is_started_beside_one_that_drains() -> None:
    assert plan(2, places("serving", "draining"), most=3).start == 1


def test_beside_one_that_drains_none_is_started_beyond_the_most() -> None:
    assert plan(3, places("serving", "serving", "draining"), most=3).start == 0


def test_one_that_drains_is_surplus_and_is_not_ended() -> None:
    assert plan(1, places("serving", "draining"), most=3) == Plan(surplus=1)


def test_one_that_has_drained_is_ended_before_one_that_has_not_joined() -> None:
    assert plan(1, places(None, None, "drained"), most=3) == Plan(surplus=2, end=("c", "b"))


def test_one_whose_gpu_is_gone_does_not_count_and_is_surplus_at_any_size() -> None:
    there = [Place(gpu="a", standing=None, gone=True), Place(gpu="b", standing="serving")]
    assert plan(2, there, most=3) == Plan(start=1, surplus=1, end=("a",))
    assert plan(2, there, most=2) == Plan(surplus=1, end=("a",))


def test_one_that_serves_is_never_ended_here_the_scheduler_tells_it_to_leave() -> None:
    assert plan(0, places("serving", "serving"), most=3) == Plan(surplus=2)


def test_nobody_is_ended_only_to_be_started_again() -> None:
    assert plan(2, places("serving", "draining", None), most=4) == Plan(surplus=1)


@given(
    size=st.integers(0, 6),
    standings=st.lists(st.sampled_from(STANDINGS), max_size=8),
    ending=st.lists(st.booleans(), min_size=8, max_size=8),
    gone=st.lists(st.booleans(), min_size=8, max_size=8),
    most=st.integers(1, 8),
)
def test_whoever_may_hold_somebody_is_spared_and_nothing_is_started_and_ended_at_once(
    size: int, standings: list[Standing | None], ending: list[bool], gone: list[bool], most: int
) -> None:
    size = min(size, most)
    there = [
        Place(gpu=place.gpu, standing=place.standing, gone=over and place.standing is None, ending=told)
        for place, told, over in zip(places(*standings), ending, gone, strict=False)
    ]
    by_name = {place.gpu: place for place in there}
    planned = plan(size, there, most=most)
    assert all(by_name[gpu].standing in ("drained", None) for gpu in planned.end)
    assert not any(by_name[gpu].ending for gpu in planned.end)
    assert len(planned.end) <= planned.surplus
    assert len(there) + planned.start <= max(most, len(there))
    rest = [Place(gpu=f"new{n}", standing=None) for n in range(planned.start)] + [
        place for place in there if place.gpu not in planned.end
    ]
    again = plan(size, rest, most=most)
    assert again.start <= len(planned.end)  # no more than places that came free under the most


@given(size=st.integers(0, 6), standings=st.lists(st.sampled_from(STANDINGS), max_size=8))
def test_when_all_that_leave_have_left_the_pool_has_its_size(
    size: int, standings: list[Standing | None]
) -> None:
    there = places(*standings)
    for _ in range(3):
        planned = plan(size, there, most=100)
        there = [place for place in there if place.gpu not in planned.end]
        there += [Place(gpu=f"new{len(there)}-{n}", standing="serving") for n in range(planned.start)]
        leaving = max(0, sum(p.standing == "serving" for p in there) - size)
        staying = [p for p in there if p.standing in ("serving", None)]
        # The scheduler tells so many to leave; they and those that drained are gone.
        there = staying[leaving:]
    assert len([p for p in there if p.standing == "serving"]) <= size
    assert len(there) == size
