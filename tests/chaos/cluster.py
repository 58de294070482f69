"""Three nats-servers on loopback, replicating everything, whose acknowledged facts are on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from helix_es.jetstream.server import binary, free_port
from tests.chaos.plan import COUNT
from tests.chaos.processes import Process
from tests.chaos.waiting import until

CONFIG = """\
server_name: "{name}"
listen: "127.0.0.1:{client}"
http: "127.0.0.1:{monitor}"
max_payload: 1MB
jetstream {{
  store_dir: "{folder}/{name}"
  sync_interval: always  # acknowledged means on disk, on a majority of the nodes
}}
cluster {{
  name: chaos
  listen: "127.0.0.1:{route}"
  routes: [{routes}]
}}
"""
NODES = COUNT["nats"]
STREAMS = 5
HEALTHY_S = 60.0


class Cluster:
    """The broker."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self._folder = folder
        ports = [[free_port() for _ in range(3)] for _ in range(NODES)]
        self._routes = ", ".join(f'"nats://127.0.0.1:{route}"' for _, _, route in ports)
        self.url = ",".join(f"nats://127.0.0.1:{client}" for client, _, _ in ports)
        self.nodes = [self._node(index, numbers, logs) for index, numbers in enumerate(ports)]
        self._monitors = [f"http://127.0.0.1:{monitor}" for _, monitor, _ in ports]

    def _node(self, index: int, ports: list[int], logs: Path) -> Process:
        name = f"nats-{index}"
        config = self._folder / f"{name}.conf"
        client, monitor, route = ports
        config.write_text(
            CONFIG.format(
                name=name,
                client=client,
                monitor=monitor,
                route=route,
                routes=self._routes,
                folder=self._folder,
            )
        )
        return Process(name, [binary(), "-c", str(config)], logs, {})

    async def start(self) -> None:
        """Start the nodes and wait until they have chosen a leader."""
        for node in self.nodes:
            await node.start()
        if not await until(self._led, HEALTHY_S):
            raise TimeoutError("the cluster chose no leader; see the logs of its nodes")

    async def _led(self) -> bool:
        answers = [await self._ask(url, "/jsz") for url in self._monitors]
        return all(each.get("meta_cluster", {}).get("leader") for each in answers)

    async def leader(self, stream: str = "LOG") -> str | None:
        """Return the node that leads a stream, or None if there is none now."""
        return (await self._leaders()).get(stream, (None, False))[0]

    async def healthy(self) -> bool:
        """Whether every stream has a leader, and every replica all of it."""
        leaders = await self._leaders()
        return len(leaders) >= STREAMS and all(whole for _, whole in leaders.values())

    async def wait_healthy(self, seconds: float = HEALTHY_S) -> bool:
        """Wait until the cluster is whole; False if it takes longer."""
        return await until(self.healthy, seconds)

    async def _leaders(self) -> dict[str, tuple[str, bool]]:
        """Return the leader of each stream by its own word, and whether its followers are current."""
        found: dict[str, tuple[str, bool]] = {}
        for node, url in zip(self.nodes, self._monitors, strict=True):
            answer = await self._ask(url, "/jsz?streams=1") if node.up else {}
            for account in answer.get("account_details", []):
                for stream in account.get("stream_detail", []):
                    cluster = stream.get("cluster", {})
                    replicas = cluster.get("replicas") or []
                    if cluster.get("leader") == node.name:
                        current = [each.get("current") and not each.get("offline") for each in replicas]
                        found[stream["name"]] = (node.name, len(current) == NODES - 1 and all(current))
        return found

    @staticmethod
    async def _ask(url: str, path: str) -> dict[str, Any]:
        """Return a monitoring answer, {} while there is none."""
        try:
            async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
                return dict((await http.get(url + path)).json())
        except (httpx.HTTPError, ValueError):
            return {}
