"""GPUs as their runners present them."""

from __future__ import annotations

import msgspec

from helix_es.core import events as e


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU as its runner presents it."""

    gpu: e.GpuId
    kind: str
    workloads: list[e.Workload]
    slots: dict[str, int]
    """Model -> sessions; the policy's coefficients go before it."""
    join_ms: int = 0
    pool: str = "default"
    memory_total_bytes: int = 80 << 30


def uniform(
    count: int, workload: e.Workload, *, slots: int, kind: str = "a100-80", batch: bool = False
) -> list[Offer]:
    """Return offers of `count` GPUs that are all alike and there from the beginning.

    `batch`: they can fine-tune the model as well. Only such GPUs can be kept free for batch work.
    """
    workloads = [workload, e.Workload("finetune", workload.type, workload.model)] if batch else [workload]
    return [
        Offer(gpu=e.GpuId(f"{kind}-{n}"), kind=kind, workloads=workloads, slots={workload.model: slots})
        for n in range(count)
    ]
