"""What `helix doctor` says of GPUs and turns: judged from records, and read from a real log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from helix_es.cli import troubles
from helix_es.cli.checks import Check
from helix_es.cli.lately import Recent, heartbeats, recent
from helix_es.cli.troubles import Loss
from helix_es.core import events as e
from helix_es.core.codec import encode
from helix_es.core.subjects import subject_of
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.headers import stamp_ms
from helix_es.jetstream.log import JetStreamLog

pytestmark = pytest.mark.anyio

AT_MS = stamp_ms("2026-11-22T11:00:00Z")
GIVEN_UP = "given up after 3 GPUs: n-0: lost; n-1: lost; n-2: out_of_memory: no room"


def recorded(*facts: tuple[int, e.AnyEvent]) -> list[e.Recorded]:
    """Return records of facts, each given with its ms after 11:00:00."""
    return [
        e.Recorded(seq, AT_MS + ms, subject_of(event), event)
        for seq, (ms, event) in enumerate(facts, start=1)
    ]


def loss(gpu: str, ms: int, back_ms: int | None = None) -> Loss:
    return Loss(gpu, AT_MS + ms, 3200, None if back_ms is None else AT_MS + back_ms)


def beat(gpu: str, *, stalled_ms: int = 0) -> e.GpuHeartbeat:
    return e.GpuHeartbeat(
        gpu=e.GpuId(gpu),
        incarnation="i",
        memory_total_bytes=8,
        memory_used_bytes=1,
        utilisation=0.5,
        stalled_ms=stalled_ms,
    )


def beaten(*beats: tuple[int, e.GpuHeartbeat]) -> dict[str, e.Recorded]:
    return {record.subject.split(".")[1]: record for record in recorded(*beats)}


def joined(gpu: str, *, silence_ms: int = 0) -> e.GpuJoined:
    return e.GpuJoined(
        gpu=e.GpuId(gpu),
        incarnation="i",
        kind="cpu",
        memory_total_bytes=8,
        workloads=[e.Workload("create", "text", "m")],
        silence_ms=silence_ms,
    )


def lost(gpu: str, reason: e.LossReason = "silent", ms: int = 3200) -> e.GpuLost:
    return e.GpuLost(gpu=e.GpuId(gpu), incarnation="i", silent_ms=ms, reason=reason)


def returned(gpu: str, code: str, session: str = "s1") -> e.TurnReturned:
    error = e.Failure(code=code, message="no")
    return e.TurnReturned(session=e.SessionId(session), turn=1, attempt=1, gpu=e.GpuId(gpu), error=error)


def given_up(code: str, message: str = "", session: str = "s1") -> e.TurnFailed:
    error = e.Failure(code=code, message=message)
    return e.TurnFailed(session=e.SessionId(session), turn=2, attempt=1, gpu=e.NO_GPU, error=error)


def assigned(gpu: str, reason: str) -> e.GpuAssigned:
    return e.GpuAssigned(
        gpu=e.GpuId(gpu),
        incarnation="i",
        model="m",
        type="text",
        purpose="chat",
        slots=6,
        reason=reason,
        decided_seq=1,
        decided_at_ms=1,
    )


# -- judged


def test_nobody_lost_is_well() -> None:
    assert troubles.judge_lost([], {}).status == "ok"


def test_a_lost_gpu_is_named_with_its_silence_and_time() -> None:
    found = troubles.judge_lost([loss("box-1", 130_000)], {})
    assert (found.status, found.found) == (
        "warn",
        "1 GPU lost in the last hour: box-1 (silent 3.2 s, 11:02:10Z)",
    )
    assert "start it again" in found.advice


def test_a_gpu_that_came_back_needs_less() -> None:
    found = troubles.judge_lost([loss("box-1", 130_000, 140_000)], {})
    assert found.found.endswith("box-1 (silent 3.2 s, 11:02:10Z; came back 11:02:20Z)")
    assert found.advice.startswith("all came back: nothing to do")


def test_gpus_of_a_node_lost_at_once_are_the_node() -> None:
    gone = [loss("box-1", 0), *(loss(f"box2-{n}", 300_000 + n * 1000) for n in range(4))]
    found = troubles.judge_lost(gone, beaten((0, beat("box-0")), (1000, beat("box2-9"))))
    assert found.found == (
        "5 GPUs lost in the last hour: node box2 (4 GPUs at once, 11:05:00Z), box-1 (silent 3.2 s, 11:00:00Z)"
    )


def test_a_node_of_which_one_gpu_goes_on_is_not_lost() -> None:
    gone = [loss("box2-0", 1000), loss("box2-1", 1500)]
    found = troubles.judge_lost(gone, beaten((9000, beat("box2-2"))))
    assert "node" not in found.found
    assert "box2-0 (" in found.found


def test_gpus_of_a_node_lost_one_after_the_other_are_not_the_node() -> None:
    found = troubles.judge_lost([loss("box2-0", 0), loss("box2-1", 60_000)], {})
    assert "node" not in found.found


def test_a_node_that_came_back_says_so() -> None:
    gone = [loss("box2-0", 0, 20_000), loss("box2-1", 0, 21_000)]
    found = troubles.judge_lost(gone, {})
    assert found.found.endswith("node box2 (2 GPUs at once, 11:00:00Z; 2 came back 11:00:21Z)")


def test_of_many_losses_the_newest_are_named_and_the_rest_counted() -> None:
    found = troubles.judge_lost([loss(f"n{n}-0", n * 10_000) for n in range(8)], {}, more=7)
    assert found.found.startswith("8 GPUs lost in the last hour: n7-0 ")
    assert found.found.endswith(" and 3 more; 7 older ones were not read")


@pytest.mark.parametrize(
    ("stalled_ms", "status"), [(0, "ok"), (29_000, "ok"), (31_000, "warn"), (130_000, "fail")]
)
def test_a_gpu_whose_turns_stand_still_is_stuck_by_its_own_word(stalled_ms: int, status: str) -> None:
    found = troubles.judge_stuck([], beaten((0, beat("box-1", stalled_ms=stalled_ms))), AT_MS + 900)
    assert found.status == status
    assert status == "ok" or f"box-1 (nothing moved for {stalled_ms // 1000} s)" in found.found


def test_who_was_stuck_and_is_silent_now_is_no_longer_stuck() -> None:
    old = beaten((0, beat("box-1", stalled_ms=130_000)))
    assert troubles.judge_stuck([], old, AT_MS + 60_000).status == "ok"
    past = troubles.judge_stuck([loss("box-1", 1000)], old, AT_MS + 60_000)
    assert (past.status, past.found) == (
        "warn",
        "1 time in the last hour: box-1 (stood still for 3 s, 11:00:01Z)",
    )


def test_a_silent_gpu_that_nobody_declared_lost_fails() -> None:
    quiet = beaten((0, beat("box-1")))
    facts = {record.subject: record for record in recorded((0, joined("box-1")))}
    found = troubles.judge_silent(quiet, facts, AT_MS + 42_000)
    assert (found.status, found.found) == ("fail", "silent, and not declared lost: box-1 (42 s)")


@pytest.mark.parametrize(
    "facts",
    [
        [],
        [joined("box-1"), lost("box-1")],
        [joined("box-1"), e.GpuLeft(gpu=e.GpuId("box-1"), incarnation="i")],
        [joined("box-1", silence_ms=60_000)],
    ],
)
def test_who_left_or_was_declared_lost_or_may_be_silent_is_no_trouble(facts: Sequence[e.AnyEvent]) -> None:
    last = {record.subject: record for record in recorded(*((0, fact) for fact in facts))}
    assert troubles.judge_silent(beaten((0, beat("box-1"))), last, AT_MS + 42_000).status == "ok"


def test_memory_that_ran_out_is_told_with_the_slots_that_were_lowered() -> None:
    records = recorded(
        (0, assigned("box-0", "coefficient 9 -> 8")),
        (1000, returned("box-0", "out_of_memory")),
        (2000, returned("box-0", "out_of_memory", "s2")),
        (3000, assigned("box-0", "coefficient 8 -> 6")),
        (4000, assigned("box-0", "m waits")),
    )
    found = troubles.judge_memory(Recent(records), records)
    assert (found.status, found.found) == (
        "warn",
        "out of memory in the last hour: box-0 (2 turns, lastly 11:00:02Z; slots of m 8 -> 6)",
    )
    assert troubles.judge_returned(Recent(records)).status == "ok"


def test_turns_given_back_for_other_reasons_are_told_by_gpu_and_code() -> None:
    found = troubles.judge_returned(Recent(recorded((0, returned("box-0", "engine_error")))))
    assert (found.status, found.found) == (
        "warn",
        "given back in the last hour: box-0 (1 turn, engine_error)",
    )
    assert troubles.judge_memory(Recent(recorded((0, returned("box-0", "engine_error")))), []).status == "ok"


def test_a_poison_turn_is_named_with_its_errors() -> None:
    failed = Recent(recorded((0, given_up("poison_turn", GIVEN_UP)), (1, given_up("wait_exceeded"))))
    found = troubles.judge_poison(failed)
    assert (found.status, found.found) == (
        "warn",
        f"1 turn given up: s1 turn 2 (11:00:00Z, poison_turn: {GIVEN_UP})",
    )
    late = troubles.judge_deadlines(failed)
    assert (late.status, late.found) == ("warn", "1 turn waited in vain, lastly 11:00:00Z")


def test_a_long_error_is_cut() -> None:
    found = troubles.judge_poison(Recent(recorded((0, given_up("poison_turn", "x" * 5000)))))
    assert len(found.found) < 300


# -- read


async def append(log: JetStreamLog, *facts: e.AnyEvent) -> None:
    for fact in facts:
        seq = 0
        for record in await log.history(f"{'.'.join(subject_of(fact).split('.')[:2])}.>"):
            seq = record.seq
        await log.append(fact, expected_seq=seq, key=f"{subject_of(fact)}{seq}")


async def now_ms(connection: Connection) -> int:
    return stamp_ms((await connection.api("STREAM.INFO.LOG"))["ts"])


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.check: check for check in checks}


async def test_an_empty_log_has_no_troubles(connection: Connection) -> None:
    now = await now_ms(connection)
    found = await troubles.gpus(connection, now, 0) + await troubles.turns(connection, now)
    assert [check.check for check in found if check.status != "ok"] == []
    assert set(by_name(found)) == {"lost", "stuck", "silent", "memory", "returned", "poison", "deadlines"}


async def test_the_losses_of_a_real_log_are_found(connection: Connection) -> None:
    log = JetStreamLog(connection)
    for gpu in ("box-0", "box2-0", "box2-1"):
        await append(log, joined(gpu), lost(gpu))
    await append(log, joined("box-0"), joined("box-3"), lost("box-3", "stuck", 125_000))
    now = await now_ms(connection)
    found = by_name(await troubles.gpus(connection, now, now))
    assert "3 GPUs lost" in found["lost"].found
    assert "node box2 (2 GPUs at once, " in found["lost"].found
    assert "; came back " in found["lost"].found
    assert "box-3 (stood still for 125 s, " in found["stuck"].found
    later = by_name(await troubles.gpus(connection, now + 2 * 3_600_000, now))
    assert later["lost"].status == later["stuck"].status == "ok", "old facts are no troubles"


async def test_the_turns_given_back_and_given_up_are_found(connection: Connection) -> None:
    log = JetStreamLog(connection)
    await append(
        log, joined("box-0"), returned("box-0", "out_of_memory"), assigned("box-0", "coefficient 8 -> 6")
    )
    await append(log, given_up("poison_turn", GIVEN_UP, "s2"), given_up("wait_exceeded", "", "s3"))
    found = by_name(await troubles.turns(connection, await now_ms(connection)))
    assert "box-0 (1 turn, " in found["memory"].found
    assert "slots of m 8 -> 6" in found["memory"].found
    assert found["poison"].found.startswith("1 turn given up: s2 turn 2 (")
    assert found["deadlines"].found.startswith("1 turn waited in vain")
    assert {check.status for check in found.values()} == {"ok", "warn"}


async def test_stuck_and_silent_gpus_are_seen_in_the_beats(connection: Connection) -> None:
    await append(JetStreamLog(connection), joined("box-0"), joined("box-1"))
    beats = Beats(connection)
    await beats.publish(beat("box-0", stalled_ms=130_000))
    await beats.publish(beat("box-1"))
    async with asyncio.timeout(10):
        while await beats.last_seq() < 2:
            pass
    now = await now_ms(connection)
    found = by_name(await troubles.gpus(connection, now, now))
    assert (found["stuck"].status, found["silent"].status) == ("fail", "ok")
    found = by_name(await troubles.gpus(connection, now + 30_000, now + 30_000))
    assert (found["stuck"].status, found["silent"].status) == ("ok", "fail")
    assert "box-0" in found["silent"].found


async def test_more_gpus_than_the_server_gives_the_last_of_are_still_seen(connection: Connection) -> None:
    beats = Beats(connection)
    for number in range(1100):
        await beats.publish(beat(f"g-{number}"))
    async with asyncio.timeout(10):
        while await beats.last_seq() < 1100:
            pass
    info = await connection.api("STREAM.INFO.BEATS")
    assert len(await heartbeats(connection, stamp_ms(info["state"]["last_ts"]))) == 1100


async def test_a_read_is_bounded_and_says_what_is_left(connection: Connection) -> None:
    for number in range(1300):
        fact = lost(f"g-{number}")
        await connection.publish(subject_of(fact), encode(fact))
    async with asyncio.timeout(10):
        while (await connection.api("STREAM.INFO.LOG"))["state"]["messages"] < 1300:
            pass
    now = await now_ms(connection)
    found = await recent(connection, "LOG", "gpu.*.lost", 1, now, 700)
    assert 700 <= len(found.records) <= 1200, "whole batches"
    assert found.more == 1300 - len(found.records)
    assert found.records == sorted(found.records, key=lambda record: record.seq)
    whole = await recent(connection, "LOG", "gpu.*.lost", 1, now)
    assert (len(whole.records), whole.more) == (1300, 0)


async def test_of_too_many_facts_the_newest_are_read(connection: Connection) -> None:
    async def say(*names: str) -> None:
        before = (await connection.api("STREAM.INFO.LOG"))["state"]["messages"]
        for name in names:
            await connection.publish(subject_of(lost(name)), encode(lost(name)))
        async with asyncio.timeout(10):
            while (await connection.api("STREAM.INFO.LOG"))["state"]["messages"] < before + len(names):
                pass

    await say(*(f"old-{number}" for number in range(1500)))
    start = await now_ms(connection)
    await say("new-0")
    # as if what is old was an hour old: the first window that is not too wide begins after it
    found = await recent(connection, "LOG", "gpu.*.lost", start - 3_600_000, start + 3_600_000, 600)
    assert found.records[-1].subject == "gpu.new-0.lost"
    assert found.more == 1501 - len(found.records)
