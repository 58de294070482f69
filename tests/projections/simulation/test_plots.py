"""Pictures show what was measured, under axes that can be read, and are refused where nobody could read them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_es.core.errors import Misconfigured
from helix_projections.simulation.axis import Axis, points
from helix_projections.simulation.panels import Line, Panel, Picture, Sketch, picture
from helix_projections.simulation.plots import draw
from helix_projections.simulation.scales import Levels, ticks, wide
from helix_projections.simulation.sweep import Answer
from helix_projections.simulation.target import parse
from helix_projections.simulation.terminal import text

SLOTS = Axis(setting="coefficient", of="mistral", values=(1, 2, 4, 8, 16))
FREE = Axis(setting="reserved", values=(0, 1, 2))
TARGETS = parse("share of continued turns within 1.5s >= 95%")


def sketch(*axes: Axis) -> Sketch:
    answers = []
    for at in points(axes):
        slots, free = at.get("coefficient_mistral", 1), at.get("reserved", 0)
        measures: dict[str, float | None] = {
            f"{name}_{which}_ms": 10_000 * (1 + free) * by / slots**2
            for name in ("wait", "first_first_token", "continued_first_token")
            for which, by in (("p50", 0.1), ("p95", 1.0), ("p99", 2.0))
        }
        measures |= {"continued_first_token_share": 0.6 + 0.02 * slots, "busy": 0.5, "utilisation": None}
        answers.append(Answer(point=at, measures=measures))
    return Sketch(
        title="a sweep", notes=("of a test",), axes=axes, answers=answers, within_ms=1500, targets=TARGETS
    )


def test_the_axis_with_most_values_is_the_x_axis_and_the_others_are_lines() -> None:
    drawn = picture(sketch(FREE, SLOTS))
    assert (drawn.x_title, drawn.x) == ("coefficient of mistral", SLOTS.values)
    assert drawn.groups == ("0 GPUs kept free", "1 GPU kept free", "2 GPUs kept free")
    shares = next(panel for panel in drawn.panels if panel.unit == "share")
    assert [line.group for line in shares.lines] == [0, 1, 2]
    assert shares.lines[0].y == pytest.approx((0.62, 0.64, 0.68, 0.76, 0.92))
    assert shares.limits == ((0.95, "target: >= 95%"),)


def test_what_was_not_measured_has_no_panel_and_no_line() -> None:
    drawn = picture(sketch(SLOTS))
    assert not any("fine-tune" in panel.title for panel in drawn.panels)
    utilisation = next(panel for panel in drawn.panels if panel.title == "utilisation")
    assert [line.style for line in utilisation.lines] == [0]


def test_a_picture_of_nothing_varied_or_of_too_many_lines_is_refused() -> None:
    with pytest.raises(Misconfigured, match="give a range"):
        picture(sketch(Axis(setting="reserved", values=(1,))))
    many = Axis(setting="idle_after", values=tuple(range(1, 10)))
    with pytest.raises(Misconfigured, match="9 lines cannot be read: vary idle_after_s less"):
        picture(sketch(many, Axis(setting="coefficient", of="mistral", values=tuple(range(1, 11)))))


def test_png_and_svg_are_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    drawn = picture(sketch(SLOTS, FREE))
    for name in ("one.png", "one.svg", "two.svg"):
        draw(drawn, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")
    with pytest.raises(Misconfigured, match=r"must end in \.png or \.svg"):
        draw(drawn, tmp_path / "one.jpeg")
    with pytest.raises(Misconfigured, match="No such file"):
        draw(drawn, tmp_path / "nowhere" / "one.png")


def test_the_terminal_shows_every_panel_its_letters_and_what_they_mean() -> None:
    drawn = picture(sketch(SLOTS, FREE))
    said = text(drawn, width=80, colours=False)
    assert "\x1b" not in said.replace("\x1b[0m", "")
    for panel in drawn.panels:
        assert panel.title in said
    assert "A 0 GPUs kept free, p95   B 1 GPU kept free, p95   C 2 GPUs kept free, p95" in said
    assert "--- target: >= 95%" in said
    assert "coefficient of mistral" in said


def levels_of(unit: str, values: list[float]) -> Levels:
    line = Line(x=tuple(float(n) for n in range(len(values))), y=tuple(values), group=0)
    return Levels(Panel(title="", unit=unit, measures=("",), lines=(line,)))  # type: ignore[arg-type]


@given(values=st.lists(st.floats(0, 1e9), min_size=1, max_size=8), unit=st.sampled_from(["ms", "number"]))
def test_whatever_is_measured_its_axis_holds_it_and_has_named_ticks(values: list[float], unit: str) -> None:
    levels = levels_of(unit, values)
    assert levels.low <= min(values)
    assert max(values) <= levels.high
    assert len(levels.ticks) == len(set(levels.names))
    assert len(levels.ticks) >= (1 if levels.log else 2)
    places = [levels.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(math.isfinite(place) for place in places)


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_shares_that_are_all_high_get_the_room_they_need(values: list[float]) -> None:
    levels = levels_of("share", values)
    assert levels.low <= min(values)
    assert levels.high == 1.0
    assert len(levels.ticks) >= 2
    assert len(levels.names) == len(set(levels.names))


def test_only_values_of_many_sizes_get_a_logarithmic_axis() -> None:
    assert wide((1, 2, 4, 8, 16))
    assert not wide((1, 2, 3, 4))
    assert not wide(tuple(range(1, 17)))
    assert not wide((0, 1, 10))
    assert ticks(tuple(range(1, 101)))[:3] == [1, 7, 13]
    assert ticks((1, 2, 4, 8, 16, 24, 32, 40, 48, 56)) == [1, 2, 4, 8, 16, 24, 32, 48]


def test_a_point_without_a_value_is_left_out_of_its_line(tmp_path: Path) -> None:
    line = Line(x=(1, 2, 3), y=(1.0, None, 3.0), group=0)
    panel = Panel(title="gaps", unit="number", measures=("",), lines=(line,))
    gaps = Picture(title="t", notes=(), x_title="x", x=(1, 2, 3), groups=(), panels=(panel,))
    draw(gaps, tmp_path / "gaps.svg")
    assert text(gaps, width=80, colours=False).split("gaps")[1].count("A") == 2
