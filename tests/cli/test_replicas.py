"""What `helix doctor` says of a broker of three nodes, from recorded answers and on a real loopback cluster."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helix_es.cli.broker import broker
from helix_es.cli.checks import Check
from helix_es.cli.replicas import cluster
from helix_es.core.errors import HelixError
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.headers import stamp_ms
from helix_es.jetstream.server import binary, free_port
from helix_es.jetstream.streams import provision

SINCE_MS = stamp_ms("2026-11-22T10:00:00Z")
SECOND_NS = 1_000_000_000
CONFIG = """\
server_name: n{index}
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{folder}/n{index}" }}
cluster {{ name: helix, listen: "127.0.0.1:{route}", routes: [{routes}] }}
"""


def info(
    *replicas: dict[str, Any], leader: str | None = "n0", since: str = "2026-11-22T09:00:00.1Z"
) -> dict[str, Any]:
    told: dict[str, Any] = {"name": "helix", "replicas": list(replicas)}
    if leader is not None:
        told |= {"leader": leader, "leader_since": since}
    return {"config": {"num_replicas": 3}, "created": "2026-11-22T09:00:00Z", "cluster": told}


def copy(name: str, *, current: bool = True, active_s: float = 0.3, **others: Any) -> dict[str, Any]:
    return {"name": name, "current": current, "active": int(active_s * SECOND_NS), "peer": "p", **others}


def test_a_single_server_is_said_to_be_one() -> None:
    single = {"config": {"num_replicas": 1}, "cluster": {"leader": "helix-4222"}}
    assert cluster({"LOG": single}, SINCE_MS).status == "ok"
    assert cluster({}, SINCE_MS).status == "ok"


def test_three_current_copies_are_well() -> None:
    found = cluster({"LOG": info(copy("n1"), copy("n2"))}, SINCE_MS)
    assert (found.status, found.found) == ("ok", "3 nodes, all copies current")


@pytest.mark.parametrize(
    "gone",
    [
        copy("n2", current=False, active_s=0),  # as the server says it after an election
        copy("n2", active_s=6.1),  # as it says it six seconds after a kill -9
        copy("n2", current=False, active_s=10.2, lag=7),
        copy("n2", offline=True),
    ],
)
def test_a_missing_node_is_named_with_its_streams(gone: dict[str, Any]) -> None:
    infos = {
        "LOG": info(copy("n1"), gone),
        "TASKS": info(copy("n1"), gone),
        "BEATS": info(copy("n1"), copy("n2")),
    }
    found = cluster(infos, SINCE_MS)
    assert (found.status, found.found) == ("warn", "missing: n2 (LOG, TASKS)")


@pytest.mark.parametrize("late", [copy("n2", current=False, lag=5000), copy("n2", lag=5000)])
def test_a_lagging_copy_is_named(late: dict[str, Any]) -> None:
    found = cluster({"LOG": info(copy("n1"), late)}, SINCE_MS)
    assert (found.status, found.found) == ("warn", "lagging: n2 (LOG by 5000)")


def test_without_a_leader_there_is_no_quorum() -> None:
    others = [copy("n1", current=False, active_s=0), copy("n2", current=False, active_s=0)]
    found = cluster({"LOG": info(copy("n0", active_s=5.4), *others, leader=None)}, SINCE_MS)
    assert found.status == "fail"
    assert found.found.startswith(
        "no leader, hence no quorum, for LOG; missing: n0 (LOG), n1 (LOG), n2 (LOG)"
    )


def test_a_leader_that_was_lost_lately_is_history() -> None:
    found = cluster({"LOG": info(copy("n1"), copy("n2"), since="2026-11-22T10:30:05.5Z")}, SINCE_MS)
    assert (found.status, found.found) == (
        "warn",
        "a leader was lost: n0 leads LOG since 10:30:05Z; all copies are current",
    )
    long_ago = cluster({"LOG": info(copy("n1"), copy("n2"), since="2026-11-22T09:30:05.5Z")}, SINCE_MS)
    assert long_ago.status == "ok"


class Nodes:
    """Three nodes on loopback."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        ports, routes = [free_port() for _ in range(3)], [free_port() for _ in range(3)]
        self.url = f"nats://127.0.0.1:{ports[0]}"
        self.processes: list[subprocess.Popen[bytes]] = []
        others = ", ".join(f'"nats://127.0.0.1:{route}"' for route in routes)
        for index in range(3):
            config = folder / f"n{index}.conf"
            config.write_text(
                CONFIG.format(
                    index=index, port=ports[index], route=routes[index], routes=others, folder=folder
                )
            )
            log = stack.enter_context((folder / f"n{index}.log").open("wb"))
            self.processes.append(subprocess.Popen([binary(), "-c", str(config)], stderr=log))

    def kill(self, index: int) -> None:
        self.processes[index].kill()
        self.processes[index].wait()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with ExitStack() as stack:
        made = Nodes(tmp_path, stack)
        try:
            yield made
        finally:
            for index in range(3):
                made.kill(index)


async def connected(nodes: Nodes) -> Connection:
    return await connect(NatsSettings(url=nodes.url, name="test", connect_timeout_s=2))


async def provisioned(nodes: Nodes) -> None:
    while True:
        try:
            connection = await connected(nodes)
        except HelixError:
            await asyncio.sleep(0.05)  # polls a port, with the deadline of the caller
            continue
        try:
            # asked before there is a meta leader, a request is never answered: do not wait for it
            await connection.request("$JS.API.STREAM.NAMES", b"", timeout=0.5)
            await provision(connection, replicas=3)
            return
        except HelixError:
            continue
        finally:
            await connection.close()


async def until(nodes: Nodes, status: str) -> Check:
    """Ask until the check has that status; the caller's deadline holds."""
    connection = await connected(nodes)
    try:
        while True:
            infos = {}
            with suppress(HelixError):
                for name in ("LOG", "BEATS", "TASKS"):
                    answer = await connection.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=0.5)
                    infos[name] = msgspec.json.decode(answer)
                found = cluster(infos, SINCE_MS)
                if found.status == status:
                    return found
            await asyncio.sleep(0.1)
    finally:
        await connection.close()


def test_a_killed_node_is_missing_and_two_are_no_quorum(nodes: Nodes) -> None:
    async def work() -> None:
        async with asyncio.timeout(60):
            await provisioned(nodes)
            assert (await until(nodes, "ok")).found == "3 nodes, all copies current"
            nodes.kill(2)
            missing = await until(nodes, "warn")
            assert missing.found.startswith("missing: n2 (")
            nodes.kill(1)
            broken = await until(nodes, "fail")
            assert "no quorum" in broken.found
            told: dict[str, str] = {}
            while told.get("storage") != "fail":  # a node may answer from before it knew
                found = await broker(nodes.url, lambda: connected(nodes))
                told = {check.check: check.status for check in found}
            assert told["cluster"] == "fail"

    asyncio.run(work())
