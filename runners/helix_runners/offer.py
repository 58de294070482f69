"""What a runner brings to the shop: a GPU, and what it can run on it."""

from __future__ import annotations

import msgspec

from helix_es.core.catalogue import Model
from helix_es.core.events import GpuId, Workload
from helix_runners.devices import Device


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What is told when it joins."""

    gpu: GpuId
    device: Device
    workloads: list[Workload]
    """What it may be assigned; the first is preferred."""
    models: dict[str, Model]
    """All models of the workloads, by slug."""
    slots: dict[str, int]
    """Sessions it holds of each model."""
    pool: str = "default"
    """The pool that it was started for."""
    heartbeat_s: float = 1.0
    drain_s: float = 10.0
    """How long running turns may go on after it was told to stop."""
    stalls: bool = True
    """Whether a long silence of its turns means that it is stuck; a program has time limits of its own."""
