"""What stops the process, and what must not: numbers that no column holds, full disks, a kill at a bad moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from helix_es.analytics.schema import DATABASE, SNAPSHOT
from helix_es.cli.analytics import analytics
from helix_es.core import events as e
from helix_es.core.errors import Unavailable
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.streams import provision
from helix_projections.analytics import opening, projection, snapshots
from helix_projections.analytics.opening import BEATS_CREATED, Expected, opened
from helix_projections.analytics.source import Source
from helix_projections.analytics.store import Commit, Store
from tests.bench.crowd import Crowd
from tests.conftest import NatsServer
from tests.projections.analytics.kit import contents, filled, in_memory, messages, rows
from tests.projections.analytics.test_projection import clean, once, running, say, shown, until

pytestmark = pytest.mark.anyio

NO_ROOM = duckdb.TransactionException("Failed to commit: Could not write file: No space left on device")
FAR_MS = (2**62, -(2**62), 253_402_300_800_000, -62_135_596_800_001)


@pytest.fixture
def crowd() -> Crowd:
    return Crowd(gpus=2, slots=2)


def lived(crowd: Crowd, **replaced: Any) -> Iterator[e.Recorded]:
    """Yield what happened; facts that have all of the fields `replaced` have these values."""
    yield from crowd.fleet()
    for record in crowd.sessions(4, turns=2):
        assert record.event is not None
        if replaced.keys() <= set(record.event.__struct_fields__):
            event = msgspec.structs.replace(record.event, **replaced)
            yield e.Recorded(record.seq, record.at_ms, record.subject, event)
        else:
            yield record


@pytest.mark.parametrize("at_ms", FAR_MS)
def test_a_time_that_no_clock_shows_is_null_and_all_else_is_there(crowd: Crowd, at_ms: int) -> None:
    found = filled(in_memory(), [messages(lived(crowd, decided_at_ms=at_ms, waited_ms=7))])
    admissions = rows(found, "SELECT decided_at, waited_ms FROM admissions")
    assert admissions
    assert all(row == {"decided_at": None, "waited_ms": 7} for row in admissions)


def test_the_first_and_the_last_time_that_fit_are_kept() -> None:
    for at_ms in (-62_135_596_800_000, 253_402_300_799_999):
        found = filled(
            in_memory(), [messages(lived(Crowd(gpus=1, slots=1), decided_at_ms=at_ms, waited_ms=7))]
        )
        assert rows(found, "SELECT DISTINCT epoch_ms(decided_at) AS at FROM admissions") == [{"at": at_ms}]


def test_sums_that_no_column_holds_are_null_whatever_the_batches(crowd: Crowd) -> None:
    said = messages(lived(crowd, usage=e.Usage(prompt_tokens=2**62)))
    whole, cut = filled(in_memory(), [said]), filled(in_memory(), [[each] for each in said], restart=True)
    assert contents(cut) == contents(whole)
    assert {row["prompt_tokens"] for row in rows(whole, "FROM sessions")} == {None}
    assert {row["turns"] for row in rows(whole, "FROM sessions")} == {2}


def test_the_error_that_stopped_a_commit_is_the_one_that_is_told(crowd: Crowd) -> None:
    store = in_memory()
    store.run("CREATE UNIQUE INDEX one_session ON sessions (owner)", [])
    with pytest.raises(duckdb.ConstraintException):
        filled(store, [messages(lived(crowd))])
    assert rows(store, "FROM events") == []


class Full(Store):
    """A database on a full disk: a commit fails, and ends the transaction by itself."""

    def write(self, commit: Commit) -> None:
        raise NO_ROOM


def test_a_full_disk_is_told_in_one_line(
    nats_server: NatsServer, tmp_path: Path, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "Store", Full)
    asyncio.run(_provided(nats_server.url, crowd))
    done = CliRunner().invoke(analytics, ["--once", "--nats", nats_server.url, "--data-dir", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = [each for each in done.stderr.splitlines() if "the disk is full; make room" in each]
    assert DATABASE in line
    assert "Traceback" not in done.output


def test_a_database_on_a_full_disk_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Expected("then", 0)
    opened(tmp_path, expected)[0].close()

    def no_room(_store: Store) -> dict[str, str]:
        raise NO_ROOM

    monkeypatch.setattr(Store, "meta", no_room)
    with pytest.raises(duckdb.Error, match="No space left"):
        opened(tmp_path, expected)
    assert [each.name for each in tmp_path.iterdir()] == [DATABASE]


async def test_a_folder_that_takes_nothing_is_told(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file", encoding="utf-8")
    with pytest.raises(Unavailable, match="File exists"):
        await once(connection, tmp_path)


async def test_a_snapshot_that_cannot_be_put_in_place_is_tried_again(
    connection: Connection, tmp_path: Path, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "AGAIN_S", 0.05)
    part = tmp_path / "a" / f"{SNAPSHOT}.part"
    await say(connection, crowd.fleet())
    async with running(connection, tmp_path) as folder:
        part.mkdir()
        with capture_logs() as logs:
            await say(connection, crowd.sessions(2, turns=1))
            await until(lambda: any(each["event"] == "snapshot_failed" for each in logs), folder)
            assert shown(folder) == 6
            part.rmdir()
            await until(lambda: shown(folder) == 16, folder)


async def test_what_was_committed_before_a_kill_is_shown_after_it(
    connection: Connection, tmp_path: Path, crowd: Crowd
) -> None:
    await say(connection, crowd.fleet())
    await once(connection, tmp_path)
    old = (tmp_path / "a" / SNAPSHOT).read_bytes()
    await say(connection, crowd.sessions(2, turns=1))
    await once(connection, tmp_path)
    (tmp_path / "a" / SNAPSHOT).write_bytes(old)  # as if killed between the commit and the snapshot
    await once(connection, tmp_path)
    assert contents(tmp_path / "a" / SNAPSHOT) == await clean(connection, tmp_path)


def test_beats_made_anew_are_read_from_their_beginning_wherever_it_was_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = in_memory()
    store.note(BEATS_CREATED, "then")
    store.run("UPDATE position SET seq = 50 WHERE stream = 'BEATS'", [])
    anew = Source("BEATS", "now", 1, 80)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "note", _note_and_die)
        with pytest.raises(KeyboardInterrupt):
            projection._beats_position(store, anew)
        store._db.rollback()  # as a kill does
    assert store.meta()[BEATS_CREATED] == "then"
    assert projection._beats_position(store, anew) == 0
    assert (store.meta()[BEATS_CREATED], store.reached("BEATS")) == ("now", (0, 0))
    assert projection._beats_position(store, anew) == 0, "killed before the first beat was stored"


def _note_and_die(store: Store, key: str, value: str) -> None:
    store._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, value])
    raise KeyboardInterrupt


async def _provided(url: str, crowd: Crowd) -> None:
    connection = await connect(NatsSettings(url=url))
    await provision(connection)
    await say(connection, crowd.fleet())
    await connection.close()
