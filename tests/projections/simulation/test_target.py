"""Targets are said in words, name what an outcome has, and tell by how much they are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_es.core.errors import Misconfigured
from helix_projections.simulation.offer import uniform
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.sweep import Question, answer
from helix_projections.simulation.target import Target, parse, worst
from tests.projections.simulation.floor import OPEN_MS, WORK, arrivals

SAID = {
    "p95 first token <= 1.5s": ("first_token_p95_ms", 1500),
    "first token ≤ 300 ms": ("first_token_p95_ms", 300),
    "P50 Wait < 2min": ("wait_p50_ms", 120_000),
    "mean wait of first turns <= 1min": ("first_wait_mean_ms", 60_000),
    "p90 start of continued turns <= 10ms": ("continued_start_p90_ms", 10),
    "p99 wait of all turns <= 1h": ("wait_p99_ms", 3_600_000),
    "p95 finetune start <= 5m": ("finetune_start_p95_ms", 300_000),
    "share of continued turns within 1.5s >= 95%": ("continued_first_token_within_1500ms", 0.95),
    "share of turns with wait within 10s >= 99.9 %": ("wait_within_10000ms", 0.999),
    "share of first turns with start within 1min ≥ 50%": ("first_start_within_60000ms", 0.5),
}


@pytest.mark.parametrize("text", SAID)
def test_a_target_names_its_measure_and_its_words_say_the_same_again(text: str) -> None:
    (target,) = parse(text)
    assert (target.measure, target.limit) == SAID[text]
    assert parse(target.words()) == (target,)


def test_every_target_is_measured_in_a_real_outcome() -> None:
    targets = tuple(parse(text)[0] for text in SAID)
    question = Question(base=Scenario(offers=uniform(2, WORK, slots=2), open_ms=OPEN_MS), targets=targets)
    measures = answer(question, arrivals(3, sessions=30, gap_ms=300), {}).measures
    for target in targets:
        assert target.measure in measures
        assert (measures[target.measure] is None) == (target.quantity == "finetune_start")
    assert measures["continued_start_p90_ms"] <= measures["continued_start_p95_ms"]  # type: ignore[operator]
    assert measures["continued_first_token_within_1500ms"] == measures["continued_first_token_share"]


def test_several_are_joined_by_and() -> None:
    both = parse("p95 first token <= 1.5s and share of continued turns within 1.5s >= 95%")
    assert [target.statistic for target in both] == ["p95", "share"]
    assert worst(
        both, {"first_token_p95_ms": 1000, "continued_first_token_within_1500ms": 0.9}
    ) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "p95 first token",
        "p95 first token <= 1.5",
        "p95 first token <= 0s",
        "p80 wait <= 1s",
        "p95 wait >= 1s",
        "p95 finetune start of first turns <= 1s",
        "share of continued turns >= 95%",
        "share of continued turns within 1s >= 120%",
        "share of turns within 1s >= 0%",
        "share of turns with finetune start within 1s >= 50%",
        "p95 wait <= 1s and",
        "p95 wait <= 1s or p95 start <= 1s",
    ],
)
def test_what_is_not_understood_is_refused_with_what_can_be_said(text: str) -> None:
    with pytest.raises(Misconfigured, match="target"):
        parse(text)


@given(value=st.floats(0, 1e7), limit=st.integers(1, 10**7))
def test_a_level_is_reached_where_it_is_not_above_its_limit(value: float, limit: int) -> None:
    target = Target(statistic="p95", quantity="wait", limit=float(limit))
    assert (target.slack({"wait_p95_ms": value}) >= 1) == (value <= limit)


@given(hits=st.integers(0, 1000), least=st.integers(1, 1000))
def test_a_share_is_reached_where_it_is_not_below_its_limit(hits: int, least: int) -> None:
    target = Target(statistic="share", quantity="first_token", limit=least / 1000, within_ms=1500)
    assert (target.slack({"first_token_within_1500ms": hits / 1000}) >= 1) == (hits >= least)


def test_without_a_value_nothing_is_reached() -> None:
    assert parse("p95 wait <= 1s")[0].slack({"wait_p95_ms": None}) == 0
