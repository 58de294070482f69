"""Axes that people can read: round durations, logarithms where a range asks for them, names for values."""

from __future__ import annotations

import itertools
import math

from helix_projections.simulation.panels import Panel
from helix_projections.simulation.target import spoken_ms

LINEAR_MS = 10.0  # below it an axis of wide range is linear, so that a wait of 0 has a place
WIDE = 20.0  # a range whose ends differ by more gets a logarithmic axis
MOST_TICKS = 17  # names of values along the x axis

_HOUR_MS = 3_600_000
TICKS_MS = (0, 10, 100, 1_000, 10_000, 60_000, 600_000, _HOUR_MS, 6 * _HOUR_MS, 24 * _HOUR_MS, 240 * _HOUR_MS)
"""Of a logarithmic axis of durations."""


def wide(values: tuple[float, ...]) -> bool:
    """Return whether the values of an x axis are of so many sizes that it must be logarithmic."""
    ordered = sorted(values)
    if ordered[0] <= 0 or ordered[-1] / ordered[0] < 8:
        return False
    gaps = [after - before for before, after in itertools.pairwise(ordered)]
    return max(gaps) > 1.5 * min(gaps)


def across(value: float, values: tuple[float, ...]) -> float:
    """Return where a value is along an x axis of `values`, in whatever unit."""
    return math.log2(value) if wide(values) else value


def ticks(values: tuple[float, ...]) -> list[float]:
    """Return the values that are named along the x axis: all, or those that leave each other room for a name."""
    ordered = sorted(values)
    places = [across(value, values) for value in ordered]
    room = (places[-1] - places[0]) / MOST_TICKS
    named = [ordered[0]]
    for value, place in zip(ordered[1:], places[1:], strict=True):
        if place - across(named[-1], values) >= room * 0.999:
            named.append(value)
    return named


class Levels:
    """The y axis of a panel: from where to where, whether logarithmic, and the ticks with their names."""

    def __init__(self, panel: Panel) -> None:
        found = [y for line in panel.lines for y in line.y if y is not None]
        found += [level for level, _ in panel.limits]
        least, top = min(found), max(found)
        above = min((level for level in found if level > 0), default=0.0)
        self.log = panel.unit == "ms" and above > 0 and top > WIDE * max(above, LINEAR_MS)
        if panel.unit == "share":
            # targets are between 90 and 100 %: from 0 on the differences there would be lost
            self.low, self.high = (0.0 if least < 0.5 else math.floor(least * 10 - 0.01) / 10), 1.0
        elif self.log:
            self.low, self.high = (0.0 if least < LINEAR_MS else above / 1.5), top * 3.0
        else:
            # room above for the legend; less than 1 of anything is noise, and nobody counts waits of 0 in ms
            self.low, self.high = 0.0, max(top * 1.25, 1.0) if top else 1000.0
        if panel.low is not None:
            self.low = panel.low
        self.ticks = [tick for tick in self._ticks(panel) if self.low <= tick <= self.high * 1.0001]
        self.names = [_name(tick, panel) for tick in self.ticks]

    def _ticks(self, panel: Panel) -> list[float]:
        if self.log:
            return [float(tick) for tick in TICKS_MS]
        if panel.unit == "ms":
            return even_ms(self.high)
        return _even(self.low, self.high)

    def place(self, level: float) -> float:
        """Return where `level` is along the axis, for a drawing that knows only linear ones."""
        if not self.log:
            return level
        return level / LINEAR_MS if level < LINEAR_MS else 1.0 + 2.0 * math.log10(level / LINEAR_MS)


def even_ms(top: float) -> list[float]:
    """Return up to seven round durations from 0 to `top`."""
    steps = [base * unit for unit in (0.1, 1, 10, 100, 1_000) for base in (1, 2, 5)]
    steps += [10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000]
    steps += [_HOUR_MS * hours for hours in (1, 2, 3, 6, 12, 24, 72, 240)]
    step = next((each for each in steps if top / each <= 6.5), steps[-1])
    return [float(step * n) for n in range(int(top / step) + 1)]


def _even(low: float, high: float) -> list[float]:
    """Return four to seven round numbers from `low` to `high`."""
    span = max(high - low, 1e-9)
    unit = 10 ** math.floor(math.log10(span))
    step = next(base * unit for base in (0.1, 0.2, 0.5, 1, 2, 5) if span / (base * unit) <= 6.5)
    first = math.ceil(low / step - 1e-6)
    return [round(step * n, 10) for n in range(first, int(high / step + 1e-6) + 1)]


def _name(tick: float, panel: Panel) -> str:
    if panel.unit == "share":
        return f"{tick:.0%}"
    if panel.unit == "ms":
        return spoken_ms(tick) if tick else "0"
    return f"{tick:,g}"
