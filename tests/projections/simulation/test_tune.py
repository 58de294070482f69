"""The search finds what looking at every point finds, and never claims a point that it did not see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from hypothesis import given, settings
from hypothesis import strategies as st

from helix_projections.simulation import frontier
from helix_projections.simulation.axis import Axis, Point, points
from helix_projections.simulation.sweep import Answer
from helix_projections.simulation.target import parse
from helix_projections.simulation.tune import EVERY_POINT, Prefer, Search, Tuned, tune
from tests.examples import many

TARGET = parse("p95 first token <= 1s")
First = Callable[[Point], float | None]


class Shop:
    """Answers points by a formula, and remembers which it was asked."""

    def __init__(self, first_token_ms: First) -> None:
        self._first_token_ms = first_token_ms
        self.asked: list[Point] = []

    def run(
        self, jobs: Sequence[Point], told: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Answer]:
        self.asked += jobs
        told(len(jobs), len(jobs))
        return [Answer(point=job, measures={"first_token_p95_ms": self._first_token_ms(job)}) for job in jobs]


def space(gpus: int, slots: int, reserved: int = 0) -> tuple[Axis, ...]:
    return (
        Axis(setting="gpus", of="a100-80", values=tuple(float(n) for n in range(1, gpus + 1))),
        Axis(setting="coefficient", of="mistral", values=tuple(float(n) for n in range(1, slots + 1))),
        Axis(setting="reserved", values=tuple(float(n) for n in range(reserved + 1))),
    )


def found(
    axes: tuple[Axis, ...], first: First, prefer: Prefer = "cost", *, every: bool = False
) -> tuple[Tuned, Shop]:
    shop = Shop(first)
    search = Search(axes=axes, targets=TARGET, prefer=prefer, every=every)
    return tune(search, shop, lambda done, total: None), shop


def least_cost(axes: tuple[Axis, ...], first: First) -> float | None:
    costs = [at["gpus_a100-80"] for at in points(axes) if (ms := first(at)) is not None and ms <= 1000]
    return min(costs, default=None)


@settings(max_examples=many(25), deadline=None)
@given(work=st.floats(0.5, 30), best_slots=st.integers(1, 40), slope=st.floats(1.01, 2))
def test_a_large_space_is_searched_in_part_and_its_cheapest_point_is_found(
    work: float, best_slots: int, slope: float
) -> None:
    """More GPUs help, and one coefficient is better than those on both sides: as in a real shop."""

    def first(at: Point) -> float:
        return 1000 * work / at["gpus_a100-80"] * slope ** (abs(at["coefficient_mistral"] - best_slots) / 4)

    axes = space(32, 40)
    tuned, shop = found(axes, first)
    cheapest = least_cost(axes, first)
    assert (tuned.best.point["gpus_a100-80"] if tuned.best else None) == cheapest
    assert len(shop.asked) == len(tuned.simulated) < tuned.points / 3
    assert tuned.points == 32 * 40


@settings(max_examples=many(25), deadline=None)
@given(data=st.data())
def test_whatever_the_measures_nothing_simulated_is_better_than_the_choice(data: st.DataObject) -> None:
    axes = space(data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), data.draw(st.integers(0, 2)))
    values: dict[tuple[float, ...], float | None] = {}

    def first(at: Point) -> float | None:
        key = tuple(at.values())
        if key not in values:
            values[key] = data.draw(st.one_of(st.none(), st.floats(1, 3000)))
        return values[key]

    tuned, shop = found(axes, first)
    assert [each.point for each in tuned.simulated] == sorted(shop.asked, key=lambda at: tuple(at.values()))
    reached = [each for each in tuned.simulated if (each.measures["first_token_p95_ms"] or 9999) <= 1000]
    assert (tuned.best is None) == (not reached)
    if tuned.best is not None:
        assert tuned.best in reached
        assert tuned.best.point["gpus_a100-80"] == min(each.point["gpus_a100-80"] for each in reached)
    if prod(len(axis.values) for axis in axes) <= EVERY_POINT:
        assert len(shop.asked) == tuned.points
    costs = [each.point["gpus_a100-80"] for each in tuned.frontier]
    slacks = [1 / (each.measures["first_token_p95_ms"] or float("inf")) for each in tuned.frontier]
    assert costs == sorted(set(costs))
    assert slacks == sorted(set(slacks))


def test_every_point_is_simulated_where_that_is_asked() -> None:
    tuned, shop = found(space(10, 10), lambda at: 10_000 / at["gpus_a100-80"], every=True)
    assert len(shop.asked) == tuned.points == 100


def test_where_nothing_reaches_it_the_closest_is_named() -> None:
    tuned, _ = found(space(4, 4), lambda at: 9000 / at["gpus_a100-80"] + at["coefficient_mistral"])
    assert tuned.best is None
    assert tuned.closest.point == {"gpus_a100-80": 4, "coefficient_mistral": 1, "reserved": 0}
    search = Search(axes=space(4, 4), targets=TARGET)
    assert frontier.sentence(search, tuned) == (
        "No combination reaches p95 first token <= 1s. The closest: 4 × a100-80, mistral = 1 a GPU, 0 GPUs kept free "
        "(cost 4): p95 first token 2.25 s. 16 of 16 combinations simulated."
    )


def test_most_kept_free_goes_before_cost_where_that_is_preferred() -> None:
    def first(at: Point) -> float:
        return 4000 / max(0.1, at["gpus_a100-80"] - at["reserved"])

    cheap, _ = found(space(8, 2, 3), first)
    free, _ = found(space(8, 2, 3), first, "reserved")
    assert cheap.best is not None
    assert free.best is not None
    assert (cheap.best.point["gpus_a100-80"], cheap.best.point["reserved"]) == (4, 0)
    assert (free.best.point["gpus_a100-80"], free.best.point["reserved"]) == (7, 3)


def test_prices_decide_between_kinds() -> None:
    axes = (
        Axis(setting="gpus", of="a100-80", values=(0, 1, 2, 3)),
        Axis(setting="gpus", of="l4-24", values=(0, 2, 4, 6)),
    )
    search = Search(axes=axes, targets=TARGET, prices={"a100-80": 2.5, "l4-24": 0.5})
    shop = Shop(lambda at: 3000 / max(0.1, at["gpus_a100-80"] + 0.5 * at["gpus_l4-24"]))
    tuned = tune(search, shop, lambda done, total: None)
    assert tuned.best is not None
    assert tuned.best.point == {"gpus_a100-80": 0, "gpus_l4-24": 6}
    assert search.cost(tuned.best.point) == 3.0
