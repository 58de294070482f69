"""A fold as bytes, with its sequence: the same state gives the same bytes, and the bytes give the same state."""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from helix_es.core import events as e
from helix_es.core.errors import Unreadable
from helix_es.core.fairqueue import FairQueue, QueueSnapshot
from helix_es.core.fleet import Fleet, Index, Pool
from helix_es.core.floor import Capacity, Gpu, Seat
from helix_es.core.occupancy import Occupancy
from helix_es.core.slotrate import SlotRate

FORMAT = 3  # one more whenever the fold changes; a snapshot of another format is not used, the log is


class _Door(msgspec.Struct, kw_only=True):
    workload: e.Workload
    queue: QueueSnapshot | None
    capacity: Capacity
    rate: SlotRate
    divided_ms: int
    idle: dict[str, int]


class _Order(msgspec.Struct, kw_only=True):
    """GPUs of an index, in its order; everything else of an index follows from the GPUs."""

    unassigned: list[str]
    useless: list[str]
    unsettled: list[str]
    vacant: list[str]
    seated: list[str]
    over: list[str]
    resizable: list[str]


class _Snapshot(msgspec.Struct, kw_only=True):
    format: int
    seq: int
    now_ms: int
    folded_ms: int
    policy: e.Policy
    policy_seq: int
    seats: list[Seat]
    gpus: list[Gpu]
    doors: list[_Door]
    fences: dict[str, int]
    misfits: int
    orphans: dict[str, e.ReleaseReason]
    stranded: dict[str, int]
    poisoned: list[str]
    yielding: list[str]
    pools: dict[str, Pool]
    load_ms: dict[str, int]
    failed: dict[str, dict[str, tuple[int, int]]]
    admitted: list[str]
    order: _Order


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
            divided_ms=door.divided_ms.get(each, 0),
            idle=dict(state.idle.get(each, {})),
        )
        for each in workloads
    ]
    return msgspec.json.encode(
        _Snapshot(
            format=FORMAT,
            seq=state.seq,
            now_ms=state.now_ms,
            folded_ms=state.folded_ms,
            policy=state.policy,
            policy_seq=state.policy_seq,
            seats=[state.seats[name] for name in sorted(state.seats)],
            gpus=[state.gpus[name] for name in sorted(state.gpus)],
            doors=doors,
            fences=dict(sorted(state.fences.items())),
            misfits=state.misfits,
            orphans=state.orphans,
            stranded=dict(sorted(state.stranded.items())),
            poisoned=list(state.poisoned),
            yielding=list(state.yielding),
            pools=dict(sorted(state.fleet.pools.items())),
            load_ms=dict(sorted(state.fleet.load_ms.items())),
            failed={gpu: each for gpu, each in sorted(state.fleet.failed.items()) if each},
            admitted=[name for work in sorted(state.admitted) for name in state.admitted[work]],
            order=_order(state.fleet),
        )
    )


def _order(fleet: Fleet) -> _Order:
    return _Order(
        unassigned=list(fleet.unassigned),
        useless=list(fleet.useless),
        unsettled=list(fleet.unsettled),
        vacant=_names(fleet.vacant),
        seated=_names(fleet.seated),
        over=list(fleet.over),
        resizable=list(fleet.resizable),
    )


def _names(index: Index) -> list[str]:
    return [name for work in sorted(index) for make in sorted(index[work]) for name in index[work][make]]


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
    state.folded_ms = raw.folded_ms
    state.policy, state.policy_seq = raw.policy, raw.policy_seq
    state.misfits, state.orphans, state.stranded = raw.misfits, raw.orphans, raw.stranded
    state.poisoned, state.yielding = dict.fromkeys(raw.poisoned), dict.fromkeys(raw.yielding)
    for each in raw.doors:
        _load_door(state, each)
    for seat in raw.seats:
        _load_seat(state, seat)
    for name in raw.admitted:
        state.admitted.setdefault(state.seats[name].workload, {})[name] = None
    _load_fleet(state, raw)
    most = state.policy.slots_per_owner
    for owner, held in state.held.items():
        if most and held >= most:
            state.door.bar(owner, barred=True)
    return state


def _load_seat(state: Occupancy, seat: Seat) -> None:
    state.seats[seat.session] = seat
    if seat.deadline_ms is not None:
        state.deadlines.add((seat.deadline_ms, seat.session))
    if seat.phase == "queued":
        state.waiting[seat.owner] = state.waiting.get(seat.owner, 0) + 1
    if seat.phase == "admitted" or seat.gpu is not None:
        state.held[seat.owner] = state.held.get(seat.owner, 0) + 1


def _load_fleet(state: Occupancy, raw: _Snapshot) -> None:
    """Take in the GPUs, then put each index into the order that it had."""
    fleet = state.fleet
    fleet.policy, fleet.fences, fleet.load_ms = raw.policy, raw.fences, raw.load_ms
    fleet.failed = raw.failed
    for name, pool in raw.pools.items():
        pool.present = pool.leaving = 0  # counted again as they come in
        fleet.pools[name] = pool
    counted = {work: (c.slots, c.room) for work, c in state.door.capacities.items()}
    for gpu in raw.gpus:
        fleet.join(gpu)
    for work, (slots, room) in counted.items():
        state.door.capacities[work].slots, state.door.capacities[work].room = slots, room
    _reorder(fleet.unassigned, raw.order.unassigned)
    _reorder(fleet.useless, raw.order.useless)
    _reorder(fleet.unsettled, raw.order.unsettled)
    _reorder(fleet.over, raw.order.over)
    _reorder(fleet.resizable, raw.order.resizable)
    for index, order in ((fleet.vacant, raw.order.vacant), (fleet.seated, raw.order.seated)):
        place = {name: n for n, name in enumerate(order)}
        for makes in index.values():
            for names in makes.values():
                _reorder(names, sorted(names, key=place.__getitem__))


def _reorder(index: dict[str, None], order: list[str]) -> None:
    index.clear()
    index.update(dict.fromkeys(order))


def _load_door(state: Occupancy, each: _Door) -> None:
    if each.queue is not None:
        queue = state.door.queues[each.workload] = FairQueue.restore(each.queue)
        if len(queue):
            state.door.waiting[each.workload] = None
    state.door.capacities[each.workload] = each.capacity
    state.door.rates[each.workload] = each.rate
    if each.divided_ms:
        state.door.divided_ms[each.workload] = each.divided_ms
    if each.idle:
        state.idle[each.workload] = OrderedDict(each.idle)
        state.door.silent(each.workload).update(each.idle.values())
