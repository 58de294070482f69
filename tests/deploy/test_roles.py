"""The real scheduler, API and runner loop, each as its own user of the shipped broker: nothing is denied."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from pathlib import Path

import httpx
import pytest
from tests.bench.dispatch import Nothing
from tests.deploy.local_nats import Server, config_folder
from tests.e2e.shop import HELIX, Client

from helix_es.core.events import GpuId, Workload
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.server import free_port
from helix_es.processes import Child, Supervisor
from helix_es.settings import Settings
from helix_runners.devices import cpu
from helix_runners.loop import Offer, Runner

pytestmark = pytest.mark.anyio


async def test_each_role_has_what_it_needs_and_no_more(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, "--gpu", "box-0", "--model", "text/smollm2")
    server = Server(
        folder, ("-c", "single.conf", "-p", "-1", "-m", "-1"), {"STORE_DIR": str(folder / "data")}
    )
    children = Supervisor(tmp_path)
    port = free_port()
    try:
        server.start()
        for role in ("scheduler", "api"):
            env = {
                "HELIX_NATS_URL": server.url,
                "HELIX_NATS_USER": role,
                "HELIX_NATS_SEED_FILE": str(folder / "secrets" / f"{role}.nk"),
            }
            more = ["--port", str(port)] if role == "api" else []
            await children.start(Child(role, [*HELIX, role, *more], env))
        await served(port)
        user = "runner-box-0"
        connection = await connect(
            NatsSettings(
                url=server.url,
                nkey_seed_file=str(folder / "secrets" / f"{user}.nk"),
                inbox_prefix=f"_INBOX_{user}",
            )
        )
        models = {"smollm2": Settings().models["smollm2"]}
        workloads = [Workload("create", "text", "smollm2")]
        offer = Offer(
            gpu=GpuId("box-0"), device=cpu(), workloads=workloads, models=models, slots={"smollm2": 2}
        )
        runner = Runner(connection, Nothing(), offer, new_incarnation=lambda: secrets.token_hex(4))
        serving = asyncio.create_task(runner.run())
        async with Client(f"http://127.0.0.1:{port}") as client:
            sid = (await client.open("Hello"))["session_id"]
            assert (await client.answer(sid))["output"] == "done"
            await client.say(sid, "More")
            assert (await client.answer(sid, 2))["output"] == "done"
            (gpu,) = (await client.http.get("/gpus")).json()["data"]
            assert gpu["heartbeat_at"]
            assert (await client.http.delete(f"/sessions/{sid}")).status_code == 204
        runner.stop()
        await asyncio.wait_for(serving, 20)
        await connection.close()
        for words in (["analytics", "--once", "--data-dir", str(tmp_path)], ["replay", "--verify"]):
            said = await asyncio.to_thread(observed, server.url, folder, words)
            assert "iolation" not in said, said
    finally:
        await children.stop()
        server.stop()
    said = server.log.read_text() + "".join(
        (tmp_path / f"{role}.log").read_text() for role in ("scheduler", "api")
    )
    assert "Violation" not in said, said[-3000:]
    assert "violation" not in said, said[-3000:]


def observed(url: str, folder: Path, words: list[str]) -> str:
    """Return what a command says that connects as the observer; it must succeed."""
    env = {
        **os.environ,
        "HELIX_NATS_URL": url,
        "HELIX_NATS_USER": "observer",
        "HELIX_NATS_SEED_FILE": str(folder / "secrets" / "observer.nk"),
    }
    done = subprocess.run([*HELIX, *words], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


async def served(port: int) -> None:
    """Wait until the API is ready."""
    async with asyncio.timeout(30), httpx.AsyncClient() as http:
        while True:
            try:
                if (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                    return
            except httpx.HTTPError:
                await asyncio.sleep(0.1)
