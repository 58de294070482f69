"""Deciding again what a log says was decided, and finding where it was not."""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from helix_es.archive import record_of
from helix_es.core import events as e
from helix_es.core.decision import RULES
from helix_es.core.placement import decide
from helix_es.core.subjects import subject_of
from helix_es.core.verify import Report, Verification
from tests.core.shop import Shop

RECORDED = Path(__file__).parents[1] / "data" / "logs" / "chaos.jsonl.xz"


def busy_shop() -> Shop:
    """Return a shop in which five came to two slots, and everybody was served."""
    shop = Shop(e.Policy(idle_after_ms=1000))
    shop.join("box-0", 2)
    for name in ("a", "b", "c", "d", "e"):
        shop.now_ms += 10
        shop.open(name, owner=name)
    for _ in range(40):
        shop.now_ms += 500
        shop.schedule()
        runner = shop.runners["box-0"]
        shop.hear(runner)
        if runner.ready:
            shop.take(runner)
        for sid in list(runner.running):
            shop.finish(runner, sid)
    return shop


def verified(records: list[e.Recorded]) -> Report:
    verification = Verification()
    for record in records:
        verification.note(record)
    for record in records:
        verification.take(record)
    return verification.end()


def changed(
    records: list[e.Recorded], kind: type[e.Event], change: Callable[[e.AnyEvent], e.AnyEvent], nth: int = 0
) -> tuple[list[e.Recorded], int]:
    """Return the log with the nth fact of `kind` altered, and its sequence."""
    seq = [r.seq for r in records if isinstance(r.event, kind)][nth]
    out = []
    for r in records:
        if r.seq == seq:
            assert r.event is not None
            r = e.Recorded(r.seq, r.at_ms, r.subject, change(r.event))
        out.append(r)
    return out, seq


def test_a_shop_that_went_by_its_rules_is_reproduced_whole() -> None:
    report = verified(busy_shop().log.records)
    assert report.ok
    assert report.admissions == 5
    assert report.reproduced["session.released"] >= 3
    assert report.differences == []


@pytest.mark.parametrize("field", ["reason", "estimated_ms", "waited_ms", "attempt", "reservation_ms"])
def test_whatever_was_altered_in_an_admission_is_found_at_its_sequence(field: str) -> None:
    value: object = "because" if field == "reason" else 77
    records, seq = changed(
        busy_shop().log.records,
        e.TurnAdmitted,
        lambda event: msgspec.structs.replace(event, **{field: value}),
        nth=2,
    )
    report = verified(records)
    first = report.differences[0]
    assert (first.seq, first.what) == (seq, "turn.admitted is decided otherwise")
    assert first.recorded[field] == value
    assert first.again is not None
    assert first.again[field] != value


def test_an_admission_out_of_turn_is_found() -> None:
    """d was admitted in place of c: nobody decides that from there."""
    shop = Shop(e.Policy())
    shop.join("box-0", 1)
    shop.schedule()
    for name in ("c", "d"):
        shop.open(name, owner=name)
    shop.hear(shop.runners["box-0"])
    state = shop.catch_up(shop.live)
    seat = state.seats["d"]
    event = e.TurnAdmitted(
        session=seat.session,
        turn=1,
        attempt=1,
        mode="create",
        type="text",
        model="mistral",
        waited_ms=0,
        estimated_ms=seat.estimated_ms,
        reason="1 free",
        decided_seq=state.seq,
        decided_at_ms=shop.now_ms,
    )
    seq = shop.append(event, seat.last_seq)
    first = verified(shop.log.records).differences[0]
    assert (first.seq, first.what, first.again) == (seq, "turn.admitted is not decided again", None)


def test_two_admissions_of_one_plan_that_changed_places_are_found() -> None:
    shop = Shop(e.Policy())
    shop.join("box-0", 2)
    shop.schedule()
    shop.hear(shop.runners["box-0"])
    for name in ("a", "b"):
        shop.open(name, owner=name)
    shop.schedule()
    records = list(shop.log.records)
    first, second = (r for r in records if isinstance(r.event, e.TurnAdmitted))
    records[first.seq - 1] = e.Recorded(first.seq, first.at_ms, second.subject, second.event)
    records[second.seq - 1] = e.Recorded(second.seq, second.at_ms, first.subject, first.event)
    found = verified(records).differences
    assert [(d.seq, d.what) for d in found] == [
        (second.seq, "turn.admitted was admitted after others that follow it")
    ]


