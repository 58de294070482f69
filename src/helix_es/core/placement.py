"""What should happen now: who gives a slot back, what a GPU is for, who is admitted. Pure, from the fold alone."""

from __future__ import annotations

import msgspec

from helix_es.core import events as e
from helix_es.core.floor import Capacity, Gpu, Seat
from helix_es.core.occupancy import Occupancy

MOST = (
    256  # decisions in one plan: bounds a plan's cost; the next one follows as soon as these are in the log
)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A fact to append, and the sequence that its fence must still have."""

    event: e.AnyEvent
    expected_seq: int


def decide(state: Occupancy, now_ms: int) -> list[Decision]:
    """Return what to append, in order; [] if everything is as it should be.

    The cost follows the number of decisions, not the fleet or the sessions. The same state and clock give the same
    plan in any process.
    """
    plan = _releases(state, now_ms)
    plan += _assignments(state, now_ms)
    for workload in sorted(_wanting(state)):
        room = MOST - len(plan)
        if room <= 0:
            break
        admitted = _admissions(state, workload, now_ms, room)
        plan += admitted
        plan += _evictions(state, workload, now_ms, len(admitted), MOST - len(plan))
    return plan[:MOST]


def _wanting(state: Occupancy) -> list[e.Workload]:
    """Workloads with somebody at the door, or admitted to a slot that was lost before the turn could start."""
    door = state.door
    return [each for each, slots in door.capacities.items() if each in door.waiting or _overdue(slots)]


def _overdue(slots: Capacity) -> int:
    """Turns that were admitted and have no slot left to start on."""
    return min(slots.admitted, max(0, -slots.free))


def coefficient(policy: e.Policy, gpu: Gpu, workload: e.Workload) -> int:
    """Return how many sessions of `workload` the GPU may hold: the configured table first, then what it offered.

    The table is about conversations that share a model; how many fine-tunes fit at once only the runner knows.
    """
    offered = gpu.offered.get(workload.model, 1)
    if workload.mode == "finetune":
        return offered
    return policy.coefficients.get(f"{gpu.kind}/{workload.model}", offered)


def _release(state: Occupancy, seat: Seat, reason: e.ReleaseReason, now_ms: int) -> Decision:
    return Decision(
        event=e.SessionReleased(
            session=seat.session,
            gpu=seat.gpu or e.NO_GPU,
            incarnation=seat.incarnation,
            reason=reason,
            decided_seq=state.seq,
            decided_at_ms=now_ms,
        ),
        expected_seq=seat.last_seq,
    )


def _releases(state: Occupancy, now_ms: int) -> list[Decision]:
    """Sessions whose GPU is gone, or which are over."""
    plan = []
    for session, reason in state.orphans.items():
        plan.append(_release(state, state.seats[session], reason, now_ms))
        if len(plan) == MOST:
            break
    return plan


def _assignments(state: Occupancy, now_ms: int) -> list[Decision]:
    """A GPU that came in gets the first workload it offers, once nothing of its earlier life holds it."""
    plan = []
    for name in state.unassigned:
        gpu = state.gpus[name]
        if not gpu.workloads or name in state.stranded:
            continue
        workload = gpu.workloads[0]
        plan.append(
            Decision(
                event=e.GpuAssigned(
                    gpu=gpu.gpu,
                    incarnation=gpu.incarnation,
                    model=workload.model,
                    type=workload.type,
                    purpose="batch" if workload.mode == "finetune" else "chat",
                    slots=coefficient(state.policy, gpu, workload),
                    decided_seq=state.seq,
                    decided_at_ms=now_ms,
                ),
                expected_seq=gpu.last_seq,
            )
        )
    return plan


def _admissions(state: Occupancy, workload: e.Workload, now_ms: int, room: int) -> list[Decision]:
    free = state.door.capacity(workload).free
    if free <= 0:
        return []
    plan = []
    for place in state.door.queue(workload).first(min(free, room)):
        seat = state.seats[place.session]
        event = e.TurnAdmitted(
            session=seat.session,
            turn=seat.turn,
            attempt=seat.attempt + 1,
            mode=workload.mode,
            type=workload.type,
            model=workload.model,
            waited_ms=max(0, now_ms - seat.queued_ms),
            estimated_ms=seat.estimated_ms,
            reason=f"{free} free",
            decided_seq=state.seq,
            decided_at_ms=now_ms,
        )
        plan.append(Decision(event=event, expected_seq=seat.last_seq))
        free -= 1
    return plan


def _evictions(
    state: Occupancy, workload: e.Workload, now_ms: int, admitted: int, room: int
) -> list[Decision]:
    """Whoever was silent longest gives way, one for each that still waits and has no slot coming."""
    idle = state.idle.get(workload)
    demand = len(state.door.queue(workload)) - admitted + _overdue(state.door.capacity(workload))
    wanted = min(demand - _coming(state, workload), room)
    if not idle or wanted <= 0:
        return []
    plan: list[Decision] = []
    for session in idle:  # in the order in which they fell silent
        seat = state.seats[session]
        if len(plan) == wanted or now_ms - seat.active_ms < state.policy.idle_after_ms:
            break
        if session not in state.orphans:
            plan.append(_release(state, seat, "idle", now_ms))
    return plan


def _coming(state: Occupancy, workload: e.Workload) -> int:
    """Slots that sessions already ordered to go will give."""
    return sum(1 for session in list(state.orphans)[:MOST] if state.seats[session].workload == workload)
