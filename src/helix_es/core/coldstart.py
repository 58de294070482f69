"""Why nothing serves a workload yet, and how far that is: what somebody is told who waits for it."""

from __future__ import annotations

from itertools import islice
from typing import Literal

import msgspec

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy

LOOKED_AT = 32  # GPUs; the one that is furthest is among those that began first


class ColdStart(msgspec.Struct, frozen=True, kw_only=True):
    """What must happen before the first slot is there."""

    stage: Literal["starting", "draining", "loading"]
    """A GPU was asked for; one still does other work; one loads the weights."""
    where: str
    """The pool, or the GPU."""
    elapsed_ms: int
    expected_ms: int | None
    """How long the stage took the last time; None: not known."""


def cold_start(state: Occupancy, workload: e.Workload) -> ColdStart | None:
    """Return how far the first GPU for `workload` is, or None if one serves it already or none is coming."""
    if state.door.capacity(workload).slots > 0:
        return None
    return _loading(state, workload) or _draining(state, workload) or _starting(state, workload)


def _loading(state: Occupancy, workload: e.Workload) -> ColdStart | None:
    makes = state.fleet.seated.get(workload, {})
    names = [name for make in sorted(makes) for name in islice(makes[make], LOOKED_AT)]
    loading = [state.gpus[name] for name in names if state.gpus[name].state == "assigned"]
    if not loading:
        return None
    gpu = min(loading, key=lambda each: (each.asked_ms, each.gpu))
    expected_ms = state.fleet.load_ms.get(workload.model)
    return _stage(state, "loading", gpu.gpu, gpu.asked_ms, expected_ms)


def _draining(state: Occupancy, workload: e.Workload) -> ColdStart | None:
    over = (state.gpus[name] for name in islice(state.fleet.over, LOOKED_AT))
    gpu = next((each for each in over if each.draining and each.next == workload), None)
    return None if gpu is None else _stage(state, "draining", gpu.gpu, gpu.drained_ms, None)


def _starting(state: Occupancy, workload: e.Workload) -> ColdStart | None:
    for name in sorted(state.policy.pools):
        pool = state.fleet.pools.get(name)
        if workload in state.policy.pools[name].workloads and pool is not None and pool.starting:
            return _stage(state, "starting", name, pool.resized_ms, None)
    return None


def _stage(
    state: Occupancy,
    stage: Literal["starting", "draining", "loading"],
    where: str,
    since_ms: int,
    expected_ms: int | None,
) -> ColdStart:
    elapsed_ms = max(0, state.now_ms - since_ms)
    return ColdStart(stage=stage, where=where, elapsed_ms=elapsed_ms, expected_ms=expected_ms)
