"""The measures of an outcome are what their names say."""

from __future__ import annotations

import msgspec
import pytest

from helix_es.core.events import Workload
from helix_projections.simulation.outcome import Outcome, Turn, percentile

CHAT = Workload("create", "text", "mistral")
TUNE = Workload("finetune", "text", "mistral")


def turn(
    number: int = 1, wait_ms: int | None = 0, *, workload: Workload = CHAT, straight: bool = False
) -> Turn:
    """A turn that started 10 ms after its admission, with a first token 100 ms later, and 50 tokens in a second."""

    def after(ms: int) -> int | None:
        return None if wait_ms is None else 1000 + wait_ms + ms

    return Turn(
        session="s",
        turn=number,
        owner="ann",
        workload=workload,
        straight=straight,
        said_ms=1000,
        admitted_ms=after(0),
        started_ms=after(10),
        first_token_ms=after(110),
        ended_ms=after(1110),
        prompt_tokens=10,
        output_tokens=50,
        attempts=1,
    )


def outcome(*turns: Turn) -> Outcome:
    return Outcome(
        turns=list(turns),
        begun_ms=500,
        ended_ms=10_500,
        present_ms=7_200_000,
        busy_ms=1_800_000,
        offered_ms=1000,
        held_ms=250,
        preempted=2,
        released=3,
    )


def test_waits_starts_and_first_tokens_count_from_what_was_said() -> None:
    found = outcome(turn(1, 0), turn(1, 100), turn(1, 200)).measures()
    assert (found["wait_p50_ms"], found["start_p50_ms"], found["first_token_p50_ms"]) == (100, 110, 210)
    assert found["wait_mean_ms"] == 100
    assert found["wait_p95_ms"] == pytest.approx(190)


def test_continued_turns_are_all_but_the_first_of_a_session() -> None:
    found = outcome(turn(1, 1000), turn(2, 0, straight=True), turn(3, 500)).measures()
    assert found["first_wait_p50_ms"] == 1000
    assert found["continued_wait_p50_ms"] == 250
    assert found["requeued"] == 1


def test_who_was_never_served_counts_as_longer_than_all() -> None:
    found = outcome(turn(1, 0), turn(1, 0), turn(1, None)).measures()
    assert found["wait_p50_ms"] == 0
    assert found["wait_p95_ms"] is None
    assert found["wait_mean_ms"] is None
    assert found["unfinished"] == 1
    assert outcome(turn(1, 0), turn(1, None)).share("all", "wait", 10_000) == 0.5


def test_without_a_turn_there_is_no_percentile() -> None:
    found = outcome().measures(1000)
    assert found["wait_p50_ms"] is found["first_token_share"] is None
    assert found["turns"] == found["goodput_per_gpu_hour"] == 0


def test_shares_and_goodput_follow_the_target() -> None:
    some = outcome(turn(1, 0), turn(2, 1000), turn(2, 0))
    assert some.share("continued", "first_token", 110) == 0.5
    assert some.share("all", "first_token", 1110) == 1
    found = some.measures(110)
    assert found["first_token_share"] == pytest.approx(2 / 3)
    assert found["goodput_per_gpu_hour"] == 1  # two turns in two GPU-hours


def test_fine_tunes_are_no_turns_of_chats() -> None:
    found = outcome(turn(1, 0), turn(1, 5000, workload=TUNE)).measures()
    assert found["finetunes"] == found["turns"] == 1
    assert found["finetune_start_p50_ms"] == 5010
    assert found["wait_p95_ms"] == 0
    assert found["finetunes_per_gpu_hour"] == 0.5


def test_the_floor_is_told_in_shares_of_its_time() -> None:
    found = outcome(turn()).measures()
    assert (found["utilisation"], found["busy"], found["gpu_hours"]) == (0.25, 0.25, 2)
    assert (found["tokens_per_s"], found["duration_s"]) == (5, 10)
    assert (found["preempted"], found["released"]) == (2, 3)


def test_an_outcome_goes_through_bytes() -> None:
    some = outcome(turn(), turn(2, None))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(some), type=Outcome) == some


@pytest.mark.parametrize(
    ("values", "percent", "found"),
    [
        ([], 50, None),
        ([7.0], 99, 7.0),
        ([0.0, 10.0], 50, 5.0),
        ([1.0, float("inf"), float("inf")], 95, float("inf")),
    ],
)
def test_percentiles_interpolate(values: list[float], percent: float, found: float | None) -> None:
    assert percentile(values, percent) == found
