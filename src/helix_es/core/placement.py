"""What should happen now: who gives a slot back, what a GPU is for, who is admitted. Pure, from the fold alone."""

from __future__ import annotations

from itertools import islice

from helix_es.core import events as e
from helix_es.core.assignment import Assignment
from helix_es.core.decision import MOST, Decision, assign, drain, give_up, release, some, withdrawn
from helix_es.core.floor import Gpu, Seat, coefficient, serves
from helix_es.core.growth import resizes
from helix_es.core.occupancy import Occupancy


def decide(state: Occupancy, now_ms: int) -> list[Decision]:
    """Return what to append, in order; [] if everything is as it should be.

    The cost follows the number of decisions, not the fleet or the sessions. The same state and clock give the same
    plan in any process.
    """
    plan = _releases(state, now_ms)
    plan += _give_ups(state, now_ms)
    plan += _drains(state, now_ms)
    plan += _coefficients(state, now_ms)
    assignment = Assignment(state, now_ms, plan)
    plan += assignment.plan(MOST - len(plan))
    plan += resizes(state, assignment, now_ms)
    taken_away = withdrawn(state, plan)
    allowance = _allowance(state)
    for workload in sorted(_wanting(state)):
        room = MOST - len(plan)
        if room <= 0:
            break
        free = state.door.capacity(workload).free - taken_away.get(workload, 0)
        admitted = _admissions(state, workload, now_ms, min(free, room), allowance)
        plan += admitted
        plan += _evictions(state, workload, now_ms, len(admitted), MOST - len(plan))
    return plan[:MOST]


def _wanting(state: Occupancy) -> list[e.Workload]:
    """Workloads with somebody at the door, or admitted to a slot that was lost before the turn could start."""
    door = state.door
    return [each for each, slots in door.capacities.items() if each in door.waiting or slots.overdue]


def _releases(state: Occupancy, now_ms: int) -> list[Decision]:
    """Sessions whose GPU is gone, or which are over."""
    return [
        release(state, state.seats[session], reason, now_ms)
        for session, reason in islice(state.orphans.items(), MOST)
    ]


def _give_ups(state: Occupancy, now_ms: int) -> list[Decision]:
    """Turns that failed with too many GPUs, or would rather fail than wait on."""
    plan = []
    for session in islice(state.poisoned, MOST):
        seat = state.seats[session]
        told = "; ".join(seat.strikes)
        text = f"given up after {len(seat.strikes)} GPUs: {told}"
        plan.append(give_up(state, seat, "poison_turn", text, now_ms))
    for deadline_ms, session in islice(state.deadlines, MOST):
        if deadline_ms > now_ms:
            break
        seat = state.seats[session]
        if session not in state.poisoned:
            waited_s = (deadline_ms - seat.queued_ms) / 1000
            text = f"no slot came free within {waited_s:g} s (max_wait_s)"
            plan.append(give_up(state, seat, "wait_exceeded", text, now_ms))
    return plan


def _drains(state: Occupancy, now_ms: int) -> list[Decision]:
    """From a GPU that holds more than it should go those who are silent; a fine-tune in the way of chats is moved."""
    plan: list[Decision] = []
    for name in some(state.fleet.over, now_ms):
        gpu = state.gpus[name]
        surplus = len(gpu.sessions) - gpu.slots
        for session in gpu.sessions:
            seat = state.seats[session]
            if session in state.orphans:
                surplus -= 1
            elif surplus > 0 and seat.phase == "idle" and _may_go(state, gpu, seat.active_ms, now_ms):
                plan.append(release(state, seat, "drained", now_ms))
                surplus -= 1
            elif gpu.draining and gpu.next is not None and gpu.next.mode == "create":
                plan += _move(state, session, now_ms)
    return plan


def _may_go(state: Occupancy, gpu: Gpu, active_ms: int, now_ms: int) -> bool:
    """Silent long enough; or the GPU has drained so long that a pause in the conversation must do."""
    if now_ms - active_ms >= state.policy.idle_after_ms:
        return True
    return gpu.draining and now_ms - gpu.drained_ms >= state.policy.starve_after_ms


