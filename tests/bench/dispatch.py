"""From the HTTP request to the task in a runner's hand, against a bare publish to a waiting fetch, in one run."""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import nats

from helix_es.core.catalogue import Model
from helix_es.core.events import GpuId, Workload
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.server import free_port
from helix_es.jetstream.streams import provision
from helix_es.jetstream.tasks import Task
from helix_es.processes import Child, Supervisor
from helix_es.settings import Settings
from helix_runners.devices import cpu
from helix_runners.loop import Runner
from helix_runners.offer import Offer
from helix_runners.work import Job, Outcome, Output
from tests.conftest import NatsServer
from tests.e2e.shop import HELIX

ROUNDS = 400
WARM_UP = 40
PAUSE_S = 0.01  # between two requests, so that each is measured alone, as the floor is


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds."""

    p50: float
    p99: float


class Dispatch(msgspec.Struct, frozen=True):
    """What was measured in one run on one server."""

    floor: Latency
    proceed: Latency
    create: Latency


def summary(seconds: list[float]) -> Latency:
    """Return the percentiles, without the warm-up."""
    cut = statistics.quantiles(seconds[WARM_UP:], n=100)
    return Latency(cut[49] * 1000, cut[98] * 1000)


class Nothing:
    """Work that takes no time: only dispatch is measured."""

    async def load(self, workload: Workload, model: Model) -> None:
        pass

    async def give_way(self, session: str) -> None:
        pass

    async def perform(self, job: Job, output: Output) -> Outcome:
        return Outcome(output="done")

    async def cancel(self, session: str) -> None:
        pass

    async def forget(self, session: str) -> None:
        pass

    @property
    def broken(self) -> str | None:
        return None

    def detail(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        pass


class TimedRunner(Runner):
    """The real loop, noting when it holds a task."""

    def begin(self) -> None:
        self.held: asyncio.Queue[tuple[str, float]] = asyncio.Queue()

    async def _take(self, task: Task) -> None:
        self.held.put_nowait((task.event.session, time.perf_counter()))
        await super()._take(task)


class Http:
    """One kept connection that writes a request in one piece: the clock starts when its bytes leave."""

    async def open(self, port: int) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)

    async def post(self, path: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """Return (when it was sent, the answer)."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        sent = time.perf_counter()
        self._writer.write(f"{head}\r\n\r\n".encode() + data)
        status, answer = await self._answer()
        assert b" 201 " in status, (status, answer)
        return sent, answer

    async def idle(self, path: str) -> None:
        """Wait until the API sees the session as idle; this is before the clock starts."""
        while True:
            self._writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            _, answer = await self._answer()
            if answer["state"] == "idle":
                return

    async def delete(self, path: str) -> None:
        """Close a session, so that its slot is free."""
        self._writer.write(f"DELETE {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        status = await self._reader.readline()
        while await self._reader.readline() != b"\r\n":
            pass
        assert b" 204 " in status, status

    async def _answer(self) -> tuple[bytes, dict[str, Any]]:
        status = await self._reader.readline()
        length = 0
        while (line := await self._reader.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(await self._reader.readexactly(length))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def floor(url: str) -> Latency:
    """A bare acknowledged publish to a fetch that waits, with plain nats-py."""
    publisher, worker = await nats.connect(url), await nats.connect(url)
    js = publisher.jetstream()
    await js.add_stream(name="FLOOR", subjects=["floor.>"], retention="workqueue")
    pulling = await worker.jetstream().pull_subscribe("floor.>", durable="floor")
    payload = b'{"event":"bare","session":"' + b"x" * 170 + b'"}'
    took = []
    for _ in range(ROUNDS):
        waiting = asyncio.create_task(pulling.fetch(1, timeout=5))
        await asyncio.sleep(PAUSE_S)  # the fetch is at the server when the clock starts
        begun = time.perf_counter()
        publishing = asyncio.create_task(js.publish("floor.x", payload))
        (message,) = await waiting
        took.append(time.perf_counter() - begun)
        await publishing
        await message.ack()
    await publisher.close()
    await worker.close()
    return summary(took)


async def measure() -> Dispatch:
    """Run a server, an API and a scheduler as processes of their own, and the runner's loop here."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = NatsServer(folder / "nats")
        server.start()
        children = Supervisor(folder)
        port = free_port()
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
            runner = TimedRunner(connection, Nothing(), offer, new_incarnation=lambda: secrets.token_hex(4))
            runner.begin()
            serving = asyncio.create_task(runner.run())
            async with asyncio.timeout(60):
                await runner._ready.wait()
                http = await _connected(port)
            result = await _rounds(server.url, http, runner)
            await http.close()
            runner.stop()
            await serving
            await connection.close()
        finally:
            await children.stop()
            server.close()
    return result


async def _connected(port: int) -> Http:
    http = Http()
    while True:
        try:
            await http.open(port)
            return http
        except OSError:
            await asyncio.sleep(0.1)


async def _rounds(url: str, http: Http, runner: TimedRunner) -> Dispatch:
    created, continued = [], []
    bare = [await floor_half(url, "a")]
    for _ in range(ROUNDS):
        sent, session = await http.post("/api/v1/sessions", {"model": "smollm2", "prompt": "Hello"})
        _, held = await asyncio.wait_for(runner.held.get(), 5)
        created.append(held - sent)
        path = f"/api/v1/sessions/{session['session_id']}"
        await http.idle(path)
        await asyncio.sleep(PAUSE_S)
        sent, _ = await http.post(f"{path}/turns", {"prompt": "And now?"})
        _, held = await asyncio.wait_for(runner.held.get(), 5)
        continued.append(held - sent)
        await http.idle(path)
        await asyncio.sleep(PAUSE_S)
    bare.append(await floor_half(url, "b"))
    # before and after: the machine's speed drifts
    middle = Latency(statistics.mean(b.p50 for b in bare), statistics.mean(b.p99 for b in bare))
    return Dispatch(floor=middle, proceed=summary(continued), create=summary(created))


async def floor_half(url: str, name: str) -> Latency:
    """Measure the floor on a stream of its own, and remove it."""
    result = await floor(url)
    cleaner = await nats.connect(url)
    await cleaner.jetstream().delete_stream("FLOOR")
    await cleaner.close()
    return result


if __name__ == "__main__":
    print(asyncio.run(measure()))
