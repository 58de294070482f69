"""A Deployment that is scaled through a fake of the cluster's API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from helix_es.core.errors import Misconfigured
from helix_projections.fleet.deployment import Deployment, Where, open_deployment
from helix_projections.fleet.keeper import Keeper, Patience
from helix_projections.fleet.provider import Gpus, ProviderError
from helix_projections.fleet.sizes import Order
from tests.projections.fleet.cluster import COST, PODS, SCALE, TOKEN, Cluster, serving

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(folder: Path, *, token: str = TOKEN) -> AsyncIterator[tuple[Cluster, Deployment]]:
    async with serving() as cluster:
        where = Where(
            namespace="gpus",
            deployment="burst",
            kubeconfig=str(cluster.kubeconfig(folder, token)),
            most=3,
        )
        deployment = await open_deployment(where)
        try:
            yield cluster, deployment
        finally:
            await deployment.close()


async def test_it_grows_by_one_patch_of_the_scale(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        assert await deployment.present() == 0
        assert await deployment.make(2, 0, {}) == 30
        assert await deployment.present() == 2
        ((method, path, body),) = cluster.changes
        assert (method, path) == ("PATCH", SCALE)
        assert json.loads(body) == {"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 2}}


async def test_the_size_that_is_there_already_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        cluster.has("burst-a", "burst-b")
        await deployment.make(2, 0, {"burst-a": "serving"})
        assert cluster.changes == []


async def test_the_pod_whose_gpu_has_drained_is_marked_then_taken(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        cluster.has("burst-a", "burst-b", "burst-c")
        gpus: Gpus = {"burst-a": "draining", "burst-b": "serving", "burst-c": "serving"}
        await deployment.make(2, 3, gpus)
        assert cluster.changes == []
        await deployment.make(2, 2, {**gpus, "burst-a": "drained"})
        mark, scale = cluster.changes
        assert mark == (
            "PATCH",
            f"{PODS}/burst-a",
            json.dumps({"metadata": {"annotations": {COST: "-1000"}}}),
        )
        assert scale[1] == SCALE
        assert set(cluster.pods) == {"burst-b", "burst-c"}


async def test_a_mark_is_taken_back_from_a_pod_that_serves_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        cluster.has("burst-a", "burst-b")
        cluster.pods["burst-a"] = {COST: "-1000", "other": "stays"}
        await deployment.make(2, 2, {"burst-a": "serving", "burst-b": "serving"})
        assert cluster.pods["burst-a"] == {"other": "stays"}
        assert len(cluster.changes) == 1


async def test_a_cost_that_somebody_else_set_is_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        cluster.has("burst-a")
        cluster.pods["burst-a"] = {COST: "5"}
        await deployment.make(1, 1, {"burst-a": "serving"})
        assert cluster.changes == []


async def test_pods_that_are_being_deleted_do_not_count(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        cluster.has("burst-a", "burst-b")
        cluster.ending.add("burst-b")
        cluster.replicas = 1
        await deployment.make(1, 1, {"burst-a": "serving", "burst-b": "drained"})
        assert cluster.changes == []


async def test_nothing_else_of_the_cluster_is_touched(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        for size, gpu in ((3, "serving"), (1, "draining"), (1, "drained"), (0, "drained"), (2, "serving")):
            gpus = dict.fromkeys(cluster.pods, gpu)
            await deployment.make(size, 0, gpus)  # type: ignore[arg-type]
        asked = {(method, path.partition("?")[0]) for method, path, _ in cluster.asked}
        pods = {("PATCH", f"{PODS}/burst-new-{n}") for n in range(3)}
        assert asked <= {("GET", SCALE), ("PATCH", SCALE), ("GET", PODS)} | pods
        assert cluster.replicas == 2


@pytest.mark.parametrize("status", [409, 429, 500, 503])
async def test_a_refusal_for_now_is_an_error_that_says_why(tmp_path: Path, status: int) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        cluster.failures = [(status, {"Retry-After": "7"} if status == 429 else {})]
        with pytest.raises(ProviderError, match=f"refused with {status}: not now") as caught:
            await deployment.make(1, 0, {})
        assert caught.value.after_s == (7 if status == 429 else 0)
        await deployment.make(1, 0, {})
        assert cluster.replicas == 1


async def test_a_keeper_gets_through_a_cluster_that_refuses_at_every_step(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        cluster.has("burst-a", "burst-b")
        cluster.failures = [(429, {"Retry-After": "0"}), (500, {}), (409, {}), (503, {}), (500, {})]
        keeper = Keeper("burst", deployment, Patience(first_s=0.001, most_s=0.01))
        keeper.offer(Order(size=1, gpus={"burst-a": "serving", "burst-b": "drained"}))
        keeping = asyncio.create_task(keeper.run())
        async with asyncio.timeout(10):
            while set(cluster.pods) != {"burst-a"}:  # noqa: ASYNC110  polls with a deadline
                await asyncio.sleep(0.005)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_who_scaled_it_meanwhile_is_not_overruled_unseen(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        scale = deployment._scale

        async def overtaken() -> object:
            found = await scale()
            cluster.version += 1
            return found

        deployment._scale = overtaken  # type: ignore[method-assign, assignment]
        with pytest.raises(ProviderError, match="409: the object has been modified"):
            await deployment.make(1, 0, {})


async def test_a_wrong_token_is_refused_and_the_token_is_not_said(tmp_path: Path) -> None:
    async with opened(tmp_path, token="wr0ng") as (_, deployment):
        with pytest.raises(ProviderError, match="401: Unauthorized") as caught:
            await deployment.present()
        assert "wr0ng" not in str(caught.value)


async def test_a_cluster_that_does_not_answer_is_an_error_to_try_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as (cluster, deployment):
        async with serving() as other:
            other.kubeconfig(tmp_path)
        where = Where(namespace="gpus", deployment="burst", kubeconfig=str(tmp_path / "kubeconfig"), most=3)
        gone = await open_deployment(where)
        with pytest.raises(ProviderError, match="does not answer"):
            await gone.present()
        await gone.close()
        assert await deployment.present() == cluster.replicas


async def test_without_a_way_to_a_cluster_it_is_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    where = Where(namespace="gpus", deployment="burst", kubeconfig=str(tmp_path / "none"), most=3)
    with pytest.raises(Misconfigured, match="no way to a cluster"):
        await open_deployment(where)


async def test_in_a_pod_without_a_service_account_it_is_refused_at_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    with pytest.raises(Misconfigured, match="no way to a cluster"):
        await open_deployment(Where(namespace="gpus", deployment="burst", kubeconfig=None, most=3))
