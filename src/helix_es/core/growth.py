"""How many GPUs each pool should have, and which of them leave when it has too many."""

from __future__ import annotations

from itertools import islice

from helix_es.core import events as e
from helix_es.core.assignment import Assignment
from helix_es.core.decision import Decision, drain
from helix_es.core.fleet import Pool
from helix_es.core.floor import Gpu
from helix_es.core.needs import LOOKED_AT
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
        plan += _departures(state, name, assignment, now_ms)
    return plan


def _wanted(
    state: Occupancy, name: str, rule: e.PoolRule, pool: Pool, assignment: Assignment, now_ms: int
) -> tuple[int, str]:
    missing = 0
    for need in assignment.needs:
        if need.workload not in rule.workloads or need.missing <= 0:
            continue
        if rule.slots.get(need.workload.model, 1) <= 0:
            continue  # more of these would not help
        if need.wait_ms is None or need.wait_ms > rule.wait_target_ms:
            missing += -(-need.missing // max(1, rule.slots.get(need.workload.model, 1)))
    size = max(rule.min, min(rule.max, pool.size))
    if missing:
        grown = min(rule.max, max(size, pool.staying + missing))
        return grown, f"{missing} GPUs' worth of sessions wait" if grown > size else "within min and max"
    # GPUs that are on their way are waited for, but not for ever.
    hopeless = now_ms - pool.resized_ms > rule.idle_ms
    if pool.starting and not hopeless:
        return size, "within min and max"
    idle = len(_idle(state, name, assignment, now_ms - rule.idle_ms))
    if (idle or pool.starting) and pool.staying - idle < size:
        shrunk = max(rule.min, pool.staying - idle)
        if shrunk < size:
            return shrunk, f"{idle} GPUs held nobody for {rule.idle_ms / 1000:g} s"
    return size, "within min and max"


def _idle(state: Occupancy, pool: str, assignment: Assignment, before_ms: int) -> list[Gpu]:
    """Return some GPUs of the pool that held nobody since `before_ms` and may go, longest first."""
    return _spared(state, [gpu for gpu in _vacant(state, pool) if gpu.vacant_ms <= before_ms], assignment)


def _spared(state: Occupancy, gpus: list[Gpu], assignment: Assignment) -> list[Gpu]:
    """Return those of `gpus` that may go: none that is dealt with already, none that must be kept for batch work."""
    spare = assignment.kept - state.policy.reserved
    found: dict[str, Gpu] = {}
    for gpu in gpus:
        if gpu.gpu in assignment.taken or gpu.gpu in found:
            continue
        if state.policy.reserved and gpu.purpose != "chat" and state.fleet.makes[gpu.gpu].batch is not None:
            if spare <= 0:
                continue
            spare -= 1
        found[gpu.gpu] = gpu
    return list(found.values())


def _vacant(state: Occupancy, pool: str) -> list[Gpu]:
    """Return some GPUs of the pool that hold nobody, longest first."""
    fleet = state.fleet
    loose = [*islice(fleet.unassigned, LOOKED_AT), *islice(fleet.useless, LOOKED_AT)]
    names = [name for name in loose if state.gpus[name].pool == pool]
    for work in sorted(fleet.vacant):
        for make in sorted(fleet.vacant[work]):
            if make.pool == pool:
                names += islice(fleet.vacant[work][make], LOOKED_AT)
    return sorted((state.gpus[name] for name in names), key=lambda gpu: (gpu.vacant_ms, gpu.gpu))


def _departures(state: Occupancy, name: str, assignment: Assignment, now_ms: int) -> list[Decision]:
    """Whoever holds nobody goes first, then whoever holds fewest; what must be kept for batch work stays."""
    pool = state.fleet.pools.get(name) or Pool()
    surplus = pool.staying - pool.size
    if surplus <= 0:
        return []
    order = [*_vacant(state, name), *_seated(state, name, chat=True), *_seated(state, name, chat=False)]
    going = _spared(state, order, assignment)[:surplus]
    assignment.kept -= sum(
        gpu.purpose != "chat" and state.fleet.makes[gpu.gpu].batch is not None for gpu in going
    )
    assignment.taken.update(gpu.gpu for gpu in going)
    return [drain(state, gpu, None, "the pool shrinks", now_ms) for gpu in going]


def _seated(state: Occupancy, pool: str, *, chat: bool) -> list[Gpu]:
    """Return some GPUs of the pool that serve something, the emptiest first."""
    found: list[Gpu] = []
    for work in sorted(state.fleet.seated):
        if (work.mode == "create") != chat:
            continue
        for make in sorted(state.fleet.seated[work]):
            if make.pool == pool:
                found += (state.gpus[n] for n in islice(state.fleet.seated[work][make], LOOKED_AT))
    return sorted(found, key=lambda gpu: len(gpu.sessions))
