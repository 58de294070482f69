"""Which rules and how large a fleet reach a target at least cost: a search from coarse to fine, and its frontier."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol

import msgspec

from helix_projections.simulation.axis import Axis, Point
from helix_projections.simulation.sweep import Answer
from helix_projections.simulation.target import Target, worst

EVERY_POINT = 48  # a space of up to so many points is simulated whole
COARSE = 4  # intervals that an axis is first cut into

Prefer = Literal["cost", "reserved"]
Cell = tuple[int, ...]
"""Which value of each axis."""
Told = Callable[[int, int], None]


class Simulated(Protocol):
    """Who answers points: a `Crew`."""

    def run(self, jobs: Sequence[Point], told: Told = ...) -> list[Answer]:
        """Return an answer to each."""


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for, and where."""

    axes: tuple[Axis, ...]
    targets: tuple[Target, ...]
    prices: dict[str, float] = {}
    """GPU kind -> what one of it costs; 1 where nothing is said, so that the cost is their number."""
    fleet: dict[str, int] = {}
    """GPU kind -> how many there are of it, where no axis says it."""
    prefer: Prefer = "cost"
    """`reserved`: as many GPUs kept free as can be, and then the least cost."""
    every: bool = False
    """Simulate every point, however many there are."""

    def cost(self, point: Point) -> float:
        """Return what the fleet of `point` costs."""
        counted = {axis.of: point[axis.name] for axis in self.axes if axis.setting == "gpus"}
        return sum(count * self.prices.get(kind, 1.0) for kind, count in {**self.fleet, **counted}.items())

    def slack(self, answer: Answer) -> float:
        """Return by what factor all targets are kept, 1 or more where they are reached."""
        return worst(self.targets, answer.measures)

    def price(self, point: Point) -> tuple[float, ...]:
        """Return what should be small, what matters most first."""
        reserved = point.get("reserved", 0.0)
        return (-reserved, self.cost(point)) if self.prefer == "reserved" else (self.cost(point),)


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. All of it stands on simulated points only."""

    best: Answer | None
    """The one that reaches the target at least price, with the most slack among equals; None: no point does."""
    closest: Answer
    """The one with the most slack."""
    frontier: list[Answer]
    """Those that no other point beats in price and slack at once, by price."""
    simulated: list[Answer]
    """All points that were simulated, in the order of the space."""
    points: int
    """How many the space has."""


def tune(search: Search, crew: Simulated, told: Told) -> Tuned:
    """Return the best of the search's space. The same search and answers give the same result."""
    return _Space(search, crew, told).tuned()


class _Space:
    def __init__(self, search: Search, crew: Simulated, told: Told) -> None:
        self._search = search
        self._crew = crew
        self._told = told
        self._sizes = [len(axis.values) for axis in search.axes]
        self._known: dict[Cell, Answer] = {}
        self.points = 1
        for size in self._sizes:
            self.points *= size

    def tuned(self) -> Tuned:
        if self._search.every or self.points <= EVERY_POINT:
            self._simulate(itertools.product(*(range(size) for size in self._sizes)))
        else:
            self._refine()
            self._polish()
        answers = [self._known[cell] for cell in sorted(self._known)]
        reached = [each for each in answers if self._search.slack(each) >= 1]
        return Tuned(
            best=min(reached, key=self._rank, default=None),
            closest=min(
                answers, key=lambda each: (-self._search.slack(each), self._search.price(each.point))
            ),
            frontier=self._frontier(answers),
            simulated=answers,
            points=self.points,
        )

    def _refine(self) -> None:
        """Simulate a coarse lattice, then ever finer ones around what is worth a closer look.

        Nothing is taken to grow or fall with anything: whatever lies near a point of the frontier is looked at.
        """
        steps = [_coarse(size) for size in self._sizes]
        self._simulate(self._lattice(steps))
        while max(steps) > 1:
            around = [self._cell(each) for each in self._frontier(list(self._known.values()))]
            finer = [max(1, step // 2) for step in steps]
            self._simulate(
                cell
                for cell in self._lattice(finer)
                if any(
                    all(abs(a - b) <= step for a, b, step in zip(cell, near, steps, strict=True))
                    for near in around
                )
            )
            steps = finer

    def _polish(self) -> None:
        """Go on to neighbours of the best point, as long as one of them is better."""
        while True:
            reached = [each for each in self._known.values() if self._search.slack(each) >= 1]
            if not reached:
                return
            best = self._cell(min(reached, key=self._rank))
            before = len(self._known)
            self._simulate(
                near
                for near in itertools.product(*(range(at - 1, at + 2) for at in best))
                if all(0 <= at < size for at, size in zip(near, self._sizes, strict=True))
                and self._search.price(self._point(near)) <= self._search.price(self._point(best))
            )
            if len(self._known) == before:
                return

    def _lattice(self, steps: list[int]) -> Iterable[Cell]:
        """Return every so-manieth value of each axis, and the last."""
        along = [
            sorted({*range(0, size, step), size - 1}) for size, step in zip(self._sizes, steps, strict=True)
        ]
        return itertools.product(*along)

    def _simulate(self, cells: Iterable[Cell]) -> None:
        new = [cell for cell in dict.fromkeys(cells) if cell not in self._known]
        before = len(self._known)

        def told(done: int, total: int) -> None:
            self._told(before + done, before + total)

        answers = self._crew.run([self._point(cell) for cell in new], told)
        self._known.update(zip(new, answers, strict=True))

    def _point(self, cell: Cell) -> Point:
        return {axis.name: axis.values[at] for axis, at in zip(self._search.axes, cell, strict=True)}

    def _cell(self, answer: Answer) -> Cell:
        return tuple(axis.values.index(answer.point[axis.name]) for axis in self._search.axes)

    def _rank(self, answer: Answer) -> tuple[tuple[float, ...], float, Cell]:
        return self._search.price(answer.point), -self._search.slack(answer), self._cell(answer)

    def _frontier(self, answers: list[Answer]) -> list[Answer]:
        """Return, by price, those with more slack than every one that costs less or as much."""
        found: list[Answer] = []
        for each in sorted(answers, key=self._rank):
            slack, price = self._search.slack(each), self._search.price(each.point)
            if not any(
                self._search.slack(other) >= slack and _no_more(other, price, self._search) for other in found
            ):
                found.append(each)
        return found


def _no_more(other: Answer, price: tuple[float, ...], search: Search) -> bool:
    return all(a <= b for a, b in zip(search.price(other.point), price, strict=True))


def _coarse(size: int) -> int:
    """Return the largest power of two that still cuts an axis of `size` values into enough intervals."""
    step = 1
    while size - 1 >= COARSE * step * 2:
        step *= 2
    return step
