"""Who waits for what no GPU gives or is about to give: what assignments are made from."""

from __future__ import annotations

from itertools import islice

import msgspec

from helix_es.core import events as e
from helix_es.core.decision import MOST
from helix_es.core.floor import coefficient, serves
from helix_es.core.occupancy import Occupancy

LOOKED_AT = 32  # GPUs looked at of many alike; the whole fleet would make a decision as dear as it is large
LATE = 3  # times its load time, and starve_after: a GPU that has not answered by then is not counted on


class Need(msgspec.Struct, kw_only=True):
    """Somebody waits for a workload, and no slot is free or coming for them."""

    workload: e.Workload
    missing: int
    """Slots."""
    waited_ms: int
    """Of the next to be served."""
    wait_ms: int | None
    """That the last in the queue must expect; None: nothing serves it."""


def needed(state: Occupancy, now_ms: int) -> list[Need]:
    """Return what is missing, by workload."""
    needs = []
    door = state.door
    for workload in sorted({*door.waiting, *(w for w, c in door.capacities.items() if c.overdue)}):
        capacity, queue = door.capacity(workload), door.queue(workload)
        coming = state.fleet.coming.get(workload, 0) - _late(state, workload, now_ms)
        waiting = state.admissible(workload, MOST)
        missing = waiting + capacity.overdue - max(0, capacity.free) - max(0, coming)
        if missing <= 0:
            continue
        needs.append(
            Need(
                workload=workload,
                missing=missing,
                waited_ms=max(0, now_ms - _since_ms(state, workload, now_ms)),
                wait_ms=state.wait_ms(workload, len(queue), now_ms) if capacity.slots else None,
            )
        )
    return needs


def _since_ms(state: Occupancy, workload: e.Workload, now_ms: int) -> int:
    """Return since when somebody waits: admitted without a slot to start on, or next in the queue."""
    first = [place.session for place in state.door.queue(workload).first(1)]
    if state.door.capacity(workload).overdue:
        first += islice(state.admitted.get(workload, ()), 1)
    return min((state.seats[each].queued_ms for each in first), default=now_ms)


def _late(state: Occupancy, workload: e.Workload, now_ms: int) -> int:
    """Return the slots that should have come long ago: GPUs that do not answer are not waited for."""
    slots = 0
    for name in islice(state.fleet.unsettled, LOOKED_AT):
        gpu = state.gpus[name]
        target = gpu.next if gpu.draining else serves(gpu)
        if target == workload and not gpu.leaving:
            most_ms = LATE * state.fleet.load(workload.model) + state.policy.starve_after_ms
            if now_ms - gpu.asked_ms > most_ms:
                slots += coefficient(state.policy, gpu, workload)
    return slots
