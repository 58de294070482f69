"""GPUs that load the weights of a workload, and when they will be ready."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from helix_es.core import events as e
from helix_es.core.fleet import Fleet

LOOKED_AT = 32  # GPUs of a make: where none serves the workload yet, all of these load it


class Coming(NamedTuple):
    """A GPU that loads."""

    in_ms: int
    """As long as the model took the last time."""
    slots: int


def loading(fleet: Fleet, workload: e.Workload, now_ms: int) -> tuple[Coming, ...]:
    """Return GPUs that load `workload`, the soonest first; where others serve it already, not necessarily all."""
    if fleet.coming.get(workload, 0) <= 0:
        return ()
    load_ms = fleet.load(workload.model)
    names = [name for make in fleet.seated.get(workload, {}).values() for name in islice(make, LOOKED_AT)]
    gpus = [fleet.gpus[name] for name in names]
    return tuple(
        sorted(
            Coming(max(0, gpu.asked_ms + load_ms - now_ms), gpu.slots)
            for gpu in gpus
            if gpu.state == "assigned" and gpu.slots
        )
    )
