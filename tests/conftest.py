"""Real parts for every test: a nats-server of its own on a free port, killed at the end."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.server import command, free_port, write_config
from helix_es.jetstream.streams import provision
from tests import examples

examples.load()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class NatsServer:
    """A nats-server child that can be killed and started again on the same port and data."""

    def __init__(self, folder: Path, *, sync_interval: str = "always") -> None:
        self.port = free_port()
        self.config = write_config(folder, self.port, sync_interval=sync_interval)
        self.log = (folder / "server.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(command(self.config), stderr=self.log, stdout=self.log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "nats-server ended at once"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)  # polls a port, with a deadline
        raise AssertionError("nats-server did not listen")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        self.kill()
        self.log.close()


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    server.start()
    yield server
    server.close()


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    made = await connect(NatsSettings(url=nats_server.url, name="test"))
    await provision(made)
    yield made
    await asyncio.wait_for(made.close(), 10)
