"""Provider `kubernetes`: a GPU is a pod of a Deployment, which is scaled through the cluster's API."""

from __future__ import annotations

import os
from collections.abc import Awaitable
from typing import NoReturn, TypeVar

import aiohttp
import msgspec
import structlog
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from helix_es.core.errors import Misconfigured
from helix_projections.fleet.pods import Pod, scaling
from helix_projections.fleet.provider import Gpus, ProviderError

T = TypeVar("T")

log = structlog.get_logger(__name__)

LOOK_S = 30.0  # somebody else may scale it, or a pod may come or go, without a word in our log
CALL_S = 10.0
COST = "controller.kubernetes.io/pod-deletion-cost"
FIRST = "-1000"  # before every pod that says nothing, which counts as 0
MERGE = "application/merge-patch+json"


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Which Deployment."""

    namespace: str
    deployment: str
    kubeconfig: str | None
    most: int


async def open_deployment(where: Where) -> Deployment:
    """Return the provider for `where`. Raises Misconfigured where there is no way to the cluster."""
    found = client.Configuration()
    try:
        if where.kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(found)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=_kubeconfig(where.kubeconfig), client_configuration=found, persist_config=False
            )
    except (config.ConfigException, OSError) as error:
        raise Misconfigured(
            f"provider kubernetes: no way to a cluster ({error}); run it in a pod or set kubeconfig"
        ) from error
    return Deployment(client.ApiClient(found), where)


def _kubeconfig(given: str | None) -> str:
    """Return the configuration to read. Raises Misconfigured if it is not there."""
    path = os.path.expanduser(given or config.KUBE_CONFIG_DEFAULT_LOCATION)
    if not any(os.path.isfile(each) for each in path.split(os.pathsep)):
        raise Misconfigured(
            f"provider kubernetes: no way to a cluster: there is no {path}; run it in a pod or set kubeconfig"
        )
    return path


class Deployment:
    """Reads and patches `deployments/scale`, lists its pods and patches one annotation of them; nothing else.

    A pod's name is the name of its GPU, or the beginning of it up to a `-`.
    """

    def __init__(self, api: client.ApiClient, where: Where) -> None:
        self._api = api
        self._apps = client.AppsV1Api(api)
        self._core = client.CoreV1Api(api)
        self._where = where

    async def present(self) -> int | None:
        """Return how many replicas it is scaled to."""
        return (await self._scale()).replicas

    async def make(self, size: int, previous: int, gpus: Gpus) -> float | None:
        """Mark the pods that go, then scale; see `Provider.make`."""
        scale = await self._scale()
        planned = scaling(size, scale.replicas, await self._pods(scale.selector), gpus, most=self._where.most)
        for pod in planned.mark:
            await self._mark(pod, FIRST)
        for pod in planned.unmark:
            await self._mark(pod, None)
        if planned.replicas != scale.replicas:
            # With the version that we saw: if somebody else scaled it since, we look again.
            body = {
                "metadata": {"resourceVersion": scale.version},
                "spec": {"replicas": planned.replicas},
            }
            await self._call(
                self._apps.patch_namespaced_deployment_scale(
                    self._where.deployment,
                    self._where.namespace,
                    body,
                    _content_type=MERGE,
                    _request_timeout=CALL_S,
                )
            )
            log.info("scaled", deployment=self._where.deployment, replicas=planned.replicas, size=size)
        return LOOK_S

    async def _scale(self) -> _Scale:
        found = await self._call(
            self._apps.read_namespaced_deployment_scale(
                self._where.deployment, self._where.namespace, _request_timeout=CALL_S
            )
        )
        spec, status, about = found.spec, found.status, found.metadata
        # Without a selector every pod of the namespace would be listed.
        if spec is None or about is None or not about.resource_version or not (status and status.selector):
            raise ProviderError(f"deployment {self._where.deployment}: its scale is incomplete")
        return _Scale(spec.replicas or 0, status.selector, about.resource_version)

    async def _pods(self, selector: str) -> list[Pod]:
        found = await self._call(
            self._core.list_namespaced_pod(
                self._where.namespace, label_selector=selector, _request_timeout=CALL_S
            )
        )
        there = [pod.metadata for pod in found.items if pod.metadata is not None]
        return [
            Pod(about.name, (about.annotations or {}).get(COST) == FIRST)
            for about in there
            if about.name is not None and about.deletion_timestamp is None
        ]

    async def _mark(self, pod: str, cost: str | None) -> None:
        body = {"metadata": {"annotations": {COST: cost}}}
        await self._call(
            self._core.patch_namespaced_pod(
                pod, self._where.namespace, body, _content_type=MERGE, _request_timeout=CALL_S
            )
        )

    async def _call(self, call: Awaitable[T]) -> T:
        """Return the answer. Raises ProviderError for every way in which there may be none."""
        try:
            return await call
        except ApiException as error:
            self._refused(error)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, config.ConfigException) as error:
            what = str(error).split("\n")[0] or type(error).__name__
            raise ProviderError(f"the cluster's API does not answer: {what}") from error

    def _refused(self, error: ApiException) -> NoReturn:
        try:
            said = msgspec.json.decode(error.body or b"", type=_Status).message
        except msgspec.MsgspecError:
            said = ""
        after = (error.headers or {}).get("Retry-After", "")
        raise ProviderError(
            f"the cluster's API refused with {error.status}: {said or error.reason}",
            after_s=float(after) if after.isdigit() else 0.0,
        ) from error

    async def close(self) -> None:
        """Leave the Deployment as it is."""
        await self._api.close()  # type: ignore[no-untyped-call]


class _Scale(msgspec.Struct, frozen=True):
    replicas: int
    selector: str
    version: str


class _Status(msgspec.Struct, frozen=True):
    """What the cluster's API says when it refuses."""

    message: str = ""
