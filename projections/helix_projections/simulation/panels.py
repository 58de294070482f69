"""What a picture of a sweep shows, before anybody draws it: which measures, over what, as which lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from helix_es.core.errors import Misconfigured
from helix_projections.simulation.axis import Axis, Point
from helix_projections.simulation.sweep import Answer
from helix_projections.simulation.target import Measures, Target, spoken_ms

Unit = Literal["ms", "share", "number"]

MOST_LINES = 8  # more of them nobody tells apart


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a panel; a None in `y` is a gap."""

    x: tuple[float, ...]
    y: tuple[float | None, ...]
    group: int
    """Which value of the second quantity: its colour."""
    style: int = 0
    """Which of the panel's measures: solid first."""
    joined: bool = True
    """False: only its points are drawn."""
    labels: tuple[str, ...] = ()
    """What stands beside its points."""


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """Measures of one kind, over the swept quantity."""

    title: str
    unit: Unit
    measures: tuple[str, ...]
    """What the styles mean; with a single one the title says it."""
    lines: tuple[Line, ...]
    low: float | None = None
    """Where its axis begins; None: where it serves."""
    limits: tuple[tuple[float, str], ...] = ()
    """What should be reached, and what happened: a level and its words."""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """All panels of a sweep; they share their x axis and the meaning of their colours."""

    title: str
    notes: tuple[str, ...]
    x_title: str
    x: tuple[float, ...]
    groups: tuple[str, ...]
    """What the colours mean; empty: there is one line."""
    panels: tuple[Panel, ...]


WAITS = (("p95", "p95"), ("p50", "p50"), ("p99", "p99"))


class Sketch(msgspec.Struct, frozen=True, kw_only=True):
    """What a picture is made of."""

    title: str
    notes: tuple[str, ...]
    axes: tuple[Axis, ...]
    answers: Sequence[Answer]
    within_ms: int
    targets: tuple[Target, ...] = ()
    was: Measures | None = None
    """As it was, by the log."""


def picture(sketch: Sketch) -> Picture:
    """Return what to draw. Raises Misconfigured: nothing is varied, or more than lines can show."""
    varied = [axis for axis in sketch.axes if axis.varied]
    if not varied:
        raise Misconfigured(
            "a plot needs something that varies: give a range, as in --coefficient mistral=1..16"
        )
    over = max(varied, key=lambda axis: len(axis.values))
    others = [axis for axis in varied if axis is not over]
    groups = _groups(sketch.answers, others)
    if len(groups) > MOST_LINES:
        raise Misconfigured(
            f"a plot with {len(groups)} lines cannot be read: vary {' and '.join(a.name for a in others)} less "
            f"(at most {MOST_LINES} combinations beside {over.name})"
        )
    return Picture(
        title=sketch.title,
        notes=sketch.notes,
        x_title=over.title,
        x=over.values,
        groups=tuple(_group_words(others, group) for group in groups) if others else (),
        panels=tuple(_panels(sketch, over, others, groups)),
    )


Group = tuple[float, ...]


def _groups(answers: Sequence[Answer], others: list[Axis]) -> list[Group]:
    return list(dict.fromkeys(_group(answer.point, others) for answer in answers))


def _group(point: Point, others: list[Axis]) -> Group:
    return tuple(point[axis.name] for axis in others)


def _group_words(others: list[Axis], group: Group) -> str:
    return ", ".join(axis.words(value) for axis, value in zip(others, group, strict=True))


def _panels(sketch: Sketch, over: Axis, others: list[Axis], groups: list[Group]) -> list[Panel]:
    found = []
    for title, unit, measures in _wanted(sketch):
        lines = [
            line
            for number, group in enumerate(groups)
            for style, (name, _) in enumerate(measures)
            if (line := _line(sketch, over, others, group, name, (number, style))) is not None
        ]
        if lines:
            found.append(
                Panel(
                    title=title,
                    unit=unit,
                    measures=tuple(words for _, words in measures),
                    lines=tuple(lines),
                    limits=_limits(sketch, measures),
                )
            )
    return found


def _wanted(sketch: Sketch) -> list[tuple[str, Unit, list[tuple[str, str]]]]:
    """Return title, unit and measures (name, words) of each panel."""
    within = spoken_ms(sketch.within_ms)

    def spread(name: str) -> list[tuple[str, str]]:
        return [(f"{name}_{which}_ms", words) for which, words in WAITS]

    return [
        ("wait for a slot, all turns", "ms", spread("wait")),
        ("said to first token, first turns", "ms", spread("first_first_token")),
        ("said to first token, continued turns", "ms", spread("continued_first_token")),
        (
            f"continued turns with their first token within {within}",
            "share",
            [("continued_first_token_share", "share")],
        ),
        ("utilisation", "share", [("busy", "GPUs that compute"), ("utilisation", "slots that are held")]),
        ("fine-tune: said to started", "ms", spread("finetune_start")[:2]),
        (
            f"turns with their first token within {within}, per GPU-hour",
            "number",
            [("goodput_per_gpu_hour", "goodput")],
        ),
    ]


def _line(
    sketch: Sketch, over: Axis, others: list[Axis], group: Group, name: str, place: tuple[int, int]
) -> Line | None:
    at = {
        answer.point[over.name]: answer.measures.get(name)
        for answer in sketch.answers
        if _group(answer.point, others) == group
    }
    xs = tuple(sorted(at))
    ys = tuple(at[x] for x in xs)
    if all(y is None for y in ys):
        return None
    return Line(x=xs, y=ys, group=place[0], style=place[1])


def _limits(sketch: Sketch, measures: list[tuple[str, str]]) -> tuple[tuple[float, str], ...]:
    names = {name for name, _ in measures}
    found = [
        (target.limit, target.mark())
        for target in sketch.targets
        if target.measure in names or _usual(target, sketch.within_ms) in names
    ]
    was = None if sketch.was is None else sketch.was.get(measures[0][0])
    if was is not None:
        found.append((was, f"as it was ({measures[0][1]})"))
    return tuple(found)


def _usual(target: Target, within_ms: int) -> str | None:
    """Return the name that an outcome has for a share of the usual kind."""
    if target.quantity == "first_token" and target.within_ms == within_ms:
        return "first_token_share" if target.turns == "all" else f"{target.turns}_first_token_share"
    return None