def two_admitted(delay_ms: int) -> tuple[list[e.Recorded], int]:
    """Return a log in which the second of one plan is stored first, and the sequence of the first."""
    shop = Shop(e.Policy())
    shop.join("box-0", 2)
    shop.schedule()
    shop.hear(shop.runners["box-0"])
    for name in ("a", "b"):
        shop.open(name, owner=name)
    plan = decide(shop.catch_up(shop.live), shop.now_ms)
    shop.carry_out(plan[1])
    shop.now_ms += delay_ms
    shop.carry_out(plan[0])
    return shop.log.records, len(shop.log.records)


def test_an_append_that_was_repeated_may_stand_after_others_of_its_plan() -> None:
    records, _ = two_admitted(2500)
    report = verified(records)
    assert (report.ok, report.late, report.admissions) == (True, 1, 2)
    records, seq = two_admitted(10)
    assert [each.seq for each in verified(records).differences] == [seq]


def test_an_admission_that_was_withheld_while_others_went_past_it_is_found() -> None:
    records, _ = two_admitted(10)
    (found,) = verified(records[:-1]).differences
    assert (found.seq, found.what) == (
        len(records) - 1,
        "turn.admitted was admitted, and session a, which goes before it, was not",
    )


@pytest.mark.parametrize("shift_ms", [-1_000, 3_600_000])
def test_a_decision_by_a_clock_that_nobody_had_is_found(shift_ms: int) -> None:
    records, seq = changed(
        busy_shop().log.records,
        e.TurnAdmitted,
        lambda x: msgspec.structs.replace(x, decided_at_ms=x.decided_at_ms + shift_ms),  # type: ignore[attr-defined]
        nth=1,
    )
    first = verified(records).differences[0]
    assert (first.seq, first.what) == (
        seq,
        "turn.admitted was decided at a time that the log's clock did not show",
    )


def test_what_was_decided_before_the_rules_changed_and_stored_after_is_not_judged() -> None:
    shop = busy_shop()
    shop.open("late")
    state = shop.catch_up(shop.live)
    records = list(shop.log.records)
    policy, _ = changed(records, e.PolicySet, lambda x: e.PolicySet(policy=e.Policy(rules=RULES + 1)))
    plan = decide(state, shop.now_ms)
    seq = len(records)
    now = e.PolicySet(policy=e.Policy(rules=RULES))
    tail = [e.Recorded(seq + 1, shop.now_ms, "fleet.policy.set", now)]
    tail += [
        e.Recorded(seq + 2 + n, shop.now_ms, subject_of(each.event), each.event)
        for n, each in enumerate(plan)
    ]
    assert plan
    report = verified([*policy, *tail])
    assert report.ok
    assert report.other_rules > 5


def test_a_decision_that_claims_a_later_state_is_found() -> None:
    records, seq = changed(
        busy_shop().log.records, e.TurnAdmitted, lambda x: msgspec.structs.replace(x, decided_seq=10**9)
    )
    assert verified(records).differences[0].seq == seq


def test_a_second_scheduler_that_lost_the_race_is_no_difference() -> None:
    shop = busy_shop()
    shop.open("f")
    state = shop.catch_up(shop.live)
    shop.cancel("f")  # before the admission that is already on its way
    for record in shop.log.records[state.seq :]:
        assert isinstance(record.event, e.TurnCancelled)
    shop.schedule(state)
    assert verified(shop.log.records).ok


def test_decisions_by_rules_of_another_release_are_counted_and_not_judged() -> None:
    records, _ = changed(
        busy_shop().log.records,
        e.PolicySet,
        lambda x: e.PolicySet(policy=e.Policy(idle_after_ms=1000, rules=RULES + 1)),
    )
    records, _ = changed(records, e.TurnAdmitted, lambda x: msgspec.structs.replace(x, reason="otherwise"))
    report = verified(records)
    assert report.ok
    assert report.other_rules > 5
    assert report.admissions == 0


def test_a_log_that_a_fault_run_left_is_reproduced_by_this_release() -> None:
    """The rules decide as they did. If this fails on purpose, raise `decision.RULES` and record the log anew.

    `make chaos`, then the first 4,000 lines of its log.jsonl through `xz -9e`.
    """
    with lzma.open(RECORDED) as file:
        raw = [msgspec.json.decode(line) for line in file]
    records = [record_of(r["seq"], r["at_ms"], r["subject"], msgspec.json.encode(r["payload"])) for r in raw]
    report = verified(records)
    assert report.differences == []
    assert report.events == 4000
    assert report.admissions > 300
