"""From POST /sessions to the started task in hand: a long poll over HTTP against the native pull, in one run."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from helix_es.core.events import GpuId, Workload
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.server import free_port
from helix_es.jetstream.streams import provision
from helix_es.processes import Child, Supervisor
from helix_es.settings import Settings
from helix_runners.devices import cpu
from helix_runners.loop import Runner
from helix_runners.offer import Offer
from helix_runners.work import Job, Outcome, Output
from tests.bench.dispatch import PAUSE_S, Http, Latency, Nothing, _connected, summary
from tests.conftest import NatsServer
from tests.e2e.shop import HELIX

ROUNDS = 300
POLL = "/api/v1/worker/task?mode=Create&type=Text&model_name=mistral&worker=bench&slots=4&wait_s=30"


class Polled(msgspec.Struct, frozen=True):
    """Both in the same run, in turn."""

    native: Latency
    http: Latency


class Noting(Nothing):
    """Work that notes when it has a started task."""

    def __init__(self) -> None:
        self.held: asyncio.Queue[float] = asyncio.Queue()

    async def perform(self, job: Job, output: Output) -> Outcome:
        self.held.put_nowait(time.perf_counter())
        return Outcome(output="done")


class Poller(Http):
    """A worker on one kept connection."""

    async def ask(self) -> tuple[float, dict[str, Any]]:
        """Return (when the task came, the task)."""
        while True:
            self._writer.write(f"GET {POLL} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            status = await self._reader.readline()
            length = 0
            while (line := await self._reader.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            body = await self._reader.readexactly(length)
            if b" 200 " in status:
                return time.perf_counter(), json.loads(body)
            assert b" 204 " in status, (status, body)

    async def complete(self, task: str) -> None:
        """End the task."""
        data = b'{"output": "done"}'
        head = f"POST /api/v1/worker/task/{task}/complete HTTP/1.1\r\nHost: h\r\nContent-Length: {len(data)}\r\n\r\n"
        self._writer.write(head.encode() + data)
        status, answer = await self._answer()
        assert b" 202 " in status, (status, answer)


async def measure() -> Polled:
    """Run a server, an API and a scheduler as processes of their own; the runner's loop and the poller here."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server, children, port = NatsServer(folder / "nats"), Supervisor(folder), free_port()
        server.start()
        try:
            connection = await connect(NatsSettings(url=server.url))
            await provision(connection)
            for child in ("scheduler", "api"):
                more = ["--port", str(port)] if child == "api" else []
                await children.start(Child(child, [*HELIX, child, "--nats", server.url, *more]))
            models = {"smollm2": Settings().models["smollm2"]}
            workloads = [Workload("create", "text", "smollm2")]
            slots = {"smollm2": 10_000}
            offer = Offer(gpu=GpuId("bench-0"), device=cpu(), workloads=workloads, models=models, slots=slots)
            work = Noting()
            runner = Runner(connection, work, offer, new_incarnation=lambda: secrets.token_hex(4))
            serving = asyncio.create_task(runner.run())
            async with asyncio.timeout(60):
                await runner._ready.wait()
                http = await _connected(port)
            poller = Poller()
            await poller.open(port)
            result = await _rounds(http, poller, work)
            await poller.close()
            await http.close()
            runner.stop()
            await serving
            await connection.close()
        finally:
            await children.stop()
            server.close()
    return result


async def _rounds(http: Http, poller: Poller, work: Noting) -> Polled:
    native, polled = [], []
    for _ in range(ROUNDS):
        sent, session = await http.post("/api/v1/sessions", {"model": "smollm2", "prompt": "Hello"})
        native.append(await asyncio.wait_for(work.held.get(), 10) - sent)
        await http.idle(f"/api/v1/sessions/{session['session_id']}")
        waiting = asyncio.create_task(poller.ask())
        await asyncio.sleep(PAUSE_S)  # the poll is at the API when the clock starts, as the runner's pull is
        sent, session = await http.post("/api/v1/sessions", {"model": "mistral", "prompt": "Hello"})
        came, task = await asyncio.wait_for(waiting, 30)
        polled.append(came - sent)
        await poller.complete(task["task_id"])
        path = f"/api/v1/sessions/{session['session_id']}"
        await http.idle(path)
        await http.delete(path)
        await asyncio.sleep(PAUSE_S)
    return Polled(native=summary(native), http=summary(polled))


if __name__ == "__main__":
    print(asyncio.run(measure()))
