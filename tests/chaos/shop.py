"""The whole shop: a cluster, two schedulers, two APIs, twenty simulated GPUs, two real runners."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import httpx

from helix_es.jetstream.server import free_port
from tests.chaos.cluster import Cluster
from tests.chaos.plan import COUNT, Kind
from tests.chaos.processes import Process
from tests.chaos.told import SIMULATED, Ending
from tests.chaos.visits import IMAGE, OWNERS, REAL_IMAGE, REAL_TEXT, TEXT
from tests.chaos.waiting import until

HELIX = [sys.executable, "-m", "helix_es.cli.__main__"]
RESERVED = 2
GPUS_EACH = 5  # of a simulated process
READY_S = 180.0
CONFIG = """\
[batch]
reserved = {reserved}
yield_s = 2.0
[sessions]
idle_after_s = 1.0
stuck_s = 20.0
[scheduling]
switch_after_s = 1.0
starve_after_s = 5.0
attempts = 20  # nobody is to be given up for bad luck
[auth.keys]
{keys}
"""
# 25 tokens a second: what sixty readers are sent must leave two cores some time for the rest
SERVICE = ["--first-token-ms", "150", "--tokens-per-s", "25", "--load-ms", "800", "--step-ms", "120"]
LATELY = re.compile(r"scheduler_(active|standby)")


def api_key(owner: str) -> str:
    """Return the API key of an owner."""
    return f"chaos-{owner}"


def headers(owner: str) -> dict[str, str]:
    """Return the headers of an owner's requests."""
    return {"Authorization": f"Bearer {api_key(owner)}"}


class Shop:
    """All processes, by kind; `start`, and `kill` in the end whatever happens."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        for old in self.logs.glob("*.log"):
            old.unlink()
        data = folder / "data"
        data.mkdir(exist_ok=True)
        self.cluster = Cluster(data, self.logs)
        self._config = folder / "helix.toml"
        keys = [f'"{hashlib.sha256(api_key(owner).encode()).hexdigest()}" = "{owner}"' for owner in OWNERS]
        self._config.write_text(CONFIG.format(reserved=RESERVED, keys="\n".join(keys)))
        ports = [free_port() for _ in range(COUNT["api"])]
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.processes: dict[Kind, list[Process]] = {
            "nats": self.cluster.nodes,
            "scheduler": [
                self._helix(f"scheduler-{n}", "scheduler", "--replicas", "3")
                for n in range(COUNT["scheduler"])
            ],
            "api": [self._helix(f"api-{n}", "api", "--port", str(port)) for n, port in enumerate(ports)],
            "simulated": [self._simulated(n, seed) for n in range(COUNT["simulated"])],
            "real": self._real(),
        }

    def _helix(self, name: str, *words: str) -> Process:
        command = [*HELIX, *words, "--nats", self.cluster.url, "--config", str(self._config)]
        return Process(name, command, self.logs, {"NO_COLOR": "1"})

    def _simulated(self, n: int, seed: int) -> Process:
        words = ["runner", "simulated", "--model", TEXT, "--model", IMAGE, "--kind", "a100-80"]
        words += ["--count", str(GPUS_EACH), "--slots", "4", "--gpu-prefix", f"{SIMULATED}{n}"]
        words += [*SERVICE, "--checkpoint-every", "5", "--fail-rate", "0.01", "--seed", str(seed * 10 + n)]
        # one of the four can do no batch work: its GPUs are never reserved
        batch = ["--batch"] if n < COUNT["simulated"] - 1 else []
        return self._helix(f"simulated-{n}", *words, *batch)

    def _real(self) -> list[Process]:
        each = ["--slots", "4", "--threads", "1", "--device", "cpu"]
        one = ["runner", "text", "--model", REAL_TEXT, "--gpu", "real-0"]
        other = ["runner", "any", "--serve", f"text:{REAL_TEXT}", "--serve", f"image:{REAL_IMAGE}"]
        return [
            self._helix("real-0", *one, *each),
            self._helix("real-1", *other, "--gpu", "real-1", *each),
        ]

    @property
    def all(self) -> list[Process]:
        """Every process."""
        return [process for processes in self.processes.values() for process in processes]

    @property
    def endings(self) -> list[Ending]:
        """Ends that we had no part in, in the order of time."""
        return sorted((each for process in self.all for each in process.endings), key=lambda end: end.at_ms)

    async def start(self) -> None:
        """Start everything; return when all GPUs are ready."""
        await self.cluster.start()
        for process in self.processes["scheduler"]:
            await process.start()
        if not await self.cluster.wait_healthy():
            raise TimeoutError("the schedulers made no streams; see their logs")
        for kind in ("api", "simulated", "real"):
            for process in self.processes[kind]:
                await process.start()
        if not await until(self.ready, READY_S):
            raise TimeoutError("not every GPU is ready; see the logs")

    async def ready(self) -> bool:
        """Whether every GPU is there and ready, as both APIs see it."""
        wanted = COUNT["simulated"] * GPUS_EACH + COUNT["real"]
        try:
            async with httpx.AsyncClient(timeout=5, trust_env=False, headers=headers("ann")) as http:
                for url in self.urls:
                    gpus = (await http.get(f"{url}/api/v1/gpus")).json()["data"]
                    if sum(gpu["state"] == "ready" for gpu in gpus) < wanted:
                        return False
        except (httpx.HTTPError, KeyError, ValueError):
            return False
        return True

    def active_scheduler(self) -> Process | None:
        """Return the scheduler that acts, by what it said of itself last."""
        for process in self.processes["scheduler"]:
            said = LATELY.findall(process.said()) if process.up else []
            if said and said[-1] == "active":
                return process
        return None

    async def kill(self) -> None:
        """End all of it, now."""
        for process in self.all:
            await process.kill()
