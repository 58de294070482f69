"""The process that fills the tables: what it goes on from, what makes it begin anew, what readers see meanwhile."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
from structlog.testing import capture_logs

from helix_es.analytics.schema import DATABASE, SNAPSHOT
from helix_es.core.codec import encode
from helix_es.core.errors import Misconfigured, Unavailable
from helix_es.jetstream.client import Connection
from helix_projections.analytics import opening, store
from helix_projections.analytics.chronicle import Chronicle
from helix_projections.analytics.exporting import export_file
from helix_projections.analytics.projection import Plan, Projection
from helix_projections.analytics.snapshots import WANTED
from helix_projections.analytics.writer import Writer
from tests.bench.crowd import Crowd
from tests.projections.analytics.kit import contents, messages

pytestmark = pytest.mark.anyio


@pytest.fixture
def crowd() -> Crowd:
    return Crowd(gpus=2, slots=2)


async def say(connection: Connection, records: Iterator[Any]) -> None:
    """Store facts as they are, and return when the server has them."""
    for record in records:
        await connection.nc.publish(record.subject, encode(record.event))
    await connection.nc.flush()
    await connection.api("STREAM.INFO.LOG")


def plan(tmp_path: Path, **more: Any) -> Plan:
    return Plan(folder=tmp_path / "a", parquet=tmp_path / "parquet", **more)


async def once(connection: Connection, tmp_path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Fill the tables in `tmp_path` and return them; warnings of the process are kept beside."""
    await Projection(connection, plan(tmp_path, once=True)).run()
    return contents(tmp_path / "a" / DATABASE)


async def clean(connection: Connection, tmp_path: Path) -> dict[str, list[tuple[object, ...]]]:
    return await once(connection, tmp_path / "clean")


def reasons(logs: list[Any]) -> list[str]:
    return [each["reason"] for each in logs if each["event"] == "analytics_begins_anew"]


async def test_it_goes_on_where_it_stood(connection: Connection, tmp_path: Path, crowd: Crowd) -> None:
    await say(connection, crowd.fleet())
    first = await once(connection, tmp_path)
    assert [row[1] for row in first["position"]] == [0, 6]
    await say(connection, crowd.sessions(20, turns=2))
    with capture_logs() as logs:
        found = await once(connection, tmp_path)
    assert found == await clean(connection, tmp_path)
    assert reasons(logs) == []
    assert len(found["sessions"]) == 20


