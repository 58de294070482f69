"""A fold as bytes, with its sequence: the same state gives the same bytes, and the bytes give the same state."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from helix_es.core import events as e
from helix_es.core.errors import Unreadable
from helix_es.core.fairqueue import FairQueue, QueueSnapshot
from helix_es.core.floor import Capacity, Gpu, Seat
from helix_es.core.occupancy import Occupancy
from helix_es.core.slotrate import SlotRate

FORMAT = 2  # one more whenever the fold changes; a snapshot of another format is not used, the log is


class _Door(msgspec.Struct, kw_only=True):
    workload: e.Workload
    queue: QueueSnapshot | None
    capacity: Capacity
    rate: SlotRate
    idle: list[str]


class _Snapshot(msgspec.Struct, kw_only=True):
    format: int
    seq: int
    now_ms: int
    policy: e.Policy
    policy_seq: int
    seats: list[Seat]
    gpus: list[Gpu]
    doors: list[_Door]
    fences: dict[str, int]
    misfits: int
    orphans: dict[str, e.ReleaseReason]
    stranded: dict[str, int]
    unassigned: list[str]


def dump(state: Occupancy) -> bytes:
    """Return `state` as JSON."""
    door = state.door
    workloads = sorted({**door.queues, **door.capacities, **door.rates, **state.idle})
    doors = [
        _Door(
            workload=each,
            queue=door.queue(each).snapshot(),
            capacity=door.capacity(each),
            rate=door.rate(each),
            idle=list(state.idle.get(each, ())),
        )
        for each in workloads
    ]
    return msgspec.json.encode(
        _Snapshot(
            format=FORMAT,
            seq=state.seq,
            now_ms=state.now_ms,
            policy=state.policy,
            policy_seq=state.policy_seq,
            seats=[state.seats[name] for name in sorted(state.seats)],
            gpus=[state.gpus[name] for name in sorted(state.gpus)],
            doors=doors,
            fences=dict(sorted(state.fences.items())),
            misfits=state.misfits,
            orphans=state.orphans,
            stranded=dict(sorted(state.stranded.items())),
            unassigned=list(state.unassigned),
        )
    )


def load(data: bytes) -> Occupancy:
    """Return the state that `dump` was given. Raises Unreadable for another format or damaged bytes."""
    try:
        raw = msgspec.json.decode(data, type=_Snapshot)
    except msgspec.DecodeError as error:
        raise Unreadable(f"snapshot: {error}") from error
    if raw.format != FORMAT:
        raise Unreadable(f"snapshot has format {raw.format}, this release reads {FORMAT}")
    state = Occupancy()
    state.seq, state.now_ms = raw.seq, raw.now_ms
    state.policy, state.policy_seq = raw.policy, raw.policy_seq
    state.seats = {seat.session: seat for seat in raw.seats}
    state.gpus = {gpu.gpu: gpu for gpu in raw.gpus}
    state.fences, state.misfits = raw.fences, raw.misfits
    state.orphans, state.stranded = raw.orphans, raw.stranded
    state.unassigned = dict.fromkeys(raw.unassigned)
    for each in raw.doors:
        _load_door(state, each)
    return state


def _load_door(state: Occupancy, each: _Door) -> None:
    if each.queue is not None:
        queue = state.door.queues[each.workload] = FairQueue.restore(each.queue)
        if len(queue):
            state.door.waiting[each.workload] = None
    state.door.capacities[each.workload] = each.capacity
    state.door.rates[each.workload] = each.rate
    if each.idle:
        state.idle[each.workload] = OrderedDict.fromkeys(each.idle)
