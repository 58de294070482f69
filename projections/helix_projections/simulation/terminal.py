"""The same pictures in a terminal. Imports plotext: import this module only where a picture is wanted."""

from __future__ import annotations

from typing import Any

import plotext

from helix_projections.simulation.panels import Line, Panel, Picture
from helix_projections.simulation.scales import Levels, across, ticks

HEIGHT = 15  # rows of one panel
LETTERS = "ABCDEFGH"


def text(picture: Picture, *, width: int, colours: bool) -> str:
    """Return all panels one below the other, at most `width` columns wide, each with what its letters mean."""
    parts = [picture.title, *picture.notes]
    for panel in picture.panels:
        lines = _shown(panel, picture)
        parts += [
            "",
            f"  {panel.title}",
            _drawn(panel, lines, picture, (width, colours)),
            _key(panel, lines, picture),
        ]
    return "\n".join(parts)


def _shown(panel: Panel, picture: Picture) -> list[Line]:
    """Return what there is room for: every measure of one line, or the first measure of several lines."""
    return [line for line in panel.lines if line.style == 0 or not picture.groups]


def _drawn(panel: Panel, lines: list[Line], picture: Picture, form: tuple[int, bool]) -> str:
    width, colours = form
    figure: Any = plotext.figure
    figure.clear()
    figure.theme("simple" if colours else "colorless")
    figure.plot_size(width, HEIGHT)
    levels = Levels(panel)
    ends = [across(min(picture.x), picture.x), across(max(picture.x), picture.x)]
    for level, _ in panel.limits:
        figure.draw(figure.signal(ends, [levels.place(level)] * 2, marker="-").lines())
    drawn = []
    for line in lines:
        xs = [across(x, picture.x) for x, y in zip(line.x, line.y, strict=True) if y is not None]
        ys = [levels.place(y) for y in line.y if y is not None]
        if line.joined:
            figure.draw(figure.signal(xs, ys, marker="braille").lines())
        drawn.append((xs, ys))
    for letter, (xs, ys) in zip(LETTERS, drawn, strict=False):  # last, so that no line covers a letter
        figure.draw(figure.signal(xs, ys, marker=letter))
    figure.label(picture.x_title, "x")
    named = ticks(picture.x)
    figure.ruler("x").ticks([across(value, picture.x) for value in named], [f"{value:g}" for value in named])
    figure.ruler("y", "left").lim(levels.place(levels.low), levels.place(levels.high))
    figure.ruler("y", "left").ticks([levels.place(tick) for tick in levels.ticks], levels.names)
    return str(figure.build().string(colorless=not colours)).rstrip("\n")


def _key(panel: Panel, lines: list[Line], picture: Picture) -> str:
    """Return what the letters and the level lines mean."""
    single = len(panel.measures) == 1
    parts = []
    for letter, line in zip(LETTERS, lines, strict=False):
        words = [picture.groups[line.group]] if picture.groups else []
        words += [] if single else [panel.measures[line.style]]
        if words:
            parts.append(f"{letter} {', '.join(words)}")
    return "  " + "   ".join(parts + [f"--- {words}" for _, words in panel.limits])
