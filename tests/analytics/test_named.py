"""The named queries: each against answers worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from helix_es.analytics.named import find, shipped
from helix_es.analytics.questions import Limits, Question, Unanswered
from helix_es.analytics.sandbox import Sandbox
from tests.analytics.small import DAY, make

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    path = make(tmp_path_factory.mktemp("small") / "snapshot.duckdb")
    made = Sandbox(path, Limits(), lambda: None)
    yield made
    made.close()


def rows(sandbox: Sandbox, name: str, **params: Any) -> list[Row]:
    answer = msgspec.json.decode(sandbox.ask(Question(query=name, params=params)))
    names = [column["name"] for column in answer["columns"]]
    return [dict(zip(names, row, strict=True)) for row in answer["rows"]]


def part(row: Row, *names: str) -> list[Any]:
    return [row[name] for name in names]


def test_every_query_runs_says_what_for_and_uses_its_parameters(sandbox: Sandbox) -> None:
    assert len(shipped()) == 15
    for name, query in shipped().items():
        assert rows(sandbox, name), name
        assert len(query.description) > 20
        assert not query.description.startswith("--")
        for param in query.params:
            assert f"${param.name}" in query.sql, (name, param.name)
            assert param.description


def test_utilisation_is_weighted_by_time_and_clipped_to_hours(sandbox: Sandbox) -> None:
    found = rows(sandbox, "utilisation-by-hour")
    assert found == [
        {
            "hour": f"{DAY}T10:00:00.000Z",
            "gpus": 1.0,
            "slots": 2.0,
            "sessions": 1.0,
            "utilisation": 0.5,
            "known_min": 60.0,
        },
        # n-0: a quarter with two and three with one; n-2: three quarters with one of one; n-1: half an hour of none
        {
            "hour": f"{DAY}T11:00:00.000Z",
            "gpus": 2.25,
            "slots": 2.75,
            "sessions": 2.0,
            "utilisation": round(2 / 2.75, 4),
            "known_min": 60.0,
        },
    ]
    (row,) = rows(sandbox, "utilisation-by-hour", model="mistral", since="-1h")
    assert part(row, "gpus", "slots", "sessions", "utilisation") == [1.0, 2.0, 1.25, 0.625]
    (row,) = rows(sandbox, "utilisation-by-hour", gpu="n-0", since=f"{DAY}T11:00:00Z", until="-30m")
    assert part(row, "known_min", "sessions", "utilisation") == [30.0, 1.5, 0.75]


def test_an_hour_in_which_nothing_was_there_is_shown_as_empty(sandbox: Sandbox) -> None:
    found = rows(sandbox, "utilisation-by-hour", model="smollm2")
    assert [part(row, "gpus", "sessions", "utilisation") for row in found] == [
        [0.0, 0.0, None],
        [0.75, 0.75, 1.0],
    ]


def test_waits_are_counted_by_model(sandbox: Sandbox) -> None:
    chat, batch = rows(sandbox, "waits-by-model")
    assert part(chat, "mode", "model", "admitted", "waiting", "gave_up") == ["create", "mistral", 2, 1, 1]
    assert part(chat, "p50_s", "max_s", "mean_s") == [1.0, 2.0, 1.0]
    assert part(batch, "mode", "admitted", "p50_s") == ["finetune", 1, 10.0]
    (bobs, _) = rows(sandbox, "waits-by-model", owner="bob")
    assert part(bobs, "admitted", "waiting", "gave_up", "p50_s") == [0, 1, 1, None]
    (late,) = rows(sandbox, "waits-by-model", since="-10m")
    assert part(late, "admitted", "waiting") == [0, 1]


def test_first_tokens_are_told_by_coefficient(sandbox: Sandbox) -> None:
    (row,) = rows(sandbox, "first-token-by-coefficient")
    assert part(row, "kind", "model", "slots", "turns", "sessions_on_gpu") == [
        "a100-80",
        "mistral",
        2,
        4,
        1.75,
    ]
    assert part(row, "said_p50_ms", "started_p50_ms") == [1_250.0, 700.0]
    assert part(row, "continued", "continued_within") == [2, 0.5]
    (row,) = rows(sandbox, "first-token-by-coefficient", target_s=3)
    assert row["continued_within"] == 1.0
    assert rows(sandbox, "first-token-by-coefficient", model="sdxl") == []


def test_the_cost_of_a_reservation_is_what_turns_waited_for_it(sandbox: Sandbox) -> None:
    batch, chat = rows(sandbox, "reservation-cost")
    names = ("mode", "admitted", "delayed", "delay_s", "waited_s", "share_of_waiting", "max_delay_s")
    assert part(batch, *names) == ["finetune", 1, 1, 4.0, 10.0, 0.4, 4.0]
    assert part(chat, *names) == ["create", 2, 1, 0.5, 2.0, 0.25, 0.5]


def test_the_longest_waits_say_why(sandbox: Sandbox) -> None:
    found = rows(sandbox, "longest-waits")
    assert [part(row, "session", "wait_s", "told_s") for row in found] == [
        ["s3", 120.0, None],
        ["s4", 30.0, None],
        ["f1", 10.0, None],
        ["s2", 2.0, 1.5],
        ["s1", 0.0, None],
    ]
    assert [row["why"] for row in found[:4]] == [
        "still waits; 1 ahead on arrival; 1 of 2 slots held then",
        "never admitted; first in its queue; 2 of 2 slots held then",
        "first in its queue; no GPU served smollm2 then",
        "first in its queue; 2 of 2 slots held then; 3 that came later went first; "
        "0.5 s of it for the reservation; admitted since a slot came free",
    ]
    assert len(rows(sandbox, "longest-waits", most=2, model="mistral")) == 2


def test_estimates_are_judged_as_the_scheduler_judges_them(sandbox: Sandbox) -> None:
    chat, batch = rows(sandbox, "estimate-error")
    names = ("at_once", "told", "within_30_percent", "near", "mean_error_s", "mean_too_short_by_s")
    assert part(chat, *names) == [1, 1, 1.0, 1.0, 0.5, 0.5]
    assert part(batch, *names) == [0, 1, 0.0, 0.0, 6.0, 6.0]


def test_owners_are_told_with_their_slot_hours(sandbox: Sandbox) -> None:
    ann, bob = rows(sandbox, "owners")
    assert part(ann, "owner", "sessions", "turns", "prompt_tokens", "slot_hours") == ["ann", 2, 4, 400, 1.5]
    assert part(bob, "owner", "turns", "open_turns", "wait_max_s", "slot_hours") == ["bob", 3, 1, 10.0, 0.75]
    assert len(rows(sandbox, "owners", most=1)) == 1


def test_cold_starts_requeues_and_adapters_are_summed(sandbox: Sandbox) -> None:
    (start,) = rows(sandbox, "cold-starts")
    assert part(start, "kind", "starts", "never_ready", "load_p50_s", "assigned_to_ready_p50_s") == [
        "a100-80",
        2,
        1,
        8.0,
        10.0,
    ]
    (back,) = rows(sandbox, "requeues")
    assert part(back, "reason", "error_code", "requeues", "most_attempts") == ["lost", "gpu_lost", 1, 2]
    (adapter,) = rows(sandbox, "adapters")
    assert part(adapter, "owner", "adapter", "sessions", "turns") == ["ann", "tone", 1, 3]


def test_finetunes_show_their_loss(sandbox: Sandbox) -> None:
    (run,) = rows(sandbox, "finetunes")
    names = ("session", "name", "state", "attempts", "wait_s", "ran_s", "step", "steps")
    assert part(run, *names) == ["f1", "tone", "completed", 2, 10.0, 2_700.0, 10, 10]
    assert part(run, "first_loss", "last_loss") == [2.5, 0.5]


def test_the_floor_now_has_each_gpus_last_heartbeat(sandbox: Sandbox) -> None:
    first, second = rows(sandbox, "occupancy-now")
    assert part(first, "gpu", "sessions", "slots", "utilisation", "memory_gib") == ["n-0", 1, 2, 0.75, 16.0]
    assert part(first, "since", "beat_at") == [f"{DAY}T11:15:00.000Z", f"{DAY}T11:59:50.000Z"]
    assert part(second, "gpu", "state", "model", "utilisation") == ["n-1", "joined", None, None]


def test_the_slowest_turns_say_where_the_time_went(sandbox: Sandbox) -> None:
    found = rows(sandbox, "slowest-turns", model="mistral", most=2)
    assert [part(row, "session", "total_s") for row in found] == [["s4", 30.0], ["s2", 10.0]]
    assert part(found[1], "wait_s", "admitted_to_started_s", "started_to_first_token_s") == [2.0, 0.0, 1.0]


def test_tokens_are_told_by_day(sandbox: Sandbox) -> None:
    mistral, smollm2 = rows(sandbox, "tokens-by-day")
    assert part(mistral, "day", "model", "turns", "prompt_tokens", "cached_share") == [
        DAY,
        "mistral",
        5,
        400,
        0.5,
    ]
    assert part(smollm2, "turns", "prompt_tokens", "cached_share") == [1, None, None]


def test_what_was_set_aside_is_shown_whatever_its_bytes(sandbox: Sandbox) -> None:
    (row,) = rows(sandbox, "set-aside")
    assert part(row, "stream", "seq", "reason", "bytes", "begins") == [
        "LOG",
        77,
        "not JSON",
        3,
        "{\\xFF\\x00",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"since": "yesterday"}, "parameter since: 'yesterday' does not fit; an instant is RFC 3339"),
        ({"since": "-1y"}, "parameter since"),
        ({"since": "-999999999w"}, "parameter since"),
        ({"sinse": "-1h"}, "has no parameter sinse; it has since, until, model, most"),
        ({"most": "many"}, "parameter most: 'many' does not fit; it takes a whole number of at least 0"),
        ({"most": -1}, "parameter most: '-1' does not fit; it takes a whole number of at least 0"),
    ],
)
def test_wrong_parameters_are_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Unanswered) as error:
        find("longest-waits").bound(given, NOON)
    assert error.value.code == "sql_error"
    assert said in str(error.value)


@pytest.mark.parametrize("given", ["nan", "inf", float("nan"), "x"])
def test_a_number_is_one(given: Any) -> None:
    with pytest.raises(Unanswered, match=r"parameter target_s: .* it takes a number"):
        find("first-token-by-coefficient").bound({"target_s": given}, NOON)


def test_instants_count_back_from_the_newest_that_is_known() -> None:
    query = find("longest-waits")
    bound = query.bound({"since": "-90m", "until": "2026-11-24T14:00:00+02:00"}, NOON)
    assert bound["since"] == datetime(2026, 11, 24, 10, 30, tzinfo=UTC)
    assert bound["until"] == NOON
    assert (bound["model"], bound["most"]) == (None, 20)
    assert query.bound({"since": "2026-11-24"}, NOON)["since"] == datetime(2026, 11, 24, tzinfo=UTC)


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(Unanswered, match="there is no query 'x'; there are adapters, ") as error:
        find("x")
    assert error.value.code == "unknown_query"
