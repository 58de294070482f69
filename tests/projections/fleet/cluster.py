"""A fake of the cluster's API on loopback: one Deployment, its pods, a token, and failures on order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

COST = "controller.kubernetes.io/pod-deletion-cost"
TOKEN = "s3cret"
SCALE = "/apis/apps/v1/namespaces/gpus/deployments/burst/scale"
PODS = "/api/v1/namespaces/gpus/pods"
MERGE = "application/merge-patch+json"


class Cluster:
    """Takes pods away in the order in which a ReplicaSet does: the lowest deletion cost first."""

    def __init__(self) -> None:
        self.replicas = 0
        self.version = 1
        self.pods: dict[str, dict[str, str]] = {}
        """name -> annotations"""
        self.ending: set[str] = set()
        """Pods that are being deleted and still listed."""
        self.asked: list[tuple[str, str, str]] = []
        """method, path with query, body"""
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.port = 0

    def has(self, *names: str) -> None:
        """Let it have these pods, and be scaled to so many."""
        self.replicas = len(names)
        self.pods = {name: {} for name in names}

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        return [each for each in self.asked if each[0] != "GET"]

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> Path:
        """Write the configuration of a client that may speak to it."""
        file = folder / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "fake", "user": "fleet"}}],
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "fleet", "user": {"token": token}}],
        }
        file.write_text(json.dumps(content))
        return file

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.text()
        self.asked.append((request.method, request.path_qs, body))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return refused(401, "Unauthorized")
        if self.failures:
            status, headers = self.failures.pop(0)
            return refused(status, "not now", headers)
        if request.method == "PATCH" and request.content_type != MERGE:
            return refused(415, f"{request.content_type} is not {MERGE}")
        if request.path == SCALE:
            return self._scale(request.method, body)
        if request.path == PODS and request.method == "GET":
            return self._list(request)
        name = request.path.removeprefix(f"{PODS}/")
        if request.method == "PATCH" and name in self.pods:
            return self._annotate(name, json.loads(body))
        return refused(404, f"{request.path} not found")

    def _scale(self, method: str, body: str) -> web.Response:
        if method == "PATCH":
            patch = json.loads(body)
            if patch["metadata"]["resourceVersion"] != str(self.version):
                return refused(409, "the object has been modified")
            self.replicas = patch["spec"]["replicas"]
            self.version += 1
            self._follow()
        about = {"name": "burst", "namespace": "gpus", "resourceVersion": str(self.version)}
        return web.json_response(
            {
                "kind": "Scale",
                "apiVersion": "autoscaling/v1",
                "metadata": about,
                "spec": {"replicas": self.replicas} if self.replicas else {},
                "status": {"replicas": len(self.pods), "selector": "app=burst"},
            }
        )

    def _follow(self) -> None:
        order = sorted(self.pods, key=lambda name: (int(self.pods[name].get(COST, "0")), name))
        for name in order[: max(0, len(self.pods) - self.replicas)]:
            del self.pods[name]
        while len(self.pods) < self.replicas:
            self.pods[f"burst-new-{len(self.pods)}"] = {}

    def _list(self, request: web.Request) -> web.Response:
        if request.query.get("labelSelector") != "app=burst":
            return refused(400, "would list everything")
        items = [
            {
                "metadata": {
                    "name": name,
                    "annotations": annotations,
                    **({"deletionTimestamp": "2026-11-24T10:00:00Z"} if name in self.ending else {}),
                }
            }
            for name, annotations in self.pods.items()
        ]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})

    def _annotate(self, name: str, patch: dict[str, Any]) -> web.Response:
        for key, value in patch["metadata"]["annotations"].items():
            if value is None:
                self.pods[name].pop(key, None)
            else:
                self.pods[name][key] = value
        return web.json_response({"metadata": {"name": name, "annotations": self.pods[name]}})


def refused(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    content = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}
    return web.json_response(content, status=status, headers=headers)


@asynccontextmanager
async def serving() -> AsyncIterator[Cluster]:
    """Give a cluster that listens on a free port of loopback."""
    cluster = Cluster()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", cluster.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    cluster.port = runner.addresses[0][1]
    try:
        yield cluster
    finally:
        await runner.cleanup()
