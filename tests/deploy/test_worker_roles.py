"""HTTP-only workers on the shipped broker with users and permissions: the API may do what it does for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.deploy.local_nats import Server, config_folder
from tests.deploy.test_roles import served
from tests.e2e.shop import HELIX, Client
from tests.e2e.worker import Hand

from helix_es.jetstream.server import free_port
from helix_es.processes import Child, Supervisor

pytestmark = pytest.mark.anyio


async def test_nothing_that_a_worker_needs_is_denied_to_the_api(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, "--http-workers")
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
        await worked(f"http://127.0.0.1:{port}")
    finally:
        await children.stop()
        server.stop()
    said = server.log.read_text() + "".join(
        (tmp_path / f"{role}.log").read_text() for role in ("scheduler", "api")
    )
    assert "violation" not in said.lower(), said[-3000:]


async def worked(url: str) -> None:
    """Do all that a worker can do."""
    hand = Hand(url, "w1")
    async with Client(url) as client:
        polling = asyncio.create_task(hand.task())
        sid = (await client.open("Hello", model="mistral"))["session_id"]
        task = await polling
        await hand.accepted(task, "delta", text="Hel", step=1, steps=2)
        assert (await hand.task())["task_id"] == task["task_id"]
        await hand.accepted(task, "delta", text="Hello")
        answer = await hand.http.post(f"/task/{task['task_id']}/files", files={"file": ("a.txt", b"x")})
        assert answer.status_code == 201, answer.text
        await hand.accepted(task, "complete", files=[answer.json()["file_id"]])
        assert (await client.answer(sid))["output"] == "Hello"
        polling = asyncio.create_task(hand.task())
        await client.say(sid, "More")
        await hand.accepted(await polling, "fail", message="enough")
        (gpu,) = (await client.http.get("/gpus")).json()["data"]
        assert gpu["heartbeat_at"]
        assert (await hand.http.delete("/w1")).status_code == 204
    await hand.close()
