"""GET /models/explain: how many sessions of each model each kind of GPU may hold, and how that number came about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
from litestar import Controller, Request, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from helix_es.api.owner import owner_of
from helix_es.api.services import Services
from helix_es.core.capacity import Explanation, card_of, explain
from helix_es.core.catalogue import Model, find
from helix_es.core.events import Policy, Workload
from helix_es.core.floor import Gpu, coefficient
from helix_es.core.hardware import KNOWN_GPUS, Card


class Lowered(msgspec.Struct, kw_only=True):
    """A GPU that holds fewer than others of its kind, since its memory ran out."""

    gpu: str
    slots: int


class CapacityView(Explanation, frozen=True, kw_only=True):
    """One model on one kind of GPU. All sizes are bytes."""

    gpus: int
    """Of this kind on the floor now; 0: it is only known by name."""
    lowered: list[Lowered]


class CapacityList(msgspec.Struct, kw_only=True):
    """Every model on every kind that is known by name or here."""

    object: Literal["list"] = "list"
    data: list[CapacityView]


class CapacityRoutes(Controller):
    """GET /models/explain."""

    path = "/models/explain"
    tags = ("floor",)

    @get("/", summary="Coefficients and how they came about")
    async def capacity(
        self,
        services: NamedDependency[Services],
        request: Request[Any, Any, Any],
        model: FromQuery[str | None] = None,
    ) -> CapacityList:
        owner_of(request, services.settings.auth)
        models: Mapping[str, Model] = services.settings.models
        if model is not None:
            slug = find(models, model)
            models = {slug: models[slug]}
        state = services.replica.state
        return CapacityList(data=capacities(models, state.gpus, state.policy))


def capacities(models: Mapping[str, Model], gpus: Mapping[str, Gpu], policy: Policy) -> list[CapacityView]:
    """Return a row for each model on each kind: as the GPUs are that are here, else as the kind is known."""
    rows = []
    for slug, model in sorted(models.items()):
        workload = Workload("create", model.type, slug)
        here = _cards(workload, gpus)
        absent = KNOWN_GPUS.keys() - {card.kind for card in here}
        here |= {Card(kind=kind): [] for kind in absent}
        for card in sorted(here, key=_order):
            explanation = explain(model, slug, card, policy)
            lowered = list(_lowered(here[card], workload, policy, explanation.coefficient))
            rows.append(
                CapacityView(**msgspec.structs.asdict(explanation), gpus=len(here[card]), lowered=lowered)
            )
    return rows


def _cards(workload: Workload, gpus: Mapping[str, Gpu]) -> dict[Card, list[Gpu]]:
    """Return the GPUs by what their coefficient depends on; those that offer the workload speak for their kind."""
    found: dict[Card, list[Gpu]] = {}
    for gpu in gpus.values():
        found.setdefault(card_of(gpu, workload), []).append(gpu)
    offering = {(card.kind, card.memory_bytes) for card in found if card.offered is not None}
    return {
        card: group
        for card, group in found.items()
        if card.offered is not None or (card.kind, card.memory_bytes) not in offering
    }


def _order(card: Card) -> tuple[str, int, int]:
    return card.kind, card.memory_bytes, card.offered or 0


def _lowered(gpus: list[Gpu], workload: Workload, policy: Policy, slots: int) -> Iterator[Lowered]:
    for gpu in sorted(gpus, key=lambda gpu: gpu.gpu):
        if workload in gpu.workloads and (now := coefficient(policy, gpu, workload)) < slots:
            yield Lowered(gpu=gpu.gpu, slots=now)
