"""Ranges are read as they are meant, and what is none is refused with an example."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_es.core.errors import Misconfigured
from helix_projections.simulation.ranges import counts, duration_ms, durations_ms, factors


@given(first=st.integers(0, 300), more=st.integers(0, 300), step=st.integers(1, 60))
def test_a_range_has_its_ends_and_steps_as_python_counts_them(first: int, more: int, step: int) -> None:
    last = first + more
    assert counts(f"{first}..{last}:{step}", "it") == tuple(range(first, last + 1, step))
    assert counts(f"{first}..{last}", "it") == tuple(range(first, last + 1))


def test_lists_and_ranges_mix_and_name_each_value_once() -> None:
    assert counts("1..4, 8,16,4", "it") == (1, 2, 3, 4, 8, 16)


def test_durations_count_in_the_unit_of_their_beginning() -> None:
    assert durations_ms("5s..8s", "it") == (5000, 6000, 7000, 8000)
    assert durations_ms("500ms..1s:250ms", "it") == (500, 750, 1000)
    assert durations_ms("1min,1.5s", "it") == (60_000, 1500)
    assert duration_ms("2 h") == 7_200_000


def test_factors_may_be_broken() -> None:
    assert factors("0.5..2:0.5", "it") == (0.5, 1.0, 1.5, 2.0)


@pytest.mark.parametrize(
    "text", ["", "a", "1..", "..3", "4..1", "1..4:0", "3:2", "-1", "1.5", "1...3", "1,,2", "1..9999", "٣x"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="it: "):
        counts(text, "it")


def test_what_is_out_of_bounds_is_refused_with_the_bounds() -> None:
    with pytest.raises(Misconfigured, match=r"0 is not allowed; 1 to 16 are"):
        counts("0..3", "it", least=1, most=16)
    with pytest.raises(Misconfigured, match="above 0"):
        factors("0,1", "it")
    with pytest.raises(Misconfigured, match="10s"):
        durations_ms("10", "it")
