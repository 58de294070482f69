"""The tables as Parquet files, and the log read back from them."""

from __future__ import annotations

import asyncio
from itertools import chain, islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from helix_es.analytics.parquet import ParquetArchive, files
from helix_es.archive import record_of
from helix_es.core.errors import Misconfigured, Unavailable, Unreadable
from helix_es.core.events import Recorded
from helix_es.jetstream.follow import Message
from helix_projections.analytics.exporting import Exported, export
from helix_projections.analytics.store import Store
from tests.bench.crowd import Crowd
from tests.projections.analytics.kit import filled, in_memory, messages

DAY_MS = 86_400_000
RUBBISH = b'{"event":"turn.sung"}\xff'
TEXT_THAT_IS_NONE = b'{"event":"session.closed","session":"s1","later":"\xff"}'


def days_of_log() -> list[Message]:
    """A log of three days, with messages in it that nobody can read."""
    crowd = Crowd(gpus=5, slots=4)
    shop = messages(islice(chain(crowd.fleet(), crowd.sessions(40, turns=3)), 300))
    shop[100] = shop[100]._replace(subject="session.s1.closed", body=RUBBISH)
    shop[200] = shop[200]._replace(subject="session.s1.closed", body=TEXT_THAT_IS_NONE)
    return [each._replace(at_ms=each.at_ms + n // 120 * DAY_MS, trace="00-aa") for n, each in enumerate(shop)]


def read(folder: Path, after_seq: int = 0) -> list[Recorded]:
    async def every() -> list[Recorded]:
        return [each async for records in ParquetArchive(folder).read(after_seq) for each in records]

    return asyncio.run(every())


def exported(store: Store, folder: Path, **more: Any) -> Exported:
    return export(store.run, folder, **more)


def test_an_export_gives_back_every_message_as_it_was_stored(tmp_path: Path) -> None:
    log = days_of_log()
    done = exported(filled(in_memory(), [log]), tmp_path)
    assert (done.events, done.last_seq) == (300, 300)
    again = [
        Message(*each) for stored in ParquetArchive(tmp_path).messages() for each in zip(*stored, strict=True)
    ]
    assert again == log
    assert read(tmp_path) == [record_of(m.seq, m.at_ms, m.subject, m.body) for m in log]
    assert [r.seq for r in read(tmp_path, 117)] == list(range(118, 301))
    assert read(tmp_path, 300) == []


def test_an_export_goes_on_where_the_last_one_ended_and_doubles_nothing(tmp_path: Path) -> None:
    log = days_of_log()
    store = filled(in_memory(), [log[:130]])
    exported(store, tmp_path)
    assert exported(store, tmp_path).events == 0
    assert exported(filled(in_memory(), [log]), tmp_path).events == 170
    named = [each.path.relative_to(tmp_path / "events").as_posix() for each in files(tmp_path)]
    assert named == [
        "day=2023-11-14/000000000001-000000000120.parquet",
        "day=2023-11-15/000000000121-000000000130.parquet",
        "day=2023-11-15/000000000131-000000000240.parquet",
        "day=2023-11-16/000000000241-000000000300.parquet",
    ]
    assert len(read(tmp_path)) == 300


def test_what_a_killed_export_left_is_not_read_and_is_written_over(tmp_path: Path) -> None:
    store = filled(in_memory(), [days_of_log()])
    day = tmp_path / "events" / "day=2023-11-14"
    day.mkdir(parents=True)
    (day / "000000000001-000000000120.part").write_bytes(b"half a file")
    exported(store, tmp_path)
    assert len(read(tmp_path)) == 300
    assert not list(tmp_path.rglob("*.part"))


def test_any_duckdb_and_any_pandas_can_read_it(tmp_path: Path) -> None:
    exported(filled(in_memory(), [days_of_log()]), tmp_path)
    with duckdb.connect() as db:
        every = f"read_parquet('{tmp_path}/events/*/*.parquet', hive_partitioning=true)"
        assert db.execute(
            f"SELECT count(*), count(DISTINCT seq), count(DISTINCT day) FROM {every}"
        ).fetchone() == (
            300,
            300,
            3,
        )
        assert db.execute(
            f"SELECT body->>'owner' FROM {every} WHERE event = 'session.created' LIMIT 1"
        ).fetchone()
        assert db.execute(f"SELECT count(*) FROM '{tmp_path}/turns/*.parquet'").fetchone() != (0,)
    table = pq.read_table(files(tmp_path)[0].path, partitioning=None).to_pydict()
    assert table["bytes"][100] == RUBBISH
    assert table["event"][100] is None


def test_the_export_of_another_log_is_refused(tmp_path: Path) -> None:
    exported(filled(in_memory(), [days_of_log()]), tmp_path)
    other = in_memory()
    other.note("log_created", "now")
    with pytest.raises(Misconfigured, match="made at then"):
        exported(other, tmp_path)


def test_an_export_that_begins_later_says_so(tmp_path: Path) -> None:
    exported(filled(in_memory(), [days_of_log()]), tmp_path, from_seq=121)
    with pytest.raises(Unavailable, match="begins at sequence 121"):
        read(tmp_path)
    assert len(read(tmp_path, 120)) == 180


def test_a_missing_file_is_an_error_with_what_is_missing(tmp_path: Path) -> None:
    exported(filled(in_memory(), [days_of_log()]), tmp_path)
    files(tmp_path)[1].path.unlink()
    with pytest.raises(Unreadable, match="sequences 121 to 240 are missing"):
        read(tmp_path)


@pytest.mark.parametrize("damage", [b"PAR1 nothing of the kind", b""])
def test_a_damaged_file_is_an_error_with_its_name(tmp_path: Path, damage: bytes) -> None:
    exported(filled(in_memory(), [days_of_log()]), tmp_path)
    path = files(tmp_path)[1].path
    path.write_bytes(damage)
    with pytest.raises(Unreadable, match=path.name):
        read(tmp_path)


def test_files_that_are_not_ours_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="holds no export"):
        read(tmp_path)
    exported(filled(in_memory(), [days_of_log()]), tmp_path)
    stranger = files(tmp_path)[0].path.with_name("000000000301-000000000400.parquet")
    pq.write_table(pq.read_table(files(tmp_path)[0].path, columns=["seq"], partitioning=None), stranger)
    with pytest.raises(Unreadable, match="has no column 'logged_at'"):
        read(tmp_path)
    stranger.rename(stranger.with_name("mine.parquet"))
    with pytest.raises(Unreadable, match=r"mine\.parquet is no file of an export"):
        read(tmp_path)
