"""The tables against a plain computation, for whatever a shop does, and whenever it is committed."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helix_es.core import events as e
from tests.core.test_shop_stateful import GPUS, ShopMachine
from tests.examples import many
from tests.projections.analytics import plain
from tests.projections.analytics.kit import contents, filled, in_memory, messages, rows

RUBBISH = b'{"stream":"LOG","seq":7}'

_gpu = st.sampled_from(GPUS)
_ACTIONS = st.one_of(
    st.tuples(st.just("a_gpu_joins"), st.fixed_dictionaries({"gpu": _gpu, "slots": st.integers(1, 3)})),
    st.tuples(
        st.just("somebody_comes_in"),
        st.fixed_dictionaries({"owner": st.sampled_from(["ann", "bob"]), "priority": st.integers(0, 1)}),
    ),
    st.tuples(
        st.sampled_from(["somebody_goes_on", "somebody_cancels", "somebody_closes"]),
        st.fixed_dictionaries({"n": st.integers(0, 11)}),
    ),
    st.tuples(
        st.sampled_from(["a_gpu_is_declared_lost", "a_gpu_leaves"]), st.fixed_dictionaries({"gpu": _gpu})
    ),
    st.tuples(st.just("a_runner_finishes"), st.fixed_dictionaries({"gpu": _gpu, "n": st.integers(0, 5)})),
    st.tuples(st.just("time_passes"), st.fixed_dictionaries({"seconds": st.integers(0, 3)})),
    st.tuples(st.just("a_stranger_writes_rubbish"), st.fixed_dictionaries({"forged": st.just(RUBBISH)})),
    st.tuples(st.just("a_busy_second"), st.just({})),
)


def lived(actions: list[tuple[str, dict[str, Any]]]) -> list[e.Recorded]:
    """Return the log of a shop in which that happened; between two actions everybody does what they can."""
    machine = ShopMachine()
    machine.begin()
    for name, about in actions:
        needs_somebody = name in ("somebody_goes_on", "somebody_cancels", "somebody_closes")
        if needs_somebody and not machine.opened:
            continue
        if name == "somebody_comes_in" and len(machine.opened) == 12:
            continue
        if name != "a_busy_second":
            getattr(machine, name)(**about)
        machine.shop.now_ms += 7
        machine.the_scheduler_decides()
        for gpu in GPUS:
            machine.a_runner_hears(gpu=gpu)
            machine.a_runner_takes_work(gpu=gpu)
    return machine.shop.log.records


def ms(at: Any) -> int | None:
    return None if at is None else round(at.timestamp() * 1000)


@settings(max_examples=many(25), deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=st.lists(_ACTIONS, min_size=5, max_size=80), cuts=st.sets(st.integers(0, 400), max_size=12))
def test_the_tables_say_what_the_log_says(actions: list[Any], cuts: set[int]) -> None:
    records = lived(actions)
    all_ = messages(records, {r.seq: RUBBISH for r in records})
    edges = [0, *sorted(cut for cut in cuts if cut < len(all_)), len(all_)]
    batches = [all_[a:b] for a, b in itertools.pairwise(edges)]
    cut = filled(in_memory(), batches, restart=True)
    whole = filled(in_memory(), [all_])
    assert contents(cut) == contents(whole)

    histories = plain.sessions(records)
    turns = {(r["session"], r["turn"]): r for r in rows(whole, "FROM turns")}
    assert set(turns) == {(s.session, t.turn) for s in histories.values() for t in s.turns}
    for session in histories.values():
        for turn in session.turns:
            row = turns[session.session, turn.turn]
            assert (row["state"], row["attempts"]) == (turn.state, turn.attempt)
            said = (ms(row["said_at"]), ms(row["started_at"]), ms(row["ended_at"]))
            assert said == (turn.queued_ms, turn.started_ms, turn.ended_ms)
            if row["how"] == "queued" and turn.admitted_ms is not None:
                assert row["estimated_ms"] == turn.estimated_ms
    created = {r.event.session for r in records if isinstance(r.event, e.SessionCreated)}
    found = {r["session"]: r for r in rows(whole, "FROM sessions")}
    assert set(found) == created
    held = plain.held_ms(records)
    for name in created:
        row, session = found[name], histories[name]
        assert (row["state"], row["gpu"], row["turns"]) == (session.state, session.gpu, len(session.turns))
        assert row["held_ms"] == held.get(name, 0)

    happened = {r["seq"]: r["happened"] for r in rows(whole, "FROM events WHERE session IS NOT NULL")}
    slow = plain.happened(records)
    assert happened == {seq: slow[seq] for seq in happened}
    gpus = rows(
        whole, "SELECT gpu, incarnation, state, model, slots, sessions, from_at, to_at FROM gpu_occupancy"
    )
    intervals = [(*list(r.values())[:-2], ms(r["from_at"]), ms(r["to_at"])) for r in gpus]
    assert sorted(intervals, key=repr) == plain.intervals(records)
    admissions = {r["seq"]: r["passed"] for r in rows(whole, "FROM admissions")}
    assert admissions == plain.passed(records)
    unreadable = {r.seq for r in records if r.event is None}
    assert {r["seq"] for r in rows(whole, "FROM set_aside")} == unreadable
    assert {r["seq"] for r in rows(whole, "FROM events WHERE event IS NULL AND body IS NULL")} == unreadable
