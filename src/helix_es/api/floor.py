"""Routes of the floor, the door, the catalogue and the fleet."""

from __future__ import annotations

from typing import Literal

import msgspec
from litestar import Controller, get

from helix_es.api.owner import owner_of
from helix_es.api.services import Services
from helix_es.api.sessions import Web
from helix_es.api.views import GpuView, PoolView, gpu_view, instant, pool_view
from helix_es.core.events import Workload
from helix_es.core.floor import Gpu, serves
from helix_es.core.occupancy import Occupancy

MOST_SHOWN = 1000  # of a queue; its length is always the whole


class GpuList(msgspec.Struct, kw_only=True):
    """Every GPU whose runner is there."""

    object: Literal["list"] = "list"
    data: list[GpuView]


class Waiting(msgspec.Struct, kw_only=True):
    """A session at the door."""

    session_id: str
    owner: str | None
    """None: somebody else's."""
    turn: int
    priority: int
    position: int
    wait_s: float | None
    queued_at: str | None


class Estimates(msgspec.Struct, kw_only=True):
    """How well the waits that were told fit those that followed."""

    told: int
    """Estimates that were told and then put to the test; who was served at once and was told so is not counted."""
    share_within: float | None
    """Of them, within 30 % of the wait that followed."""
    share_near: float | None
    """The same, or within 1 s for waits under 3 s."""
    mean_error_s: float | None


class QueueLine(msgspec.Struct, kw_only=True):
    """The door of one workload."""

    mode: str
    type: str
    model: str
    slots: int
    bound: int
    free: int
    waiting: int
    estimates: Estimates
    sessions: list[Waiting]


class QueueList(msgspec.Struct, kw_only=True):
    """Every workload that has slots or somebody waiting."""

    object: Literal["list"] = "list"
    data: list[QueueLine]


class ModelView(msgspec.Struct, kw_only=True):
    """One row of the catalogue, and who serves it now."""

    model: str
    name: str
    type: str
    engine: str
    dtype: str
    context_tokens: int
    gpus: int
    slots: int
    waiting: int


class ModelList(msgspec.Struct, kw_only=True):
    """The catalogue."""

    object: Literal["list"] = "list"
    data: list[ModelView]


class AdapterView(msgspec.Struct, kw_only=True):
    """A fine-tune that can answer."""

    adapter: str
    model: str
    session_id: str
    files: list[str]
    created_at: str


class AdapterList(msgspec.Struct, kw_only=True):
    """The asker's adapters, newest first."""

    object: Literal["list"] = "list"
    data: list[AdapterView]


class Division(msgspec.Struct, kw_only=True):
    """How GPUs are divided between chats and batch work, and what that cost."""

    reserved: int
    """Kept for batch work."""
    batch: int
    """GPUs that could do batch work and serve no chats now."""
    chat: int
    """GPUs that could do batch work and serve chats now."""
    chats_held_back_s: float
    """How long chats waited while a GPU was kept free that could have served them."""
    batch_held_back_s: float
    """How long batch work waited while chats had a GPU that could have done it."""


class Fleet(msgspec.Struct, kw_only=True):
    """Sizes wanted and present."""

    object: Literal["list"] = "list"
    data: list[PoolView]
    division: Division


class Floor(Controller):
    """GET /gpus, /queue, /models, /fleet."""

    path = ""
    tags = ("floor",)

    @get("/gpus", summary="The floor")
    async def gpus(self, services: Services, request: Web) -> GpuList:
        owner = owner_of(request, services.settings.auth)
        beats = await services.heartbeats()
        state = services.replica.state
        return GpuList(
            data=[gpu_view(state.gpus[name], beats.get(name), state, owner) for name in sorted(state.gpus)]
        )

    @get("/queue", summary="The door")
    async def queue(self, services: Services, request: Web) -> QueueList:
        owner = owner_of(request, services.settings.auth)
        state = services.replica.state
        workloads = sorted({**state.door.capacities, **state.door.queues})
        return QueueList(data=[_line(state, workload, owner) for workload in workloads])

    @get("/models", summary="The catalogue")
    async def models(self, services: Services, request: Web) -> ModelList:
        owner_of(request, services.settings.auth)
        state = services.replica.state
        rows: list[ModelView] = []
        for slug, model in sorted(services.settings.models.items()):
            workload = Workload("create", model.type, slug)
            capacity = state.door.capacities.get(workload)
            queue = state.door.queues.get(workload)
            rows.append(
                ModelView(
                    model=slug,
                    name=model.name,
                    type=model.type,
                    engine=model.engine,
                    dtype=model.dtype,
                    context_tokens=model.context_tokens,
                    gpus=sum(_serves(gpu, workload) for gpu in state.gpus.values()),
                    slots=capacity.slots if capacity else 0,
                    waiting=len(queue) if queue is not None else 0,
                )
            )
        return ModelList(data=rows)

    @get("/adapters", summary="Fine-tunes that can answer")
    async def adapters(self, services: Services, request: Web) -> AdapterList:
        owner = owner_of(request, services.settings.auth)
        rows = [
            AdapterView(
                adapter=each.name,
                model=each.model,
                session_id=each.session,
                files=each.files,
                created_at=instant(each.created_ms) or "",
            )
            for each in services.adapters.of(owner)
        ]
        return AdapterList(data=rows)

    @get("/fleet", summary="Sizes wanted and present")
    async def fleet(self, services: Services, request: Web) -> Fleet:
        owner_of(request, services.settings.auth)
        state = services.replica.state
        names = sorted({*state.policy.pools, *(gpu.pool for gpu in state.gpus.values())})
        return Fleet(data=[pool_view(state, name) for name in names], division=_division(state))


def _division(state: Occupancy) -> Division:
    held_back = {"create": 0, "finetune": 0}
    for workload in state.door.queues:
        held_back[workload.mode] += state.divided_ms(workload, state.now_ms)
    return Division(
        reserved=state.policy.reserved,
        batch=state.fleet.batchable - state.fleet.chatting,
        chat=state.fleet.chatting,
        chats_held_back_s=held_back["create"] / 1000,
        batch_held_back_s=held_back["finetune"] / 1000,
    )


def _serves(gpu: Gpu, workload: Workload) -> bool:
    return gpu.state == "ready" and serves(gpu) == workload


def _line(state: Occupancy, workload: Workload, owner: str) -> QueueLine:
    capacity = state.door.capacity(workload)
    queue = state.door.queue(workload)
    waiting: list[Waiting] = []
    for position, place in enumerate(queue.first(MOST_SHOWN), start=1):
        seat = state.seats[place.session]
        mine = seat.owner == owner
        wait_ms = state.wait_ms(workload, position)
        waiting.append(
            Waiting(
                session_id=seat.session if mine else "",
                owner=seat.owner if mine else None,
                turn=seat.turn,
                priority=seat.priority,
                position=position,
                wait_s=None if wait_ms is None else round(wait_ms / 1000, 1),
                queued_at=instant(seat.queued_ms),
            )
        )
    return QueueLine(
        mode=workload.mode,
        type=workload.type,
        model=workload.model,
        slots=capacity.slots,
        bound=capacity.bound,
        free=max(0, capacity.free),
        waiting=len(queue),
        estimates=_estimates(state, workload),
        sessions=waiting,
    )


def _estimates(state: Occupancy, workload: Workload) -> Estimates:
    found = state.door.rate(workload).accuracy
    return Estimates(
        told=found.told,
        share_within=found.share_within,
        share_near=found.share_near,
        mean_error_s=None if found.mean_error_ms is None else found.mean_error_ms / 1000,
    )
