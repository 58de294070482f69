"""A 64 MiB dataset through the API, beside the API's resident memory."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

import httpx
import msgspec
import psutil

from helix_es.jetstream.server import free_port
from helix_es.processes import Child, Supervisor
from tests.conftest import NatsServer
from tests.e2e.shop import HELIX

MIB = 1 << 20
SIZE = 64 * MIB
LOOK_S = 0.01


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """What one upload took."""

    seconds: float
    before_mib: float
    peak_mib: float
    sha256: str

    @property
    def grown_mib(self) -> float:
        """How much resident memory the API took for it at most."""
        return self.peak_mib - self.before_mib


def write_dataset(path: Path, size: int) -> None:
    """Write a dataset of at least `size` bytes."""
    line = json.dumps(
        {
            "messages": [
                {"role": "user", "content": "Hello? " * 40},
                {"role": "assistant", "content": "Yes. " * 60},
            ]
        }
    )
    with path.open("w") as out:
        for _ in range(size // (len(line) + 1) + 1):
            out.write(line + "\n")


async def measure(size: int = SIZE) -> Upload:
    """Start a server, a scheduler and an API, upload once small and once large."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server, children, port = NatsServer(folder / "nats"), Supervisor(folder), free_port()
        server.start()
        try:
            for child in ("scheduler", "api"):
                more = ["--port", str(port)] if child == "api" else []
                await children.start(Child(child, [*HELIX, child, "--nats", server.url, *more]))
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=120) as client:
                await _answering(client)
                await _send(client, folder, MIB)  # what is imported and allocated once
                pid = json.loads((folder / "pids.json").read_text())["api"]
                return await _watched(client, folder, size, psutil.Process(pid))
        finally:
            await children.stop()
            server.close()


async def _answering(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                (await client.get("/files")).raise_for_status()
                return
            except httpx.HTTPError:
                await asyncio.sleep(0.1)


async def _send(client: httpx.AsyncClient, folder: Path, size: int) -> str:
    path = folder / "data.jsonl"
    write_dataset(path, size)
    with path.open("rb") as file:
        answer = await client.post("/files", files={"file": ("data.jsonl", file)})
    answer.raise_for_status()
    return str(answer.json()["sha256"])


async def _watched(client: httpx.AsyncClient, folder: Path, size: int, api: psutil.Process) -> Upload:
    before = peak = api.memory_info().rss
    begun = time.perf_counter()
    sending = asyncio.create_task(_send(client, folder, size))
    while not sending.done():
        peak = max(peak, api.memory_info().rss)
        await asyncio.wait({sending}, timeout=LOOK_S)
    seconds = time.perf_counter() - begun
    return Upload(seconds=seconds, before_mib=before / MIB, peak_mib=peak / MIB, sha256=await sending)


if __name__ == "__main__":
    print(asyncio.run(measure()))
