"""How fast the log is folded, from memory and from the server; what a decision costs."""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
from pathlib import Path

import msgspec

from helix_es.core import events as e
from helix_es.core.codec import encode
from helix_es.core.occupancy import Occupancy
from helix_es.core.placement import decide
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.streams import provision
from helix_es.replica import Replica
from tests.bench.crowd import Crowd
from tests.conftest import NatsServer

EVENTS = 200_000


def made(count: int) -> list[e.Recorded]:
    """Return about `count` records of a shop of 100 GPUs."""
    crowd = Crowd(gpus=100, slots=8)
    records = list(crowd.fleet())
    for record in crowd.sessions(count // 11 + 1, turns=3):
        records.append(record)
        if len(records) == count:
            break
    return records


def from_memory() -> float:
    """Return events a second, the best of three: others on this machine only ever slow it."""
    records = made(EVENTS)
    best = 0.0
    for _ in range(3):
        state = Occupancy()
        gc.collect()
        begun = time.perf_counter()
        for record in records:
            state.apply(record)
        best = max(best, len(records) / (time.perf_counter() - begun))
    assert state.misfits == 0
    return best


async def from_server() -> float:
    """Return events a second from the first pull to the folded state, with a real server beside us."""
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder) / "nats", sync_interval="2m")  # only the filling is sped up by this
        server.start()
        try:
            connection = await connect(NatsSettings(url=server.url))
            await provision(connection)
            records = made(EVENTS)
            await fill(connection, records)
            rates = []
            for _ in range(3):
                replica = Replica(JetStreamLog(connection))
                begun = time.perf_counter()
                follower = asyncio.create_task(replica.run())
                await replica.caught_up.wait()
                rates.append(len(records) / (time.perf_counter() - begun))
                follower.cancel()
                assert replica.state.misfits == 0
                assert replica.state.seq == len(records)
            await connection.close()
        finally:
            server.close()
    return max(rates)


def envelope(record: e.Recorded) -> dict[str, str]:
    """Return headers as every real append has them, but for the fence."""
    return {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "Nats-Msg-Id": f"turn.queued:0123456789abcdef0123:0123456789abcdef:{record.seq}",
        "Nats-Expected-Stream": "LOG",
        "Helix-Event": "turn.queued;v=1",
    }


async def fill(connection: object, records: list[e.Recorded]) -> None:
    """Store `records` without fences, many at a time; only for measuring."""
    nc = connection.nc  # type: ignore[attr-defined]
    for start in range(0, len(records), 1000):
        for record in records[start : start + 999]:
            assert record.event is not None
            await nc.publish(record.subject, encode(record.event), headers=envelope(record))
        last = records[min(start + 999, len(records) - 1)]
        assert last.event is not None
        if start + 999 < len(records):
            await nc.request(last.subject, encode(last.event), timeout=20, headers=envelope(last))
    info = msgspec.json.decode((await nc.request("$JS.API.STREAM.INFO.LOG", b"")).data)
    assert info["state"]["messages"] == len(records), info["state"]


def decision_cost(gpus: int, sessions: int) -> float:
    """Return the median µs of folding one new turn and deciding on it, in a shop that is nearly full."""
    slots = sessions // gpus + 1
    crowd = Crowd(gpus, slots)
    state = Occupancy()
    for record in crowd.fleet():
        state.apply(record)
    for n in range(sessions):
        for record in crowd.seated(f"s{n}", e.GpuId(f"n{n % gpus}-0")):
            state.apply(record)
    costs = []
    gc.collect()
    gc.freeze()
    for n in range(2000):
        arrival = crowd.queued(f"new{n}")
        begun = time.perf_counter_ns()
        state.apply(arrival)
        plan = decide(state, state.now_ms)
        costs.append(time.perf_counter_ns() - begun)
        assert len(plan) == 1, plan
        gone = e.SessionClosed(session=e.SessionId(f"new{n}"))
        state.apply(crowd.record(gone))
    gc.unfreeze()
    return statistics.median(costs) / 1000
