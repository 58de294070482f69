"""The whole shop at one instant, from the fold alone: what `helix replay` shows, with the API's names for things."""

from __future__ import annotations

from typing import Any

import msgspec

from helix_es.api.views import PoolView, gpu_state, pool_view
from helix_es.cli.instants import rfc3339
from helix_es.core import events as e
from helix_es.core.floor import Gpu, Seat
from helix_es.core.occupancy import Occupancy


class GpuThen(msgspec.Struct, kw_only=True):
    """A GPU whose runner was there. What only heartbeats say is not in the log, and not here."""

    gpu: str
    kind: str
    pool: str
    state: str
    purpose: str | None
    model: str | None
    next: str | None
    """What it drained for."""
    slots: int
    slots_used: int
    sessions: list[str]
    """In the order in which they were bound."""
    memory_total_bytes: int
    joined_at: str
    state_at: str
    """Since when it was in this state."""
    answered: bool
    """Its runner had answered the last assignment."""
    load_ms: int | None


class WaitingThen(msgspec.Struct, kw_only=True):
    """A session at the door."""

    session_id: str
    owner: str
    turn: int
    attempt: int
    """Attempts that had begun before; more than 0: it was on a GPU and came back."""
    priority: int
    position: int
    wait_s: float | None
    """The wait to expect from this instant on."""
    told_s: float | None
    """What it was told on arrival."""
    queued_at: str
    barred: bool
    """Passed over: its owner held as many slots as one may."""


class QueueThen(msgspec.Struct, kw_only=True):
    """The door of one workload."""

    mode: str
    type: str
    model: str
    slots: int
    bound: int
    free: int
    waiting: int
    sessions: list[WaitingThen]
    """All of them, in the order in which they would be served."""


class SeatThen(msgspec.Struct, kw_only=True):
    """A session that held a slot, or was admitted to one."""

    session_id: str
    owner: str
    mode: str
    type: str
    model: str
    gpu: str | None
    """None: admitted, and no GPU had begun it."""
    state: str
    """Its phase: admitted, continued, running, cancelling, returned, idle, closed."""
    turn: int
    attempt: int
    priority: int
    state_at: str
    """When it did anything last."""


class OwnerThen(msgspec.Struct, kw_only=True):
    """What one owner had."""

    owner: str
    held: int
    waiting: int


class Picture(msgspec.Struct, kw_only=True):
    """Everything at one instant."""

    log: str
    seq: int
    """The last record that is in it."""
    at: str
    """The clock."""
    recorded_at: str
    """When the last record was stored."""
    gpus: list[GpuThen]
    queue: list[QueueThen]
    bindings: list[SeatThen]
    pools: list[PoolView]
    owners: list[OwnerThen]
    policy: e.Policy
    policy_seq: int
    """Where the policy was set; 0: nowhere, these are the defaults."""
    set_aside: int
    """Records until then that were unreadable or could not happen where they stood."""


def picture(state: Occupancy, log: str) -> Picture:
    """Return the shop as `state` has it."""
    workloads = sorted({**state.door.capacities, **state.door.queues})
    pools = sorted({*state.policy.pools, *(gpu.pool for gpu in state.gpus.values())})
    owners = sorted({*state.held, *state.waiting})
    seats = [seat for seat in state.seats.values() if seat.phase != "queued"]
    return Picture(
        log=log,
        seq=state.seq,
        at=rfc3339(state.now_ms),
        recorded_at=rfc3339(state.folded_ms),
        gpus=[_gpu(state.gpus[name]) for name in sorted(state.gpus)],
        queue=[queue_then(state, each) for each in workloads],
        bindings=[_seat(each) for each in sorted(seats, key=lambda seat: (seat.gpu or "", seat.session))],
        pools=[pool_view(state, each) for each in pools],
        owners=[
            OwnerThen(owner=each, held=state.held.get(each, 0), waiting=state.waiting.get(each, 0))
            for each in owners
        ],
        policy=state.policy,
        policy_seq=state.policy_seq,
        set_aside=state.misfits,
    )


def queue_then(state: Occupancy, workload: e.Workload, most: int | None = None) -> QueueThen:
    """Return the door of `workload` with the first `most` who wait, None: all."""
    capacity, queue = state.door.capacity(workload), state.door.queue(workload)
    places = queue.first(len(queue) if most is None else most)
    return QueueThen(
        mode=workload.mode,
        type=workload.type,
        model=workload.model,
        slots=capacity.slots,
        bound=capacity.bound,
        free=max(0, capacity.free),
        waiting=len(queue),
        sessions=[
            _waiting(state, state.seats[place.session], number)
            for number, place in enumerate(places, start=1)
        ],
    )


def _waiting(state: Occupancy, seat: Seat, position: int) -> WaitingThen:
    most = state.policy.slots_per_owner
    return WaitingThen(
        session_id=seat.session,
        owner=seat.owner,
        turn=seat.turn,
        attempt=seat.attempt,
        priority=seat.priority,
        position=position,
        wait_s=_seconds(state.wait_ms(seat.workload, position)),
        told_s=_seconds(seat.estimated_ms),
        queued_at=rfc3339(seat.queued_ms),
        barred=bool(most) and state.held.get(seat.owner, 0) >= most,
    )


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else round(ms / 1000, 1)


def _gpu(gpu: Gpu) -> GpuThen:
    state = gpu_state(gpu)
    since_ms = {"joining": gpu.joined_ms, "loading": gpu.asked_ms, "ready": gpu.ready_ms}
    return GpuThen(
        gpu=gpu.gpu,
        kind=gpu.kind,
        pool=gpu.pool,
        state=state,
        purpose=gpu.purpose,
        model=gpu.model,
        next=None if gpu.next is None else gpu.next.model,
        slots=gpu.slots,
        slots_used=len(gpu.sessions),
        sessions=list(gpu.sessions),
        memory_total_bytes=gpu.memory_total_bytes,
        joined_at=rfc3339(gpu.joined_ms),
        state_at=rfc3339(since_ms.get(state, gpu.drained_ms)),
        answered=gpu.settled,
        load_ms=gpu.load_ms,
    )


def _seat(seat: Seat) -> SeatThen:
    return SeatThen(
        session_id=seat.session,
        owner=seat.owner,
        mode=seat.workload.mode,
        type=seat.workload.type,
        model=seat.workload.model,
        gpu=seat.gpu,
        state=seat.phase,
        turn=seat.turn,
        attempt=seat.attempt,
        priority=seat.priority,
        state_at=rfc3339(seat.active_ms),
    )


def policy_words(policy: e.Policy) -> list[tuple[str, Any]]:
    """Return the rules, each with its value in words."""
    rows: list[tuple[str, Any]] = [
        ("reserved for batch", policy.reserved),
        ("idle after", f"{policy.idle_after_ms / 1000:g} s"),
        ("slots per owner", policy.slots_per_owner or "no limit"),
        ("attempts", policy.attempts),
        ("switch after", f"{policy.switch_after_ms / 1000:g} s"),
        ("starve after", f"{policy.starve_after_ms / 1000:g} s"),
        ("yield", f"{policy.yield_ms / 1000:g} s"),
    ]
    rows += [(f"coefficient {key}", slots) for key, slots in sorted(policy.coefficients.items())]
    return rows
