"""Helix's side: sessions over HTTP, and in its core, which is the two appends and the fact that they were answered."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from helix_es.core import events as e
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.server import free_port
from helix_es.jetstream.streams import provision
from helix_es.processes import Child, Supervisor
from tests.bench.peers.helix_worker import MODEL, NO_WORK
from tests.bench.peers.killing import kill_one
from tests.bench.peers.load import Loop, drive, measure, say
from tests.bench.peers.wire import Wire
from tests.e2e.shop import HELIX

READY_S = 60.0
WARM = Loop(concurrent=4, tasks=50)
HOW = {"one-of-two": "one of two, not started again", "only-one": "the only one, started again"}


class OverHttp:
    """POST /sessions, then the session's events until its turn ends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._wires: dict[int, Wire] = {}

    async def idle(self, client: int) -> None:
        await self._say(self._wires.setdefault(client, Wire(self._port)), NO_WORK)

    async def working(self, task: str) -> None:
        wire = Wire(self._port)
        try:
            await self._say(wire, task)
        finally:
            wire.close()

    async def _say(self, wire: Wire, prompt: str) -> None:
        body = json.dumps({"model": MODEL, "prompt": prompt}).encode()
        session = json.loads(await wire.post("/api/v1/sessions", body, 201))["session_id"]
        events = await wire.get(f"/api/v1/sessions/{session}/events?turn=1")
        if b"event: turn.completed" not in events:
            raise RuntimeError(events[-200:].decode())

    async def ready(self, gpus: int) -> None:
        """Wait until so many GPUs are ready. Raises TimeoutError."""
        wire = Wire(self._port)
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    floor = json.loads(await wire.get("/api/v1/gpus"))["data"]
                    if sum(gpu["state"] == "ready" for gpu in floor) == gpus:
                        break
                except OSError:
                    pass  # the API is not up yet
                await asyncio.sleep(0.1)
        wire.close()


class InCore:
    """The two facts that begin a session, appended by the client itself, and one follower that sees their answers."""

    def __init__(self, connection: Connection) -> None:
        self._log = JetStreamLog(connection)
        self._waiting: dict[str, asyncio.Future[None]] = {}

    async def ready(self) -> None:
        """Wait until a GPU is ready. Raises TimeoutError."""
        async with asyncio.timeout(READY_S):
            async for batch in self._log.follow(0, filters=("gpu.*.ready",)):
                if batch.records:
                    return

    async def follow(self) -> None:
        """See the ends of turns, for ever."""
        ends = ("session.*.turn.completed.*", "session.*.turn.failed.*")
        async for batch in self._log.follow(await self._log.last_seq(), filters=ends):
            for record in batch.records:
                match record.event:
                    case e.TurnCompleted(session=session) if session in self._waiting:
                        self._waiting.pop(session).set_result(None)
                    case e.TurnFailed(session=session, error=error) if session in self._waiting:
                        self._waiting.pop(session).set_exception(RuntimeError(error.message))

    async def idle(self, _client: int) -> None:
        session, owner = e.SessionId(secrets.token_hex(10)), "anonymous"
        ended = self._waiting[session] = asyncio.get_running_loop().create_future()
        created = e.SessionCreated(session=session, owner=owner, mode="create", type="text", model=MODEL)
        queued = e.TurnQueued(
            session=session, turn=1, mode="create", type="text", model=MODEL, owner=owner, prompt=NO_WORK
        )
        seq = await self._log.append(created, expected_seq=0, key=f"{session}:created")
        await self._log.append(queued, expected_seq=seq, key=f"{session}:queued")
        await ended


def worker(url: str, gpu: str, folder: Path) -> list[str]:
    """Return how a worker is started."""
    return [sys.executable, "-m", "tests.bench.peers.helix_worker", url, gpu, str(folder / "marks")]


@asynccontextmanager
async def floor(url: str, folder: Path, port: int | None) -> AsyncIterator[Supervisor]:
    """Run the streams, a scheduler and, on that port, an API on the server at `url`."""
    connection = await connect(NatsSettings(url=url))
    await provision(connection)
    await connection.close()
    children = Supervisor(folder)
    try:
        await children.start(Child("scheduler", [*HELIX, "scheduler", "--nats", url]))
        if port is not None:
            await children.start(Child("api", [*HELIX, "api", "--nats", url, "--port", str(port)]))
        yield children
    finally:
        await children.stop()


async def dispatch(url: str, folder: Path) -> None:
    """No-op work on one warm worker."""
    port = free_port()
    async with floor(url, folder, port) as children:
        await children.start(Child("worker", worker(url, "bench-0", folder)))
        clients = OverHttp(port)
        await clients.ready(1)
        await measure("HTTP", clients.idle)


async def in_core(url: str, folder: Path) -> None:
    """The same without an API, so that its work is not counted."""
    async with floor(url, folder, None) as children:
        await children.start(Child("worker", worker(url, "bench-0", folder)))
        connection = await connect(NatsSettings(url=url))
        core = InCore(connection)
        await core.ready()
        async with asyncio.TaskGroup() as group:
            following = group.create_task(core.follow())
            await measure("log", core.idle)
            following.cancel()
        await connection.close()


async def one_of_two(url: str, folder: Path) -> None:
    """Nobody starts the killed worker again: its GPU is lost when it has been silent for three heartbeats."""
    port = free_port()
    async with floor(url, folder, port):
        workers = []
        for gpu in ("bench-0", "bench-1"):
            with (folder / f"{gpu}.log").open("ab") as out:
                workers.append(
                    await asyncio.create_subprocess_exec(*worker(url, gpu, folder), stdout=out, stderr=out)
                )
        clients = OverHttp(port)
        await clients.ready(2)
        await drive(clients.idle, WARM)
        await kill_one(HOW["one-of-two"], clients.working, folder / "marks")
        for each in workers:
            if each.returncode is None:
                each.terminate()
            await asyncio.wait_for(each.wait(), 20)


async def only_one(url: str, folder: Path) -> None:
    """The supervisor of `helix up` starts the worker again, under the same name."""
    port = free_port()
    async with floor(url, folder, port) as children:
        await children.start(Child("worker", worker(url, "bench-0", folder)))
        clients = OverHttp(port)
        await clients.ready(1)
        await drive(clients.idle, WARM)
        await kill_one(HOW["only-one"], clients.working, folder / "marks")


PARTS = {"dispatch": dispatch, "in-core": in_core, "one-of-two": one_of_two, "only-one": only_one}

if __name__ == "__main__":
    say(measured="version", version=version("helix-es"))
    asyncio.run(PARTS[sys.argv[1]](sys.argv[2], Path(sys.argv[3])))
