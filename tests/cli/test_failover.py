"""What `helix doctor` says of schedulers: who acts, who acted, and whether somebody stands by."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from helix_es.cli import failover
from helix_es.cli.failover import Beat, Change, Watch, breaks, changes
from helix_es.core.events import SchedulerBeat
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.headers import stamp_ms

pytestmark = pytest.mark.anyio

AT_MS = stamp_ms("2026-11-22T11:00:00Z")
MIN = 60_000


def beats(scheduler: str, start_ms: int, end_ms: int, *, active: bool = True) -> list[Beat]:
    return [Beat(ms, scheduler, active) for ms in range(start_ms, end_ms, 250)]


def test_one_scheduler_that_goes_on_has_no_changes() -> None:
    assert changes(sorted(beats("a", 0, MIN) + beats("b", 100, MIN, active=False))) == []


def test_a_change_is_told_with_the_time_without_a_scheduler() -> None:
    assert changes(beats("a", 0, 10_000) + beats("b", 11_000, 20_000)) == [Change("a", "b", 9_750, 11_000)]


def test_a_pause_of_one_scheduler_is_a_change_too() -> None:
    assert changes(beats("a", 0, 10_000) + beats("a", 15_000, 20_000)) == [Change("a", "a", 9_750, 15_000)]


def test_samples_break_where_another_acts_or_none_did() -> None:
    a, b, late = Beat(100, "a", True), Beat(2 * MIN, "b", True), Beat(3 * MIN + 9_000, "b", True)
    resumed = Beat(6 * MIN, "b", True)
    sampled = [
        (0, a),
        (MIN, Beat(MIN, "a", True)),
        (2 * MIN, b),
        (3 * MIN, late),
        (4 * MIN, None),
        (6 * MIN, resumed),
    ]
    assert list(breaks(sampled)) == [(Beat(MIN, "a", True), b), (b, late), (late, resumed)]


def test_a_shop_that_opened_within_the_hour_has_no_break() -> None:
    first = Beat(50 * MIN, "a", True)
    assert (
        list(breaks([(0, first), (MIN, first), (50 * MIN, first), (51 * MIN, Beat(51 * MIN, "a", True))]))
        == []
    )


@pytest.mark.parametrize(
    ("schedulers", "replicas", "status", "said"),
    [
        (["a"], 1, "ok", "none in the last hour; no standby: enough with one broker"),
        (["a"], 3, "warn", "no standby"),
        (["a", "b"], 3, "ok", "none in the last hour; 1 standing by"),
        ([], 1, "ok", "none in the last hour; no standby: enough with one broker"),
    ],
)
def test_no_standby_is_a_note_unless_the_broker_has_several_nodes(
    schedulers: list[str], replicas: int, status: str, said: str
) -> None:
    found = failover.failover(Watch(schedulers, []), replicas)
    assert (found.status, found.found) == (status, said)


def test_a_failover_is_told() -> None:
    change = Change("a", "b", AT_MS + 130_000 - 1300, AT_MS + 130_000)
    found = failover.failover(Watch(["b"], [change]), 1)
    assert (found.status, found.found) == (
        "warn",
        "in the last hour a -> b at 11:02:10Z (1.3 s without); no standby: enough with one broker",
    )
    many = failover.failover(Watch(["a", "b"], [change] * 9), 3)
    assert many.found.startswith("in the last hour 9 times, lastly a -> b at ")


async def publish(connection: Connection, *told: tuple[str, bool]) -> None:
    stored = await Beats(connection).last_seq()
    for seq, (name, active) in enumerate(told):
        await Beats(connection).publish(SchedulerBeat(scheduler=name, active=active, seq=seq))
    async with asyncio.timeout(10):
        while await Beats(connection).last_seq() < stored + len(told):
            pass


async def now_ms(connection: Connection) -> int:
    return stamp_ms((await connection.api("STREAM.INFO.BEATS"))["ts"])


async def test_a_failover_is_read_from_real_beats(connection: Connection) -> None:
    await publish(connection, *[("a", True), ("b", False)] * 5, *[("b", True)] * 5, ("c", False))
    now = await now_ms(connection)
    seen = await failover.watch(connection, now)
    assert seen.schedulers == ["a", "b", "c"]
    assert [(change.was, change.now) for change in seen.changes] == [("a", "b")]
    acting = await failover.acting(connection, now - 60_000, now)
    assert acting is not None
    assert acting.scheduler == "b"
    assert await failover.acting(connection, now + 60_000, now) is None


async def test_an_older_failover_is_found_by_sampling(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the server's times cannot be set: let a minute be a tenth of a second instead
    monkeypatch.setattr(failover, "STEP_MS", 100)
    monkeypatch.setattr(failover, "FINE_MS", 1)
    for name in ("a", "b"):
        start = await now_ms(connection)
        while await now_ms(connection) < start + 250:
            await publish(connection, (name, True))
    await publish(connection, ("b", True))
    now = await now_ms(connection)
    monkeypatch.setattr(failover, "HOUR_MS", 700)
    seen = await failover.watch(connection, now)
    (change,) = seen.changes
    assert (change.was, change.now) == ("a", "b")
    assert 0 < change.first_ms - change.last_ms < 100
    assert seen.schedulers == ["b"]


async def test_the_exact_time_is_found_by_halving(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = beats("a", 0, 33_000) + beats("b", 34_000, 2 * MIN)

    async def acting(_connection: object, moment_ms: int) -> Beat | None:
        return next((beat for beat in stored if beat.at_ms >= moment_ms), None)

    monkeypatch.setattr(failover, "_acting", acting)
    change = await failover._narrowed(None, stored[0], stored[-1])  # type: ignore[arg-type]
    assert (change.was, change.now, change.first_ms) == ("a", "b", 34_000)
    assert 32_500 <= change.last_ms <= 32_750
    assert all(one.at_ms <= other.at_ms for one, other in pairwise(stored))
