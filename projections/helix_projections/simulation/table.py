"""A sweep as a table: what stands above it, its rows for people, and its columns for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import msgspec

from helix_projections.simulation.axis import Axis, Point
from helix_projections.simulation.sweep import Answer
from helix_projections.simulation.target import Measures, Target, share_name, spoken_ms, worst

Cell = float | str | None

WORDS = {"was": "as it was", "own": "own rules, simulated", "what_if": "what if"}


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What every table says above its columns: without it the numbers mean nothing."""

    source: str
    """Which trace or log, and how much of it."""
    times: str
    """By how much the times of arrival were scaled, and the sessions thinned."""
    fleet: str
    rules: str
    service: tuple[str, ...]
    """How long the GPUs are taken to compute, and where that comes from."""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return it as it is read."""
        named = [("source", self.source), ("times", self.times), ("fleet", self.fleet), ("rules", self.rules)]
        named += [("service" if not n else "", line) for n, line in enumerate(self.service)]
        named += [("note", line) for line in self.notes]
        return [f"{name:<8}{words}" for name, words in named]


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Answers, in their order, under what they are about."""

    about: About
    axes: tuple[Axis, ...]
    answers: Sequence[Answer]
    within_ms: int
    targets: tuple[Target, ...] = ()
    was: Measures | None = None
    """As it was by the log: the first row."""
    own: Measures | None = None
    """The log's own rules and fleet, simulated: the second row, to compare the others with."""

    @property
    def varied(self) -> list[Axis]:
        return [axis for axis in self.axes if axis.varied]

    def lines(self) -> list[tuple[str, Point, Measures]]:
        """Return what each row is (`was`, `own`, `what_if`), its settings, and what was measured."""
        found: list[tuple[str, Point, Measures]] = [
            (words, {}, measures)
            for words, measures in (("was", self.was), ("own", self.own))
            if measures is not None
        ]
        return found + [("what_if", answer.point, answer.measures) for answer in self.answers]


def columns(table: Table) -> list[str]:
    """Return the headings of `rows`."""
    return [
        *([""] if table.was is not None else []),
        *(axis.heading for axis in table.varied),
        *(title for title, _, _ in _shown(table)),
        *(["REACHED"] if table.targets else []),
    ]


def legend(table: Table) -> str:
    """Return what the headings mean."""
    within = spoken_ms(table.within_ms)
    coefficients = [axis.heading for axis in table.varied if axis.setting == "coefficient"]
    parts = [f"{' and '.join(coefficients)}: sessions a GPU holds"] if coefficients else []
    parts += [
        "WAIT: said to admitted",
        "1ST TURN, CONT.: said to first token, of first and of continued turns",
        f"≤ {within}: continued turns that had it by then",
        "BUSY: GPUs that compute",
        "HELD: slots",
        f"GOOD/GPU-H: turns with it by {within}",
    ]
    return "; ".join(parts)


def rows(table: Table) -> list[list[str]]:
    """Return a row for what was, if there is a log, and one for each answer."""
    found = []
    for words, point, measures in table.lines():
        first = [WORDS[words]] if table.was is not None else []
        at = [f"{point[axis.name]:g}" if axis.name in point else "-" for axis in table.varied]
        found.append([*first, *at, *_cells(table, measures)])
    return found


def _cells(table: Table, measures: Measures) -> list[str]:
    cells = [_cell(measures.get(name), form) for _, name, form in _shown(table)]
    if table.targets:
        slack = worst(table.targets, measures)
        cells.append("yes" if slack >= 1 else "no")
    return cells


def _shown(table: Table) -> list[tuple[str, str, str]]:
    """Return heading, measure and form of what a person is shown: what differs in what matters."""
    within = spoken_ms(table.within_ms)
    found = [
        ("WAIT P50", "wait_p50_ms", "ms"),
        ("P95", "wait_p95_ms", "ms"),
        ("P99", "wait_p99_ms", "ms"),
        ("1ST TURN P95", "first_first_token_p95_ms", "ms"),
        ("CONT. P95", "continued_first_token_p95_ms", "ms"),
        (f"≤ {within}", "continued_first_token_share", "share"),
        ("BUSY", "busy", "share"),
        ("HELD", "utilisation", "share"),
        ("GOOD/GPU-H", "goodput_per_gpu_hour", "number"),
    ]
    there = [answer.measures for answer in table.answers] + [each for each in (table.was, table.own) if each]
    if any(each.get("finetunes") for each in there):
        found += [("FINE-TUNES", "finetunes", "number"), ("START P95", "finetune_start_p95_ms", "ms")]
    if any(each.get("unfinished") for each in there):
        found.append(("UNFINISHED", "unfinished", "number"))
    seen = {name for _, name, _ in found}
    if table.within_ms:
        seen.add(share_name("continued", "first_token", table.within_ms))
    for target in table.targets:
        if target.measure not in seen:
            seen.add(target.measure)
            found.append(
                (target.subject().upper(), target.measure, "share" if target.within_ms is not None else "ms")
            )
    return found


def measured_cell(target: Target, measures: Measures) -> str:
    """Return what was measured of what `target` limits."""
    return _cell(measures.get(target.measure), "share" if target.within_ms is not None else "ms")


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    if form == "share":
        return f"{value * 100:.1f}%"
    return short_ms(value) if form == "ms" else f"{value:,.0f}"


def short_ms(ms: float) -> str:
    """Return a duration of about three digits in the unit that fits it."""
    if ms < 999.5:
        return f"{ms:.0f} ms"
    for unit, each_ms, most in (("s", 1_000, 120), ("min", 60_000, 120)):
        if ms < most * each_ms:
            return f"{ms / each_ms:.{2 if ms < 10 * each_ms else 1}f} {unit}"
    return f"{ms / 3_600_000:.1f} h"


def records(table: Table) -> dict[str, list[Cell]]:
    """Return everything that was measured by column, each with a value or None for every row.

    The first columns say what a row is, under which settings, and what all of it stands on.
    """
    lines = table.lines()
    names = list(dict.fromkeys(name for _, _, measures in lines for name in measures))
    found: dict[str, list[Cell]] = {"row": [words for words, _, _ in lines]}
    for axis in table.axes:
        found[axis.name] = [point.get(axis.name) for _, point, _ in lines]
    for name in ("time_scale", "thin"):  # factors stand in every table
        found.setdefault(name, [1.0] * len(lines))
    for name, text in (("source", table.about.source), ("service", "; ".join(table.about.service))):
        found[name] = [text] * len(lines)
    if table.targets:
        slacks = [worst(table.targets, measures) for _, _, measures in lines]
        found["reached"] = [1.0 if slack >= 1 else 0.0 for slack in slacks]
    for name in names:
        found[name] = [measures.get(name) for _, _, measures in lines]
    return found


def as_csv(table: Table) -> str:
    """Return `records` as CSV with a heading line; nothing stands where there is no value."""
    found = records(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(found)
    for row in zip(*found.values(), strict=True):
        writer.writerow(
            ["" if cell is None else f"{cell:.10g}" if isinstance(cell, float) else cell for cell in row]
        )
    return text.getvalue()