def _move(state: Occupancy, session: str, now_ms: int) -> list[Decision]:
    """A running fine-tune makes a checkpoint first."""
    seat = state.seats[session]
    if seat.workload.mode != "finetune" or seat.phase not in ("running", "cancelling"):
        return []
    if seat.yield_ms is None:
        event = e.TurnYielding(
            session=seat.session,
            turn=seat.turn,
            attempt=seat.attempt,
            gpu=seat.gpu or e.NO_GPU,
            decided_seq=state.seq,
            decided_at_ms=now_ms,
        )
        return [Decision(event=event, expected_seq=seat.last_seq)]
    if seat.yielded or now_ms - seat.yield_ms >= state.policy.yield_ms:
        return [release(state, seat, "preempted", now_ms)]
    return []


def _coefficients(state: Occupancy, now_ms: int) -> list[Decision]:
    """GPUs whose slots are not what the rules say (any more). Nobody is cut off: they fill up or drain to it."""
    plan = []
    for name in some(state.fleet.resizable, now_ms):
        gpu = state.gpus[name]
        workload = serves(gpu)
        if workload is None or not gpu.settled:
            continue
        slots = coefficient(state.policy, gpu, workload)
        if slots > 0:
            plan.append(assign(state, gpu, workload, f"coefficient {gpu.slots} -> {slots}", now_ms))
        else:
            plan.append(drain(state, gpu, workload, "coefficient 0", now_ms))
    return plan


def _allowance(state: Occupancy) -> dict[str, int]:
    """Return how many more slots each owner who holds some may have; {} without such a limit."""
    most = state.policy.slots_per_owner
    return {owner: most - held for owner, held in state.held.items()} if most else {}


def _admissions(
    state: Occupancy, workload: e.Workload, now_ms: int, free: int, allowance: dict[str, int]
) -> list[Decision]:
    """Admit who is next; `allowance` shrinks, since an owner may wait for several workloads."""
    if free <= 0:
        return []
    plan = []
    most = state.policy.slots_per_owner
    divided_ms = state.divided_ms(workload, now_ms)
    for place in state.door.queue(workload).next(free, allowance, most):
        seat = state.seats[place.session]
        if place.session in state.poisoned or _too_late(seat, now_ms):
            continue  # it is given up by this plan
        event = e.TurnAdmitted(
            session=seat.session,
            turn=seat.turn,
            attempt=seat.attempt + 1,
            mode=workload.mode,
            type=workload.type,
            model=workload.model,
            waited_ms=max(0, now_ms - seat.queued_ms),
            estimated_ms=seat.estimated_ms,
            reservation_ms=max(0, divided_ms - seat.divided_ms),
            reason=f"{free} free",
            decided_seq=state.seq,
            decided_at_ms=now_ms,
        )
        plan.append(Decision(event=event, expected_seq=seat.last_seq))
        free -= 1
        if most:
            allowance[seat.owner] = allowance.get(seat.owner, most) - 1
    return plan


def _too_late(seat: Seat, now_ms: int) -> bool:
    return seat.deadline_ms is not None and seat.deadline_ms <= now_ms


def _evictions(
    state: Occupancy, workload: e.Workload, now_ms: int, admitted: int, room: int
) -> list[Decision]:
    """Whoever was silent longest gives way, one for each that still waits and has no slot coming."""
    idle = state.idle.get(workload)
    waiting = state.admissible(workload, MOST + admitted)
    demand = waiting - admitted + state.door.capacity(workload).overdue
    wanted = min(demand - _coming(state, workload), room)
    if not idle or wanted <= 0:
        return []
    plan: list[Decision] = []
    for session in idle:  # in the order in which they fell silent
        seat = state.seats[session]
        if len(plan) == wanted or now_ms - seat.active_ms < state.policy.idle_after_ms:
            break
        if session not in state.orphans and seat.gpu not in state.fleet.over:
            plan.append(release(state, seat, "idle", now_ms))
    return plan


def _coming(state: Occupancy, workload: e.Workload) -> int:
    """Slots that sessions already ordered to go will give."""
    return sum(1 for session in islice(state.orphans, MOST) if state.seats[session].workload == workload)
