"""What the API shows, in the words of the contract; times are RFC 3339, durations carry their unit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from helix_es.core import events as e
from helix_es.core.coldstart import cold_start
from helix_es.core.fleet import Pool
from helix_es.core.floor import Gpu
from helix_es.core.history import Progress, Session, Turn
from helix_es.core.occupancy import Occupancy

GPU_STATES = {"joined": "joining", "assigned": "loading", "ready": "ready"}


class ColdStartView(msgspec.Struct, kw_only=True):
    """How far the first GPU is that will serve the model."""

    stage: str
    """starting, draining or loading."""
    where: str
    """The pool or the GPU."""
    elapsed_s: int
    expected_s: int | None


class QueueView(msgspec.Struct, kw_only=True):
    """A place at the door."""

    position: int
    """1 is next."""
    wait_s: float | None
    """None while nothing serves the model."""
    cold_start: ColdStartView | None = None


class TurnView(msgspec.Struct, kw_only=True):
    """One request and its answer."""

    turn: int
    state: str
    prompt: str
    output: str
    files: list[str]
    error: e.Failure | None
    progress: Progress | None
    """How far a long turn was when it last said so."""
    attempt: int
    gpu: str | None
    usage: e.Usage
    finish_reason: str | None
    queued_at: str
    admitted_at: str | None
    started_at: str | None
    first_token_at: str | None
    ended_at: str | None


class SessionView(msgspec.Struct, kw_only=True):
    """A session with all its turns."""

    session_id: str
    mode: str
    type: str
    model: str
    state: str
    gpu: str | None
    owner: str
    name: str | None
    adapter: str | None
    dataset: str | None
    priority: int
    created_at: str
    queue: QueueView | None
    turns: list[TurnView]


class GpuView(msgspec.Struct, kw_only=True):
    """A GPU on the floor."""

    gpu: str
    kind: str
    pool: str
    state: str
    """joining, loading, ready, draining (it takes nobody any more) or leaving."""
    purpose: str | None
    model: str | None
    next: str | None
    """What it drains for."""
    slots: int
    slots_used: int
    sessions: list[str]
    """Those of the asker; all, where no API keys are configured."""
    memory_total_bytes: int
    memory_used_bytes: int | None
    utilisation: float | None
    temperature_c: int | None
    heartbeat_at: str | None
    detail: dict[str, Any]


class PoolView(msgspec.Struct, kw_only=True):
    """How many GPUs there should be and are."""

    pool: str
    wanted: int
    """For a pool that is not configured, what is there."""
    present: int
    ready: int
    loading: int
    leaving: int
    min: int | None
    max: int | None
    reason: str
    """Why it was resized last."""
    resized_at: str | None


def instant(ms: int | None) -> str | None:
    """Return Unix ms as RFC 3339, UTC."""
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def turn_view(turn: Turn) -> TurnView:
    """Return what users see of `turn`."""
    return TurnView(
        turn=turn.turn,
        state=turn.state,
        prompt=turn.prompt,
        output=turn.output,
        files=turn.files,
        error=turn.error,
        progress=turn.progress,
        attempt=turn.attempt,
        gpu=turn.gpu,
        usage=turn.usage,
        finish_reason=turn.finish_reason,
        queued_at=instant(turn.queued_ms) or "",
        admitted_at=instant(turn.admitted_ms),
        started_at=instant(turn.started_ms),
        first_token_at=instant(turn.first_token_ms),
        ended_at=instant(turn.ended_ms),
    )


def session_view(session: Session, state: Occupancy) -> SessionView:
    """Return what users see of `session`; its place is taken from `state`."""
    return SessionView(
        session_id=session.session,
        mode=session.mode,
        type=session.type,
        model=session.model,
        state=session.state,
        gpu=session.gpu,
        owner=session.owner,
        name=session.name,
        adapter=session.adapter,
        dataset=session.dataset,
        priority=session.priority,
        created_at=instant(session.created_ms) or "",
        queue=queue_view(session.session, state),
        turns=[turn_view(turn) for turn in session.turns],
    )


def queue_view(session: str, state: Occupancy) -> QueueView | None:
    """Return the place of `session`, or None if it does not wait."""
    seat = state.seats.get(session)
    position = None if seat is None else state.position(seat)
    if seat is None or position is None:
        return None
    wait_ms = state.wait_ms(seat.workload, position)
    return QueueView(
        position=position,
        wait_s=None if wait_ms is None else round(wait_ms / 1000, 1),
        cold_start=_cold_start(state, seat.workload),
    )


def _cold_start(state: Occupancy, workload: e.Workload) -> ColdStartView | None:
    found = cold_start(state, workload)
    if found is None:
        return None
    return ColdStartView(
        stage=found.stage,
        where=found.where,
        elapsed_s=found.elapsed_ms // 1000,
        expected_s=None if found.expected_ms is None else -(-found.expected_ms // 1000),
    )


def gpu_state(gpu: Gpu) -> str:
    """Return the state of `gpu` as users know it."""
    if gpu.draining:
        return "leaving" if gpu.leaving else "draining"
    return GPU_STATES[gpu.state]


def gpu_view(gpu: Gpu, beat: e.Recorded | None, state: Occupancy, owner: str) -> GpuView:
    """Return what `owner` sees of `gpu`, with its last heartbeat if it is of this incarnation."""
    told = beat.event if beat is not None else None
    if not isinstance(told, e.GpuHeartbeat) or told.incarnation != gpu.incarnation:
        told, beat = None, None
    return GpuView(
        gpu=gpu.gpu,
        kind=gpu.kind,
        pool=gpu.pool,
        state=gpu_state(gpu),
        purpose=gpu.purpose,
        model=gpu.model,
        next=gpu.next.model if gpu.next is not None else None,
        slots=gpu.slots,
        slots_used=len(gpu.sessions),
        sessions=sorted(name for name in gpu.sessions if state.seats[name].owner == owner),
        memory_total_bytes=gpu.memory_total_bytes,
        memory_used_bytes=told.memory_used_bytes if told else None,
        utilisation=told.utilisation if told else None,
        temperature_c=told.temperature_c if told else None,
        heartbeat_at=instant(beat.at_ms) if beat else None,
        detail=told.detail if told else {},
    )


def pool_view(state: Occupancy, name: str) -> PoolView:
    """Return how large the pool should be and is, by the fold."""
    rule, pool = state.policy.pools.get(name), state.fleet.pools.get(name) or Pool()
    states = [gpu_state(gpu) for gpu in state.gpus.values() if gpu.pool == name]
    return PoolView(
        pool=name,
        wanted=pool.size if rule is not None else pool.present,
        present=pool.present,
        ready=states.count("ready") + states.count("draining"),
        loading=states.count("loading") + states.count("joining"),
        leaving=pool.leaving,
        min=rule.min if rule is not None else None,
        max=rule.max if rule is not None else None,
        reason=pool.reason,
        resized_at=instant(pool.resized_ms or None),
    )
