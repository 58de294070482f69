"""How many GPUs each pool should have, and which of them leave when it has too many."""

from __future__ import annotations

from itertools import islice

from helix_es.core import events as e
from helix_es.core.assignment import LOOKED_AT, Assignment
from helix_es.core.decision import Decision, drain
from helix_es.core.fleet import Pool
from helix_es.core.floor import Gpu
from helix_es.core.occupancy import Occupancy


def resizes(state: Occupancy, assignment: Assignment, now_ms: int) -> list[Decision]:
    """Return new sizes of pools, and the GPUs that drain to leave.

    `assignment` has been planned: what is still missing in it no GPU that is here can give.
    """
    plan: list[Decision] = []
    for name in sorted(state.policy.pools):
        rule, pool = state.policy.pools[name], state.fleet.pools.get(name) or Pool()
        size, reason = _wanted(state, name, rule, pool, assignment, now_ms)
        if size != pool.size:
            event = e.FleetResized(
                pool=name, size=size, reason=reason, decided_seq=state.seq, decided_at_ms=now_ms
            )
            plan.append(Decision(event=event, expected_seq=pool.last_seq))
        plan += _departures(state, name, pool, now_ms)
    return plan


def _wanted(
    state: Occupancy, name: str, rule: e.PoolRule, pool: Pool, assignment: Assignment, now_ms: int
) -> tuple[int, str]:
    missing = 0
    for need in assignment.needs:
        if need.workload not in rule.workloads or need.missing <= 0:
            continue
        if need.wait_ms is None or need.wait_ms > rule.wait_target_ms:
            missing += -(-need.missing // max(1, rule.slots.get(need.workload.model, 1)))
    size = max(rule.min, min(rule.max, pool.size))
    if missing:
        grown = min(rule.max, max(size, pool.staying + missing))
        return grown, f"{missing} GPUs' worth of sessions wait" if grown > size else "within min and max"
    idle = 0 if pool.starting else len(_idle(state, name, rule, now_ms))
    if idle and pool.staying - idle < size:
        shrunk = max(rule.min, pool.staying - idle)
        if shrunk < size:
            return shrunk, f"{idle} GPUs held nobody for {rule.idle_ms / 1000:g} s"
    return size, "within min and max"


def _idle(state: Occupancy, pool: str, rule: e.PoolRule, now_ms: int) -> list[Gpu]:
    """Return GPUs of the pool that held nobody for long, and that nothing is kept on."""
    kept = state.fleet.batchable - state.fleet.chatting - state.policy.reserved
    found = []
    for gpu in _vacant(state, pool):
        if now_ms - gpu.vacant_ms < rule.idle_ms:
            continue
        if gpu.purpose == "batch" and state.policy.reserved:
            if kept <= 0:
                continue
            kept -= 1
        found.append(gpu)
    return found


def _vacant(state: Occupancy, pool: str) -> list[Gpu]:
    """Return some GPUs of the pool that hold nobody, longest first."""
    names = [name for name in islice(state.fleet.unassigned, LOOKED_AT) if state.gpus[name].pool == pool]
    for work in sorted(state.fleet.vacant):
        for make in sorted(state.fleet.vacant[work]):
            if make.pool == pool:
                names += islice(state.fleet.vacant[work][make], LOOKED_AT)
    return sorted((state.gpus[name] for name in names), key=lambda gpu: (gpu.vacant_ms, gpu.gpu))


def _departures(state: Occupancy, name: str, pool: Pool, now_ms: int) -> list[Decision]:
    surplus = pool.staying - pool.size
    if surplus <= 0:
        return []
    going = _vacant(state, name)[:surplus]
    taken = {gpu.gpu for gpu in going}
    for work in sorted(state.fleet.seated) if len(going) < surplus else ():
        for make in sorted(state.fleet.seated[work]):
            if make.pool == name:
                some = [state.gpus[n] for n in islice(state.fleet.seated[work][make], LOOKED_AT)]
                free = sorted((gpu for gpu in some if gpu.gpu not in taken), key=lambda g: len(g.sessions))
                going += free
                taken.update(gpu.gpu for gpu in free)
    return [drain(state, gpu, None, "the pool shrinks", now_ms) for gpu in going[:surplus]]
