"""Workers over HTTP as tests need them: one that does each step by hand, and a shop that only such workers serve."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx

from helix_es.core import events as e
from helix_es.jetstream.server import free_port
from tests.e2e.shop import HELIX, Client, Shop, facts

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "deploy" / "worker" / "helix_worker.py"
LEASE_S = 3


class Hand:
    """A worker whose every step a test takes itself."""

    def __init__(self, url: str, name: str, key: str = "", **query: Any) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.AsyncClient(base_url=f"{url}/api/v1/worker", headers=headers, timeout=70)
        self.name = name
        self.query: dict[str, Any] = {
            "mode": "Create",
            "type": "Text",
            "model_name": "mistralai/Mistral-7B-Instruct-v0.1",
            "worker": name,
            "wait_s": 10,
            "lease_s": LEASE_S,
            **query,
        }

    async def ask(self, **query: Any) -> httpx.Response:
        return await self.http.get("/task", params={**self.query, **query})

    async def task(self, **query: Any) -> dict[str, Any]:
        """Wait for a task."""
        answer = await self.ask(**query)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return dict(answer.json())

    async def nothing(self, wait_s: float = 0.4, **query: Any) -> None:
        """Be on the floor, and get no task."""
        answer = await self.ask(wait_s=wait_s, **query)
        assert answer.status_code == 204, answer.text

    async def say(self, task: dict[str, Any], verb: str, **body: Any) -> httpx.Response:
        return await self.http.post(f"/task/{task['task_id']}/{verb}", json=body)

    async def accepted(self, task: dict[str, Any], verb: str, **body: Any) -> dict[str, Any]:
        answer = await self.say(task, verb, **body)
        assert answer.status_code == 202, (answer.status_code, answer.text)
        return dict(answer.json())

    async def close(self) -> None:
        await self.http.aclose()


class Place:
    """A shop in which tests come and go: what they opened is closed behind them."""

    def __init__(self, shop: Shop, client: Client) -> None:
        self.shop = shop
        self.client = client
        self._hands: list[Hand] = []
        self._sessions: list[str] = []

    def hand(self, name: str, url: str = "", **query: Any) -> Hand:
        made = Hand(url or self.shop.url, name, **query)
        self._hands.append(made)
        return made

    async def open(self, prompt: str = "Hello", **more: Any) -> str:
        session = await self.client.open(prompt, **{"model": "mistral", **more})
        self._sessions.append(session["session_id"])
        return str(session["session_id"])

    async def turn(self, sid: str, turn: int = 1) -> dict[str, Any]:
        return dict((await self.client.session(sid))["turns"][turn - 1])

    async def gpus(self) -> dict[str, dict[str, Any]]:
        rows = (await self.client.http.get("/gpus")).raise_for_status().json()["data"]
        return {row["gpu"]: row for row in rows}

    async def seq(self) -> int:
        """How far the log is."""
        async with httpx.AsyncClient() as http:
            return int((await http.get(f"{self.shop.url}/readyz")).json()["seq"])

    async def facts(self, subject_filter: str) -> list[e.AnyEvent | None]:
        return [record.event for record in await facts(self.shop.nats_url, subject_filter)]

    async def until(self, good: Any, what: str, seconds: float = 20) -> None:
        """Poll `good`, with a deadline."""
        async with asyncio.timeout(seconds):
            while not await good():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def started(self, sid: str, turn: int = 1, attempt: int = 1) -> None:
        """Wait until that attempt runs."""

        async def runs() -> bool:
            found = await self.turn(sid, turn)
            return found["state"] == "running" and found["attempt"] == attempt

        await self.until(runs, "a running turn")

    async def leave(self) -> None:
        for sid in self._sessions:
            await self.client.http.delete(f"/sessions/{sid}")
        for hand in self._hands:
            await self.client.http.delete(f"/worker/{hand.name}")
            await hand.close()

        async def empty() -> bool:
            return not await self.gpus()

        await self.until(empty, "an empty floor")


@contextmanager
def open_shop(folder: Path, config: str = "[sessions]\nidle_after_s = 0.2\n") -> Iterator[Shop]:
    """Run a shop without runners of its own."""
    running = Shop(folder, runners="", config=config)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@asynccontextmanager
async def place(shop: Shop) -> AsyncIterator[Place]:
    async with Client(shop.url) as client:
        made = Place(shop, client)
        try:
            yield made
        finally:
            await made.leave()


@asynccontextmanager
async def another_api(shop: Shop) -> AsyncIterator[str]:
    """Run a second replica of the API and give its address."""
    port = free_port()
    process = child(shop, "api-2", [*HELIX, "api", "--nats", shop.nats_url, "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        await ready(url)
        yield url
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 20)


def child(
    shop: Shop, name: str, command: list[str], env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process whose words stand in `<name>.log` of the shop; a group of its own."""
    with (shop.folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def ready(url: str) -> None:
    """Wait until an API serves."""
    async with asyncio.timeout(30), httpx.AsyncClient() as http:
        while True:
            try:
                if (await http.get(f"{url}/readyz")).status_code == 200:
                    return
            except httpx.HTTPError:
                await asyncio.sleep(0.05)


def client_process(shop: Shop, name: str, script: str, **query: Any) -> subprocess.Popen[bytes]:
    """Start the shipped client with a `do_inference` of its own, as a container would."""
    asked = {"mode": "Create", "type": "Text", "model_name": "mistral", "lease_s": LEASE_S, **query}
    url = f"{shop.url}/api/v1/worker/task?" + "&".join(f"{key}={value}" for key, value in asked.items())
    command = [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(CLIENT.parent)!r})\n{script}"]
    return child(shop, name, command, {"HELIX_GET_JOB_URL": url, "HELIX_WORKER": name})
