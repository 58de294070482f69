"""What a search found, as a table and a picture: cost against each target, and which points nothing beats."""

from __future__ import annotations

import math
from collections.abc import Callable

from helix_projections.simulation.axis import Axis, Point
from helix_projections.simulation.panels import Line, Panel, Picture
from helix_projections.simulation.sweep import Answer
from helix_projections.simulation.table import About, measured_cell
from helix_projections.simulation.target import Target
from helix_projections.simulation.tune import Search, Tuned

LOAD = ("time_scale", "thin")  # settings that are part of the question, not of the answer
MOST_ROWS = 40  # of the table; more are not read

OTHERS, FRONTIER, BEST = range(3)


def columns(search: Search) -> list[str]:
    """Return the headings of `rows`."""
    return [
        "",
        *(axis.heading for axis in search.axes if axis.varied),
        "COST",
        *(target.subject().upper() for target in search.targets),
        "REACHED",
    ]


def rows(search: Search, tuned: Tuned, shown: list[Answer]) -> list[list[str]]:
    """Return a row for each of `shown`, marked where it is the choice or on the frontier."""
    found = []
    for answer in shown:
        mark = "best" if answer is tuned.best else "frontier" if answer in tuned.frontier else ""
        found.append(
            [
                mark,
                *(f"{answer.point[axis.name]:g}" for axis in search.axes if axis.varied),
                f"{search.cost(answer.point):g}",
                *(measured_cell(target, answer.measures) for target in search.targets),
                "yes" if search.slack(answer) >= 1 else "no",
            ]
        )
    return found


def shown(search: Search, tuned: Tuned) -> list[Answer]:
    """Return what the table shows, by cost: all that was simulated, or of many only the frontier."""
    some = tuned.simulated if len(tuned.simulated) <= MOST_ROWS else tuned.frontier
    return sorted(some, key=lambda answer: (search.price(answer.point), -search.slack(answer)))


def settings(search: Search, point: Point) -> str:
    """Return a point in words."""
    return ", ".join(axis.words(point[axis.name]) for axis in search.axes if axis.setting not in LOAD)


def sentence(search: Search, tuned: Tuned) -> str:
    """Return the answer in words."""
    answer = tuned.best or tuned.closest
    values = ", ".join(
        f"{target.subject()} {measured_cell(target, answer.measures)}" for target in search.targets
    )
    at = f"{settings(search, answer.point)} (cost {search.cost(answer.point):g}): {values}"
    looked = f"{len(tuned.simulated)} of {tuned.points} combinations simulated"
    if tuned.best is None:
        return f"No combination reaches {_spoken(search)}. The closest: {at}. {looked}."
    what = "Most GPUs kept free" if search.prefer == "reserved" else "Least cost"
    return f"{what} that reaches {_spoken(search)}: {at}. {looked}."


def _spoken(search: Search) -> str:
    return " and ".join(target.words() for target in search.targets)


def frontier_picture(search: Search, tuned: Tuned, about: About) -> Picture:
    """Return what to draw: a panel for each target, over the cost; of one cost, over what varies."""
    title, over = _over(search, tuned)
    points = sorted({over(answer) for answer in tuned.simulated})
    return Picture(
        title=f"At what cost: {_spoken(search)}",
        notes=(
            about.source,
            f"{about.times}; {about.fleet}",
            about.rules,
            f"service: {'; '.join(about.service)}",
        ),
        x_title=title,
        x=tuple(points),
        groups=_groups(search, tuned),
        panels=tuple(_panel(target, search, tuned, over) for target in search.targets),
    )


def _groups(search: Search, tuned: Tuned) -> tuple[str, ...]:
    labelled = " / ".join(axis.title for axis in _labelled(search, tuned))
    frontier = f"frontier{f' (numbers: {labelled})' if labelled else ''}"
    return ("simulated", frontier, *(["the choice"] if tuned.best is not None else []))


Over = Callable[[Answer], float]


def _over(search: Search, tuned: Tuned) -> tuple[str, Over]:
    """Return over what the picture is drawn."""
    axis = _across(search, tuned)
    if axis is None:
        return ("cost" if search.prices else "GPUs"), lambda answer: search.cost(answer.point)
    return axis.title, lambda answer: answer.point[axis.name]


def _across(search: Search, tuned: Tuned) -> Axis | None:
    """Return the axis that is the x axis: what is kept free, or what varies most; None: it is the cost."""
    if len({search.cost(answer.point) for answer in tuned.simulated}) > 1 and search.prefer == "cost":
        return None
    varied = [axis for axis in search.axes if axis.varied]
    free = [axis for axis in varied if axis.setting == "reserved"]
    return free[0] if free else max(varied, key=lambda axis: len(axis.values))


def _panel(target: Target, search: Search, tuned: Tuned, over: Over) -> Panel:
    labelled = _labelled(search, tuned)
    others = [each for each in tuned.simulated if each not in tuned.frontier and each is not tuned.best]
    lines = [
        _line(target, labelled, others, over, OTHERS),
        _line(target, labelled, tuned.frontier, over, FRONTIER),
    ]
    if tuned.best is not None:
        lines.append(_line(target, labelled, [tuned.best], over, BEST))
    return Panel(
        title=target.subject(),
        unit="share" if target.within_ms is not None else "ms",
        measures=("",),
        lines=tuple(line for line in lines if any(y is not None for y in line.y)),
        limits=((target.limit, target.mark()),),
        low=_low(target, tuned),
    )


def _low(target: Target, tuned: Tuned) -> float | None:
    """Return where the axis of a share begins: not far below the frontier, where the choice is."""
    if target.within_ms is None:
        return None
    known = [y for each in tuned.frontier if (y := each.measures.get(target.measure)) is not None]
    return max(0.0, math.floor(10 * min([*known, target.limit]) - 0.5) / 10)


def _labelled(search: Search, tuned: Tuned) -> list[Axis]:
    """Return what stands beside the points of the frontier: what the x axis does not say."""
    across = _across(search, tuned)
    return [axis for axis in search.axes if axis.varied and axis is not across and axis.setting != "gpus"]


def _line(target: Target, labelled: list[Axis], answers: list[Answer], over: Over, group: int) -> Line:
    ordered = sorted(answers, key=over)
    labels = [" / ".join(f"{each.point[axis.name]:g}" for axis in labelled) for each in ordered]
    return Line(
        x=tuple(over(answer) for answer in ordered),
        y=tuple(answer.measures.get(target.measure) for answer in ordered),
        group=group,
        joined=group == FRONTIER,
        labels=tuple(labels) if group == FRONTIER else (),
    )
