"""What a decision is, and the facts that decisions are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

import msgspec

from helix_es.core import events as e
from helix_es.core.floor import Gpu, Seat, coefficient, purpose_of, serves
from helix_es.core.occupancy import Occupancy

RULES = 2
"""One more whenever the same state is decided otherwise than before. It is in the log with the policy, so that a replay
knows which decisions it can make again. tests/core/test_verify.py has a recorded log that tells."""

MOST = (
    256  # decisions in one plan: bounds a plan's cost; the next one follows as soon as these are in the log
)

TURN_MS = 250  # the clock's step: a scheduler's beat


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A fact to append, and the sequence that its fence must still have."""

    event: e.AnyEvent
    expected_seq: int


def some(index: Mapping[str, object], now_ms: int, most: int = MOST) -> list[str]:
    """Return at most `most` names of `index`; of a longer one others each time, so that none hides behind the first."""
    if len(index) <= most:
        return list(index)
    start = now_ms // TURN_MS * most % len(index)
    return [*islice(index, start, start + most), *islice(index, max(0, start + most - len(index)))]


def release(state: Occupancy, seat: Seat, reason: e.ReleaseReason, now_ms: int) -> Decision:
    """The session gives its slot back."""
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


def give_up(state: Occupancy, seat: Seat, code: str, message: str, now_ms: int) -> Decision:
    """The turn, which waits at the door, fails there."""
    return Decision(
        event=e.TurnFailed(
            session=seat.session,
            turn=seat.turn,
            attempt=seat.attempt,
            gpu=e.NO_GPU,
            error=e.Failure(code=code, message=message),
            decided_seq=state.seq,
            decided_at_ms=now_ms,
        ),
        expected_seq=seat.last_seq,
    )


def assign(state: Occupancy, gpu: Gpu, workload: e.Workload, reason: str, now_ms: int) -> Decision:
    """The GPU serves `workload` from now on, with as many slots as its coefficient says."""
    slots = coefficient(state.policy, gpu, workload)
    return _assigned(state, gpu, workload, now_ms, slots=slots, reason=reason)


def drain(state: Occupancy, gpu: Gpu, target: e.Workload | None, reason: str, now_ms: int) -> Decision:
    """The GPU takes nobody any more; for `target`, or to leave if that is None."""
    workload = serves(gpu) or gpu.workloads[0]
    event = _assigned(state, gpu, workload, now_ms, slots=0, reason=reason)
    return msgspec.structs.replace(
        event, event=msgspec.structs.replace(event.event, next=target, leaving=target is None)
    )


def _assigned(
    state: Occupancy, gpu: Gpu, workload: e.Workload, now_ms: int, *, slots: int, reason: str
) -> Decision:
    return Decision(
        event=e.GpuAssigned(
            gpu=gpu.gpu,
            incarnation=gpu.incarnation,
            model=workload.model,
            type=workload.type,
            purpose=purpose_of(workload),
            slots=slots,
            reason=reason,
            decided_seq=state.seq,
            decided_at_ms=now_ms,
        ),
        expected_seq=gpu.last_seq,
    )


def withdrawn(state: Occupancy, plan: Iterable[Decision]) -> dict[e.Workload, int]:
    """Return the free slots that assignments of the plan take away: nobody may be admitted to them."""
    found: dict[e.Workload, int] = {}
    for each in plan:
        if isinstance(each.event, e.GpuAssigned):
            gpu = state.gpus[each.event.gpu]
            workload = serves(gpu)
            if workload is not None and gpu.state == "ready" and each.event.slots < gpu.slots:
                held = len(gpu.sessions)
                room = max(0, gpu.slots - held) - max(0, each.event.slots - held)
                found[workload] = found.get(workload, 0) + room
    return found