async def test_tables_of_another_version_are_made_anew(
    connection: Connection, tmp_path: Path, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    await say(connection, crowd.fleet())
    with monkeypatch.context() as patch:
        patch.setattr(store, "VERSION", "0.0")
        patch.setattr(opening, "VERSION", "0.0")
        await once(connection, tmp_path)
    with capture_logs() as logs:
        found = await once(connection, tmp_path)
    assert "version 0.0" in reasons(logs)[0]
    assert found == await clean(connection, tmp_path)
    assert (tmp_path / "a" / f"{DATABASE}.old-schema").exists()


@pytest.mark.parametrize("bytes_left", [0, 100, 40_000])
async def test_a_damaged_file_is_moved_aside(
    connection: Connection, tmp_path: Path, crowd: Crowd, bytes_left: int
) -> None:
    await say(connection, crowd.fleet())
    await once(connection, tmp_path)
    os.truncate(tmp_path / "a" / DATABASE, bytes_left)
    with capture_logs() as logs:
        found = await once(connection, tmp_path)
    assert "damaged" in reasons(logs)[0]
    assert found == await clean(connection, tmp_path)


async def test_another_log_makes_other_tables(connection: Connection, tmp_path: Path, crowd: Crowd) -> None:
    await say(connection, crowd.fleet())
    await once(connection, tmp_path)
    await remade(connection)
    await say(connection, Crowd(gpus=3, slots=1).fleet())
    with capture_logs() as logs:
        found = await once(connection, tmp_path)
    assert "of the log made at" in reasons(logs)[0]
    assert found == await clean(connection, tmp_path)


async def test_a_log_that_lost_its_end_makes_other_tables(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    await say(connection, crowd.fleet())
    await once(connection, tmp_path)
    with duckdb.connect(str(tmp_path / "a" / DATABASE)) as db:
        db.execute("UPDATE position SET logged_at = logged_at - INTERVAL 1 HOUR WHERE stream = 'LOG'")
    with capture_logs() as logs:
        found = await once(connection, tmp_path)
    assert "sequence 6 of the log is another message" in reasons(logs)[0]
    assert found == await clean(connection, tmp_path)


async def remade(connection: Connection) -> None:
    config = (await connection.api("STREAM.INFO.LOG"))["config"]
    await connection.api("STREAM.DELETE.LOG")
    await connection.api("STREAM.CREATE.LOG", config)


async def test_a_log_made_anew_meanwhile_is_noticed(
    connection: Connection, tmp_path: Path, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helix_projections.analytics.projection.SAME_LOG_S", 0.05)
    await say(connection, crowd.fleet())
    with capture_logs() as logs:
        async with running(connection, tmp_path) as folder:
            await remade(connection)
            await say(connection, Crowd(gpus=1, slots=1).fleet())
            await until(lambda: shown(folder) == 3, folder)
    assert "made anew" in reasons(logs)[0]


async def test_what_the_log_lost_comes_from_the_export(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    await say(connection, crowd.fleet())
    await say(connection, crowd.sessions(20, turns=2))
    whole = await once(connection, tmp_path)
    done = export_file(tmp_path / "a" / SNAPSHOT, tmp_path / "parquet")
    await connection.api("STREAM.PURGE.LOG", {"seq": done.last_seq - 20})
    await say(connection, crowd.sessions(1, turns=1))
    (tmp_path / "a" / DATABASE).unlink()
    with capture_logs() as logs:
        found = await once(connection, tmp_path)
    assert [each for each in logs if each["event"] == "analytics_gap"] == []
    assert len(found["events"]) == len(whole["events"]) + 5
    assert set(whole["events"]) < set(found["events"])
    assert set(whole["releases"]) <= set(found["releases"])


async def test_what_is_lost_for_good_is_said(connection: Connection, tmp_path: Path, crowd: Crowd) -> None:
    await say(connection, crowd.fleet())
    await connection.api("STREAM.PURGE.LOG", {"seq": 4})
    with capture_logs() as logs:
        found = await once(connection, tmp_path)
    assert gaps(logs) == [(1, 3, 3)]
    assert len(found["events"]) == 3


async def test_what_was_deleted_between_two_messages_is_said_in_one_line(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    await say(connection, crowd.fleet())
    for seq in (2, 4, 5):
        await connection.api("STREAM.MSG.DELETE.LOG", {"seq": seq})
    with capture_logs() as logs:
        found = await once(connection, tmp_path)
    assert gaps(logs) == [(2, 5, 3)]
    assert sorted(row[0] for row in found["events"]) == [1, 3, 6]


def gaps(logs: list[Any]) -> list[tuple[int, int, int]]:
    told = [each for each in logs if each["event"] == "analytics_gap"]
    return [(each["from"], each["to"], each["missing"]) for each in told]


UNREADABLE = {
    b"\x00": "not JSON",
    b"[1, 2]": "Expected `object`",
    b'{"event":"turn.sung","session":"s1"}': "turn.sung",
    b'{"event":"session.closed.v2","session":"s1"}': "session.closed.v2",
    b'{"event":"session.closed","session":"other"}': "does not belong under",
    b'{"event":"session.closed"}': "missing required field",
    b'{"event":"gpu.heartbeat","gpu":"g"}': "missing required field",
}


async def test_what_nobody_can_read_is_set_aside_with_its_bytes(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    for body in UNREADABLE:
        await connection.nc.publish("session.s1.closed", body)
    await connection.nc.publish("gpu.g.heartbeat", b"{}")
    await say(connection, crowd.fleet())
    found = await once(connection, tmp_path)
    rows = sorted((row for row in found["set_aside"] if row[0] == "LOG"), key=lambda row: row[1])
    assert [row[5] for row in rows] == list(UNREADABLE)
    for row, reason in zip(rows, UNREADABLE.values(), strict=True):
        assert reason in row[4]
    events = sorted(found["events"])
    assert [row[3] for row in events[: len(UNREADABLE)]] == [None] * len(UNREADABLE)
    assert all(row[3] for row in events[len(UNREADABLE) :])


async def test_numbers_and_texts_that_no_column_holds_do_not_stop_it(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    huge = b'{"event":"turn.cancelling","session":"s1","turn":1%s,"gpu":"g"}' % (b"0" * 30)
    await connection.nc.publish("session.s1.turn.cancelling.g", huge)
    await connection.nc.publish("session.s1.closed", b'{"event":"session.closed","session":"s1","x":"\xff"}')
    await say(connection, crowd.fleet())
    found = await once(connection, tmp_path)
    first, second, *_ = sorted(found["events"])
    assert (first[3], first[5], first[9]) == ("turn.cancelling", None, False)
    assert (second[3], second[11]) == ("session.closed", None)
    assert [row[5] for row in found["set_aside"]] == [b'{"event":"session.closed","session":"s1","x":"\xff"}']


async def test_of_two_processes_the_second_is_refused(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    await say(connection, crowd.fleet())
    async with running(connection, tmp_path):
        with pytest.raises(Misconfigured, match="another 'helix analytics' writes there"):
            await once(connection, tmp_path)
    await once(connection, tmp_path)


class Full(store.Store):
    """A database whose disk is full for one commit, and then is not any more."""

    def write(self, commit: store.Commit) -> None:
        if len(commit.rows.added.get("events", [])) == 2:
            raise duckdb.IOException("IO Error: No space left on device")
        super().write(commit)


async def test_after_a_commit_that_failed_nothing_more_is_written(tmp_path: Path, crowd: Crowd) -> None:
    full = Full(tmp_path / DATABASE)
    full.create({})
    writer = Writer(full, Chronicle())
    facts = messages(crowd.fleet())
    for some in (facts[:1], facts[1:3], facts[3:]):
        await writer.take(some)
        if len(some) == 2:
            with pytest.raises(Unavailable, match="No space left"):
                await writer.commit()
        else:
            await writer.commit()
    await writer.finish()
    await writer.close()
    found = contents(tmp_path / DATABASE)
    assert [row[0] for row in found["events"]] == [1]
    assert ("LOG", 1) in [row[:2] for row in found["position"]]


async def test_a_log_of_writes_without_its_database_is_not_taken_for_the_new_one_s(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    await say(connection, crowd.fleet())
    async with running(connection, tmp_path) as folder:
        await say(connection, crowd.sessions(1, turns=1))
        await until(lambda: (folder / f"{DATABASE}.wal").exists(), folder, wish=False)
        left = (folder / f"{DATABASE}.wal").read_bytes()
    (folder / DATABASE).unlink()
    (folder / f"{DATABASE}.wal").write_bytes(left)
    assert await once(connection, tmp_path) == await clean(connection, tmp_path)


async def test_readers_get_a_new_snapshot_while_they_ask(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    await say(connection, crowd.fleet())
    async with running(connection, tmp_path) as folder:
        assert len(contents(folder / SNAPSHOT)["events"]) == 6
        await say(connection, crowd.sessions(2, turns=1))
        await until(lambda: shown(folder) == 16, folder)
        before = (folder / SNAPSHOT).stat()
        await until(lambda: (folder / SNAPSHOT).stat().st_mtime_ns > before.st_mtime_ns, folder)
        assert (folder / SNAPSHOT).stat().st_ino == before.st_ino, "nothing changed, so nothing was copied"
    assert contents(folder / SNAPSHOT) == contents(folder / DATABASE)


async def test_the_last_snapshot_has_all_that_was_said_before_the_end(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    await say(connection, crowd.fleet())
    async with running(connection, tmp_path) as folder:
        await say(connection, crowd.sessions(2, turns=1))
        await until(lambda: (folder / f"{DATABASE}.wal").exists(), folder, wish=False)
    assert len(contents(folder / SNAPSHOT)["events"]) == 16


async def test_it_exports_by_itself(connection: Connection, tmp_path: Path, crowd: Crowd) -> None:
    await say(connection, crowd.fleet())
    async with running(connection, tmp_path, export_every_s=0.2) as folder:
        await until(lambda: bool(list((tmp_path / "parquet").glob("policies/*.parquet"))), folder, wish=False)
    assert [each.name for each in (tmp_path / "parquet").glob("events/*/*")] == [
        "000000000001-000000000006.parquet"
    ]


def shown(folder: Path) -> int:
    """Return how many events readers see; 0 while the tables are made anew."""
    try:
        return len(contents(folder / SNAPSHOT)["events"])
    except duckdb.IOException:
        return 0


@asynccontextmanager
async def running(connection: Connection, tmp_path: Path, **more: Any) -> AsyncIterator[Path]:
    """Run the process; give its folder when it has caught up."""
    made = plan(tmp_path, fresh_s=0.05, **more)
    task = asyncio.create_task(Projection(connection, made).run())
    try:
        await until((made.folder / SNAPSHOT).exists, made.folder, wish=False)
        yield made.folder
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Any, folder: Path, *, wish: bool = True) -> None:
    """Ask for snapshots until `true`; ten seconds at most."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if wish:
            (folder / WANTED).touch()
        if true():
            return
        await asyncio.sleep(0.02)  # polls, with a deadline
    raise AssertionError("it did not come true")
