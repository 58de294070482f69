"""A million facts from JetStream to the floor of `helix replay`; and the Mooncake trace through the simulator."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import msgspec

from helix_es.core import events as e
from helix_es.core.codec import encode
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.streams import provision
from helix_projections.simulation.offer import uniform
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.shop import simulate
from helix_projections.simulation.traces import mooncake
from tests.bench.crowd import Crowd
from tests.bench.fold import envelope
from tests.bench.row import Row
from tests.conftest import NatsServer

EVENTS = 1_000_000
TOGETHER = 1_000
MOONCAKE = Path("tests/data/traces/mooncake_conversation_sessions.csv")
HELIX = [sys.executable, "-m", "helix_es.cli.__main__"]


async def from_jetstream() -> float:
    """Return the seconds that `helix replay --at` takes over the log, from the command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder) / "nats", sync_interval="2m")  # only the filling is sped up by this
        server.start()
        try:
            connection = await connect(NatsSettings(url=server.url))
            await provision(connection)
            await _fill(connection)
            await connection.close()
            begun = time.perf_counter()
            shown = await asyncio.to_thread(_replay, server.url)
            taken = time.perf_counter() - begun
        finally:
            server.close()
    assert msgspec.json.decode(shown)["seq"] == EVENTS
    return taken


def _replay(url: str) -> bytes:
    command = [*HELIX, "replay", "--nats", url, "--at", str(EVENTS), "--json"]
    return subprocess.run(command, check=True, capture_output=True).stdout


async def _fill(connection: Connection) -> None:
    crowd = Crowd(gpus=100, slots=8)

    def everything() -> object:
        yield from crowd.fleet()
        yield from crowd.sessions(EVENTS, turns=3)

    records = islice(everything(), EVENTS)  # type: ignore[call-overload]
    while some := list(islice(records, TOGETHER)):
        for record in some[:-1]:
            await connection.nc.publish(record.subject, encode(record.event), headers=envelope(record))
        last: e.Recorded = some[-1]
        assert last.event is not None
        await connection.nc.request(last.subject, encode(last.event), timeout=20, headers=envelope(last))


def simulated() -> tuple[float, int]:
    """Return the seconds for the whole trace on 32 GPUs, the best of two, and its turns."""
    work = e.Workload("create", "text", "mistral")
    best = float("inf")
    for _ in range(2):
        arrivals = list(mooncake(MOONCAKE))
        begun = time.perf_counter()
        outcome = simulate(Scenario(offers=uniform(32, work, slots=8), workload=work), arrivals)
        best = min(best, time.perf_counter() - begun)
    return best, len(outcome.turns)


def replay_rows() -> list[Row]:
    """What the bench's table says of it."""
    replayed = asyncio.run(from_jetstream())
    simulated_s, turns = simulated()
    return [
        Row(
            f"helix replay --at: {EVENTS:,} events from JetStream to a floor, with start-up",
            f"{replayed:.1f} s",
            "≤ 12 s",
            replayed <= 12,
        ),
        Row(
            f"the Mooncake trace, {turns:,} turns on 32 GPUs",
            f"{simulated_s:.2f} s",
            "≤ 3 s",
            simulated_s <= 3,
        ),
    ]


if __name__ == "__main__":
    for each in replay_rows():
        print(f"{each.what}: {each.found} (promised {each.promised}){'' if each.kept else ' NOT REACHED'}")
