"""Ray Serve's side: a deployment of replicas that do nothing, called by its Python handle and over HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from pathlib import Path

from tests.bench.peers import loopback
from tests.bench.peers.killing import WORK_S, kill_one, mark
from tests.bench.peers.load import Loop, drive, measure, say
from tests.bench.peers.wire import Wire

os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_METRICS_COLLECTION="0")
loopback.bring_up()  # before Ray looks for an address of its own

import ray  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.handle import DeploymentHandle  # noqa: E402
from starlette.requests import Request  # noqa: E402

APP, DEPLOYMENT = "bench", "Idle"
OBJECT_STORE_BYTES = 100 * 2**20
AT_ONCE = 128  # above the 64 clients; Ray's default of 5 a replica would make them queue
READY_S = 60.0
WARM = Loop(concurrent=8, tasks=200)  # so that every router knows every replica before one is killed


class Idle:
    """A replica."""

    def __init__(self, marks: str) -> None:
        self._marks = Path(marks)

    async def __call__(self, request: Request) -> str:
        """Over HTTP: the body names the work."""
        return await self.work((await request.body()).decode())

    async def work(self, task: str) -> str:
        """Return at once; a named task first notes that it began, and takes WORK_S."""
        if task:
            mark(self._marks, task)
            await asyncio.sleep(WORK_S)
        return "done"


def start(folder: Path) -> int:
    """Start Ray and Serve's proxy; return the port of the proxy."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder / "ray"),
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    return port


def deploy(replicas: int, marks: Path) -> DeploymentHandle[Idle]:
    """Have that many fresh replicas, and return the handle.

    Fresh, since the controller counts a killed replica as running until its next health check: a second kill would
    hit the only one that still lives.
    """
    if APP in serve.status().applications:
        serve.delete(APP)
    made = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=replicas,
        max_ongoing_requests=AT_ONCE,
        ray_actor_options={"num_cpus": 0.1},
    )(Idle)
    handle = serve.run(made.bind(str(marks)), name=APP, route_prefix="/")
    until_running(replicas)
    return handle


def until_running(replicas: int) -> None:
    """Wait until all of them run. Raises TimeoutError."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        states = serve.status().applications[APP].deployments[DEPLOYMENT].replica_states
        if states == {"RUNNING": replicas}:
            return
        time.sleep(0.1)
    raise TimeoutError(f"not {replicas} running replicas within {READY_S} s")


class Clients:
    """The same task, by handle or over HTTP."""

    def __init__(self, handle: DeploymentHandle[Idle], port: int) -> None:
        self._handle = handle
        self._port = port
        self._wires: dict[int, Wire] = {}

    async def by_handle(self, _client: int) -> None:
        await self._handle.work.remote("")

    async def over_http(self, client: int) -> None:
        await self._wires.setdefault(client, Wire(self._port)).post("/", b"", 200)

    async def slow_by_handle(self, task: str) -> None:
        await self._handle.work.remote(task)

    async def slow_over_http(self, task: str) -> None:
        wire = Wire(self._port)
        try:
            await wire.post("/", task.encode(), 200)
        finally:
            wire.close()


async def run(folder: Path) -> None:
    """Everything that is measured, in one life of Ray: starting it takes longer than any of it."""
    port, marks = await asyncio.to_thread(start, folder), folder / "marks"
    clients = Clients(await asyncio.to_thread(deploy, 1, marks), port)
    await measure("handle", clients.by_handle)
    await measure("HTTP", clients.over_http)
    clients = Clients(await asyncio.to_thread(deploy, 2, marks), port)
    await drive(clients.by_handle, WARM)
    await kill_one("handle, one of two", clients.slow_by_handle, marks)
    clients = Clients(await asyncio.to_thread(deploy, 2, marks), port)
    await drive(clients.over_http, WARM)
    await kill_one("HTTP, one of two", clients.slow_over_http, marks)
    clients = Clients(await asyncio.to_thread(deploy, 1, marks), port)
    await drive(clients.over_http, WARM)
    await kill_one("HTTP, the only one", clients.slow_over_http, marks)


def main() -> None:
    """Measure and end Ray."""
    say(measured="version", version=ray.__version__)
    try:
        asyncio.run(run(Path(sys.argv[1])))
    finally:
        ray.shutdown()  # not Serve's, which waits for up to 30 s for a controller that ends with Ray anyway


if __name__ == "__main__":
    main()
