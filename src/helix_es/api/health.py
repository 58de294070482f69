"""/livez, /readyz, /health and /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litestar import Response, get
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from helix_es.api.services import Services

PLAIN = "text/plain; version=0.0.4; charset=utf-8"


@get("/livez", include_in_schema=False, sync_to_thread=False)
def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@get(["/readyz", "/health"], include_in_schema=False, sync_to_thread=False)
def readyz(services: Services) -> Response[dict[str, Any]]:
    """Connected, and our fold has caught up with the log."""
    body = {
        "status": "ready" if services.ready else "not_ready",
        "connected": services.connection.connected,
        "caught_up": services.replica.caught_up.is_set(),
        "seq": services.replica.state.seq,
    }
    return Response(body, status_code=200 if services.ready else 503)


@get("/metrics", include_in_schema=False, sync_to_thread=False)
def metrics(services: Services) -> Response[bytes]:
    """Prometheus metrics, taken from the fold at the moment of asking."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Floor(services))
    return Response(generate_latest(registry), media_type=PLAIN)


class _Floor(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        state = self._services.replica.state
        labels = ["mode", "type", "model"]
        waiting = GaugeMetricFamily("helix_queue_waiting", "Turns at the door", labels=labels)
        slots = GaugeMetricFamily("helix_slots", "Slots of ready GPUs", labels=labels)
        bound = GaugeMetricFamily("helix_sessions_bound", "Sessions that hold a slot", labels=labels)
        for workload in sorted({**state.door.capacities, **state.door.queues}):
            values = [workload.mode, workload.type, workload.model]
            waiting.add_metric(values, len(state.door.queue(workload)))
            slots.add_metric(values, state.door.capacity(workload).slots)
            bound.add_metric(values, state.door.capacity(workload).bound)
        gpus = GaugeMetricFamily("helix_gpus", "GPUs whose runner is there", labels=["state"])
        for name in ("joined", "assigned", "ready"):
            gpus.add_metric([name], sum(gpu.state == name for gpu in state.gpus.values()))
        wanted = GaugeMetricFamily("helix_pool_wanted", "GPUs that a pool should have", labels=["pool"])
        for pool in sorted(state.policy.pools):
            found = state.fleet.pools.get(pool)
            wanted.add_metric([pool], found.size if found is not None else 0)
        held_back = GaugeMetricFamily(
            "helix_held_back_seconds",
            "Waits that a GPU of the other division could have spared",
            labels=labels,
        )
        for workload in sorted(state.door.queues):
            values = [workload.mode, workload.type, workload.model]
            held_back.add_metric(values, state.divided_ms(workload, state.now_ms) / 1000)
        told = GaugeMetricFamily("helix_wait_estimates", "Waits that were told and then known", labels=labels)
        near = GaugeMetricFamily(
            "helix_wait_estimates_within", "Share of them within 30 % of what followed", labels=labels
        )
        for workload in sorted(state.door.queues):
            values = [workload.mode, workload.type, workload.model]
            accuracy = state.door.rate(workload).accuracy
            told.add_metric(values, accuracy.told)
            near.add_metric(values, accuracy.share_within or 0.0)
        seq = GaugeMetricFamily("helix_log_sequence", "Log sequence that this process folded to")
        seq.add_metric([], state.seq)
        misfits = GaugeMetricFamily("helix_log_misfits", "Stored messages that could not be folded")
        misfits.add_metric([], state.misfits)
        yield from (waiting, slots, bound, gpus, wanted, held_back, told, near, seq, misfits)
