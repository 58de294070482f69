"""Pictures of a sweep as PNG or SVG. Imports matplotlib: import this module only where a picture is wanted."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from helix_es.core.errors import Misconfigured
from helix_projections.simulation.panels import Line, Panel, Picture
from helix_projections.simulation.scales import LINEAR_MS, Levels, ticks, wide

KINDS = {".png": "png", ".svg": "svg"}

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d", "#555555")
"""Okabe and Ito's, which people with any colour vision can tell apart, and two more."""
STYLES: tuple[Literal["-", ":", "--"], ...] = ("-", ":", "--")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LIMIT_COLOURS = ("#b00020", "#444444", "#888888")
LIMIT_STYLE: tuple[float, tuple[float, float]] = (0.0, (6.0, 2.0))  # long dashes

PANEL_INCHES = (5.2, 3.1)
SINGLE_INCHES = (8.6, 4.4)  # of a panel that stands alone
NOTE_INCHES, KEY_INCHES, TITLE_INCHES = 0.061, 0.068, 0.112  # a character's width, on average, in each size
MARGIN = 0.012
DPI = 110


def kind_of(path: Path) -> str:
    """Return `png` or `svg`. Raises Misconfigured for another ending."""
    try:
        return KINDS[path.suffix.lower()]
    except KeyError:
        raise Misconfigured(f"--plot {path}: must end in .png or .svg, or be - for the terminal") from None


def draw(picture: Picture, path: Path) -> None:
    """Write the picture to `path`. Raises Misconfigured: another ending than .png and .svg, or it cannot be written."""
    kind = kind_of(path)
    figure = _figure(picture)
    # the same numbers give the same bytes: no date, no random ids
    with matplotlib.rc_context({"svg.hashsalt": "helix", "svg.fonttype": "path"}):
        try:
            figure.savefig(path, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else {})
        except OSError as error:
            raise Misconfigured(f"--plot {path}: {error.strerror or error}") from error


def _figure(picture: Picture) -> Figure:
    columns = min(3, len(picture.panels)) if len(picture.panels) != 4 else 2
    rows = math.ceil(len(picture.panels) / columns)
    panel = PANEL_INCHES if columns > 1 else SINGLE_INCHES
    width = columns * panel[0]
    title = textwrap.fill(picture.title, int(width / TITLE_INCHES))
    notes = [line for note in picture.notes for line in textwrap.wrap(note, int(width / NOTE_INCHES))]
    head = 0.35 + 0.22 * title.count("\n") + 0.17 * len(notes)
    across = _keys_across(picture, width)
    foot = 0.1 + 0.24 * math.ceil(len(picture.groups) / across)
    height = rows * panel[1] + head + foot
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    cells = [cell for row in figure.subplots(rows, columns, squeeze=False) for cell in row]
    for cell, each in zip(cells, picture.panels, strict=False):
        _panel(cell, each, picture)
    for cell in cells[len(picture.panels) :]:
        cell.set_visible(False)
    figure.text(MARGIN, 1 - 0.1 / height, title, fontsize=13, weight="bold", va="top")
    below = 0.38 + 0.22 * title.count("\n")
    figure.text(MARGIN, 1 - below / height, "\n".join(notes), fontsize=8.5, color="#444444", va="top")
    figure.tight_layout(rect=(0, foot / height, 1, 1 - (head + 0.1) / height), h_pad=1.2, w_pad=1.6)
    _legend(figure, picture, across)
    return figure


def _keys_across(picture: Picture, width: float) -> int:
    """Return how many entries of the legend stand beside each other."""
    longest = max((len(words) for words in picture.groups), default=0)
    return max(1, min(len(picture.groups) or 1, int(width / (longest * KEY_INCHES + 0.6))))


def _legend(figure: Figure, picture: Picture, across: int) -> None:
    """Say once, below, what the colours mean."""
    if picture.groups:
        handles = [
            Line2D([], [], color=COLOURS[n], marker=MARKERS[n], markersize=4, label=words)
            for n, words in enumerate(picture.groups)
        ]
        figure.legend(handles=handles, loc="lower center", ncols=across, frameon=False, fontsize=9)


def _panel(cell: Any, panel: Panel, picture: Picture) -> None:
    for line in panel.lines:
        _line(cell, line, len(picture.groups))
    for number, (level, words) in enumerate(panel.limits):
        cell.axhline(
            level, color=LIMIT_COLOURS[number % 3], linewidth=1.0, linestyle=LIMIT_STYLE, label=words
        )
    cell.set_title(panel.title, fontsize=10, loc="left")
    cell.set_xlabel(picture.x_title, fontsize=9)
    cell.grid(visible=True, color="#dddddd", linewidth=0.6)
    cell.set_axisbelow(True)
    cell.spines[["top", "right"]].set_visible(False)
    cell.tick_params(labelsize=8)
    _x_axis(cell, picture.x)
    _y_axis(cell, panel)
    _styles(cell, panel)


def _line(cell: Any, line: Line, groups: int) -> None:
    there = [(x, y, n) for n, (x, y) in enumerate(zip(line.x, line.y, strict=True)) if y is not None]
    below = max(0, min(4, groups - 1 - line.group))  # lines that others may cover are broader
    faint = line.style > 0
    cell.plot(
        [x for x, _, _ in there],
        [y for _, y, _ in there],
        color=COLOURS[line.group],
        linestyle=STYLES[line.style] if line.joined else "",
        linewidth=1.0 if faint else 1.5 + 0.8 * below,
        marker=None if faint else MARKERS[line.group],
        markersize=9 if len(there) == 1 and not line.joined else 3.5,
        alpha=0.75 if faint else 1.0,
    )
    for x, y, n in there:
        if line.labels:
            cell.annotate(line.labels[n], (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7.5)


def _styles(cell: Any, panel: Panel) -> None:
    """Say what the styles and the level lines of this panel mean."""
    used = {line.style for line in panel.lines}
    handles = [
        Line2D([], [], color="#222222", linestyle=STYLES[n], linewidth=1.2, label=words)
        for n, words in enumerate(panel.measures)
        if n in used and len(panel.measures) > 1
    ]
    handles += [
        Line2D([], [], color=LIMIT_COLOURS[n % 3], linestyle=LIMIT_STYLE, linewidth=1.0, label=words)
        for n, (_, words) in enumerate(panel.limits)
    ]
    if handles:
        above = panel.unit != "share"  # there the axis has room for it; shares end at 100 %
        cell.legend(
            handles=handles,
            fontsize=7.5,
            framealpha=0.85,
            edgecolor="none",
            loc="upper right" if above else "best",
            ncols=len(handles) if above and len(handles) <= 4 else 3 if above else 1,
            handlelength=2.6,
        )


def _x_axis(cell: Any, values: tuple[float, ...]) -> None:
    """Name the values that were tried; a range of many sizes gets a logarithmic axis."""
    if wide(values):
        cell.set_xscale("log", base=2)
        cell.xaxis.set_minor_locator(NullLocator())
    shown = ticks(values)
    cell.set_xticks(shown, [f"{value:g}" for value in shown])


def _y_axis(cell: Any, panel: Panel) -> None:
    levels = Levels(panel)
    if levels.log:
        cell.set_yscale("symlog", linthresh=LINEAR_MS, linscale=0.4)
    cell.set_ylim(levels.low, levels.high * (1.02 if panel.unit == "share" else 1.0))
    cell.yaxis.set_major_locator(FixedLocator(levels.ticks))
    cell.yaxis.set_major_formatter(FixedFormatter(levels.names))
    cell.yaxis.set_minor_locator(NullLocator())
