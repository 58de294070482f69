"""How fast the log becomes tables, against DuckDB's own appender with the same rows; how fast an export is folded."""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import uvloop

from helix_es.analytics.parquet import ParquetArchive
from helix_es.analytics.schema import statements
from helix_es.cli.analytics import GARBAGE, SWITCH_S
from helix_es.core import events as e
from helix_es.core.codec import encode
from helix_es.core.occupancy import Occupancy
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.follow import Message, follow_messages
from helix_es.jetstream.streams import provision
from helix_projections.analytics.chronicle import Chronicle
from helix_projections.analytics.exporting import export
from helix_projections.analytics.rows import Rows
from helix_projections.analytics.store import Commit, Store
from helix_projections.analytics.writer import Writer
from tests.bench.crowd import Crowd
from tests.bench.fold import fill, made
from tests.bench.row import Row
from tests.conftest import NatsServer

EVENTS = 200_000
REPLAYED = 1_000_000
TRIES = 3
TABLES = ("events", "sessions", "turns", "admissions", "gpu_occupancy", "cold_starts", "releases")


class Found(msgspec.Struct, frozen=True):
    """What was measured."""

    events_per_s: float
    """JetStream to committed rows, the best of three."""
    appender_per_s: float
    """Events' worth of the same rows that the appender takes in a second."""
    rows: int
    replayed_s: float
    """1,000,000 events from Parquet to the folded floor."""

    @property
    def ratio(self) -> float:
        return self.events_per_s / self.appender_per_s


async def measure() -> Found:
    """Measure all of it, on a server and files of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = NatsServer(folder / "nats", sync_interval="2m")  # only the filling is sped up by this
        server.start()
        before = gc.get_threshold(), sys.getswitchinterval()
        gc.set_threshold(*GARBAGE)  # both as the process does
        sys.setswitchinterval(SWITCH_S)
        try:
            connection = await connect(NatsSettings(url=server.url))
            await provision(connection)
            await fill(connection, made(EVENTS))
            gc.collect()
            rates = [await _followed(connection, folder / f"{n}.duckdb") for n in range(TRIES)]
            await connection.close()
        finally:
            server.close()
            gc.set_threshold(*before[0])
            sys.setswitchinterval(before[1])
        rows = _rows(folder / "0.duckdb")
        appended = max(_appended(folder / f"appended{n}.duckdb", rows) for n in range(TRIES))
        count = sum(map(len, rows.values()))
        del rows
        replayed_s = await _replayed(folder)
    return Found(max(rates), appended, count, replayed_s)


async def _followed(connection: Connection, path: Path) -> float:
    """Return events a second from the first pull to the last commit, with a real server beside us."""
    store = Store(path)
    store.create({"log_created": "now"})
    writer = Writer(store, Chronicle())
    begun = time.perf_counter()
    writing = asyncio.create_task(writer.run())
    async for messages, pending in follow_messages(connection, "LOG", 0):
        await writer.take(messages)
        if not pending:
            break
    await writer.commit()
    rate = EVENTS / (time.perf_counter() - begun)
    writing.cancel()
    assert store.reached("LOG")[0] == EVENTS
    await writer.close()
    return rate


def _rows(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    with duckdb.connect(str(path), read_only=True) as db:
        return {table: db.execute(f"FROM {table}").fetchall() for table in TABLES}


def _appended(path: Path, rows: dict[str, list[tuple[Any, ...]]]) -> float:
    """Return how many events' rows a second the appender takes, one row after the other, in one transaction."""
    with duckdb.connect(str(path)) as db:
        db.execute(statements())
        gc.collect()
        begun = time.perf_counter()
        db.execute("BEGIN")
        for table, some in rows.items():
            appender = db.appender(table)
            for row in some:
                appender.append_row(*row)
            appender.flush()
        db.execute("COMMIT")
        return EVENTS / (time.perf_counter() - begun)


async def _replayed(folder: Path) -> float:
    """Return the seconds from the first file to the state."""
    _export_much(folder / "export")
    gc.collect()
    gc.freeze()
    begun = time.perf_counter()
    state = Occupancy()
    async for records in ParquetArchive(folder / "export").read():
        for record in records:
            state.apply(record)
    taken = time.perf_counter() - begun
    gc.unfreeze()
    assert (state.seq, state.misfits) == (REPLAYED, 0)
    return taken


def _export_much(folder: Path) -> None:
    """Export a log whose events alone are in the database: the other tables are nothing to a replay."""
    store = Store(folder.with_suffix(".duckdb"))
    store.create({"log_created": "now"})
    crowd = Crowd(gpus=100, slots=8)
    records = islice(_everything(crowd), REPLAYED)
    while some := [Message(r.seq, r.at_ms, r.subject, None, _body(r)) for r in islice(records, 50_000)]:
        rows = [(*each[:3], "?", *[None] * 5, True, *each[3:]) for each in some]
        store.write(Commit(Rows(some[-1].seq, some[-1].at_ms, {"events": rows})))
    export(store.run, folder)
    store.close()


def _everything(crowd: Crowd) -> Iterator[e.Recorded]:
    yield from crowd.fleet()
    yield from crowd.sessions(REPLAYED, turns=3)


def _body(record: e.Recorded) -> bytes:
    assert record.event is not None
    return encode(record.event)


def analytics_rows() -> list[Row]:
    """What the bench's table says of it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the process does
        found = runner.run(measure())
    return [
        Row("log → DuckDB", f"{found.events_per_s:,.0f} events/s", "≥ 50,000", found.events_per_s >= 50_000),
        Row(
            "the same, against DuckDB's appender with the same rows",
            f"{found.ratio:.2f} × its {found.appender_per_s:,.0f} ({found.rows / EVENTS:.1f} rows an event)",
            "≥ 0.6 ×",
            found.ratio >= 0.6,
        ),
        Row(
            f"{REPLAYED:,} events from Parquet to a floor",
            f"{found.replayed_s:.1f} s",
            "≤ 7 s",
            found.replayed_s <= 7,
        ),
    ]


if __name__ == "__main__":
    for each in analytics_rows():
        print(f"{each.what}: {each.found} (promised {each.promised}){'' if each.kept else ' NOT REACHED'}")
