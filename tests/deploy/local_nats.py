"""Real nats-servers on loopback, started from the shipped configuration with freshly made users."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import nats
from nats.aio.client import Client

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
NATS_SERVER = Path(sys.executable).parent / "nats-server"
START_S = 20.0
Get = Callable[[str], dict[str, Any]]


def make_users(out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEPLOY / "nats/make-users.py"), "--out", str(out), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def config_folder(folder: Path, *flags: str) -> Path:
    """Copy the shipped configuration to `folder` and make users there; `flags` go to make-users.py."""
    for file in (DEPLOY / "nats").glob("*.conf"):
        if file.name != "users.conf":
            shutil.copy(file, folder)
    made = make_users(folder, *flags)
    assert made.returncode == 0, made.stderr
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A nats-server process; `url` and `monitor` are known once `start` has returned."""

    folder: Path
    args: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] = field(init=False)
    url: str = ""
    monitor: str = ""

    def start(self) -> None:
        ports = self.folder / "ports"
        ports.mkdir(exist_ok=True)
        command = [str(NATS_SERVER), *self.args, "--ports_file_dir", str(ports), "-l", str(self.log)]
        self.process = subprocess.Popen(command, cwd=self.folder, env={**os.environ, **self.env})
        # The file's name carries the process id: whatever it says is about this very server.
        written = ports / f"nats-server_{self.process.pid}.ports"
        self.until(lambda: written.exists() and written.read_text().endswith("}"))
        found = json.loads(written.read_text())
        self.url, self.monitor = found["nats"][0], found["monitoring"][0]

    @property
    def log(self) -> Path:
        return self.folder / "nats.log"

    def until(self, holds: Callable[[], bool], deadline_s: float = START_S) -> None:
        """Return when `holds()` does; fail when the server ends first or at the deadline."""
        end = time.monotonic() + deadline_s
        while not holds():
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=0.02)
            assert self.process.poll() is None, f"nats-server ended: {self.log.read_text()}"
            assert time.monotonic() < end, f"not within {deadline_s} s: {self.log.read_text()}"

    def get(self, path: str) -> dict[str, Any]:
        """The monitoring endpoint's answer, or {} while there is none."""
        try:
            with urlopen(self.monitor + path, timeout=2) as answer:
                return dict(json.load(answer))
        except (URLError, TimeoutError, ConnectionError):
            return {}

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=10)


@dataclass
class User:
    """A connection as one of the made users, with what the broker refused it."""

    nc: Client
    refusals: list[str]

    async def settle(self) -> None:
        """Return when all that was sent is answered. Twice: nats-py's ping overtakes what it buffers."""
        await self.nc.flush(timeout=5)
        await self.nc.flush(timeout=5)

    async def refused(self, subject: str, body: bytes = b"{}") -> bool:
        """Publish plainly to `subject`; return whether the broker refused."""
        before = len(self.refusals)
        await self.nc.publish(subject, body)
        await self.settle()
        return len(self.refusals) > before

    async def refused_reading(self, subject: str) -> bool:
        """Subscribe to `subject`; return whether the broker refused."""
        before = len(self.refusals)
        subscription = await self.nc.subscribe(subject)
        await self.settle()
        with suppress(nats.errors.BadSubscriptionError):
            await subscription.unsubscribe()
        return len(self.refusals) > before

    async def call(self, subject: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask the JetStream API; return its answer without judging it."""
        answer = await self.nc.request(subject, json.dumps(body or {}).encode(), timeout=5)
        return dict(json.loads(answer.data))


async def connect(url: str, folder: Path, user: str, **options: Any) -> User:
    refusals: list[str] = []

    async def note(error: Exception) -> None:
        refusals.append(str(error))

    nc = await asyncio.wait_for(
        nats.connect(
            url,
            nkeys_seed=str(folder / "secrets" / f"{user}.nk"),
            inbox_prefix=f"_INBOX_{user}".encode(),
            error_cb=note,
            allow_reconnect=False,
            **options,
        ),
        timeout=10,
    )
    return User(nc, refusals)
