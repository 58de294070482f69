"""What a worker says of itself when it asks for work: who it is, what it can do, how many sessions it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, cast, get_args

import msgspec
from msgspec import Meta

from helix_es.core import events as e
from helix_es.core.catalogue import find
from helix_es.core.errors import Rejected
from helix_es.core.subjects import token
from helix_es.settings import Settings

RESERVED = frozenset({e.NO_GPU, "task", "ws"})  # `none` stands for no GPU; the others are addresses of ours
MOST_HOLDS = 64  # as many as slots


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The query of a poll and of a websocket."""

    mode: str = "create"
    type: str | None = None
    """None: what the model makes."""
    model_name: str = ""
    worker: str = ""
    wait_s: Annotated[float, Meta(ge=0, le=60)] = 30.0
    slots: Annotated[int, Meta(ge=1, le=64)] = 1
    lease_s: Annotated[float, Meta(ge=3, le=3600)] = 30.0
    kind: str = "http"
    holds: str | None = None


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the floor will see it."""

    worker: e.GpuId
    workload: e.Workload
    slots: int
    lease_ms: int
    """How long it may be silent."""
    kind: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """An offer, and how this one answer is to be found."""

    offer: Offer
    wait_s: float
    holds: frozenset[str] | None
    """Ids of the tasks that the worker has in hand; None: it did not say."""


def request_of(query: Mapping[str, str], settings: Settings) -> Request:
    """Return what `query` asks for. Raises Rejected with the parameter's name and what is allowed."""
    asked = _asked(query)
    worker = worker_name(asked.worker)
    return Request(
        offer=Offer(
            worker=worker,
            workload=_workload(asked, settings),
            slots=asked.slots,
            lease_ms=int(asked.lease_s * 1000),
            kind=_token(asked.kind.lower(), "kind"),
        ),
        wait_s=asked.wait_s,
        holds=_holds(asked.holds),
    )


def worker_name(name: str) -> e.GpuId:
    """Return `name` as that of a GPU. Raises Rejected if it cannot be one."""
    if name in RESERVED:
        raise Rejected("invalid_request", f"worker: {name!r} is reserved; choose another name")
    return e.GpuId(_token(name, "worker"))


def _asked(query: Mapping[str, str]) -> Asked:
    try:
        return msgspec.convert(dict(query), Asked, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        if not where:
            raise Rejected(
                "invalid_request", f"query: {what}; allowed are: {', '.join(Asked.__struct_fields__)}"
            ) from error
        name = where.rstrip("`")
        raise Rejected("invalid_request", f"{name}: {what}, found {query[name]!r:.60}") from error


def _token(value: str, what: str) -> str:
    try:
        return token(value, what)
    except Rejected as error:
        raise Rejected("invalid_request", f"{what}: {error}") from error


def _workload(asked: Asked, settings: Settings) -> e.Workload:
    mode, kind = asked.mode.lower(), None if asked.type is None else asked.type.lower()
    if mode not in get_args(e.Mode):
        raise Rejected("invalid_request", f"mode: {asked.mode[:60]!r} is not allowed; create or finetune is")
    if kind is not None and kind not in get_args(e.Kind):
        raise Rejected("invalid_request", f"type: {asked.type!r:.60} is not allowed; text or image is")
    if not asked.model_name:
        raise Rejected("invalid_request", "model_name: is missing; give a model's slug or full name")
    slug = find(settings.models, asked.model_name)
    makes = settings.models[slug].type
    if kind not in (None, makes):
        raise Rejected("wrong_type", f"model {slug} makes {makes}, not {kind}")
    if mode == "finetune" and makes != "text":
        raise Rejected(
            "mode_unavailable", f"mode 'finetune': {slug} makes {makes}; only text models are fine-tuned"
        )
    return e.Workload(cast(e.Mode, mode), makes, slug)


def _holds(text: str | None) -> frozenset[str] | None:
    if text is None:
        return None
    held = frozenset(filter(None, (each.strip() for each in text.split(","))))
    if len(held) > MOST_HOLDS:
        raise Rejected("invalid_request", f"holds: {len(held)} tasks; at most {MOST_HOLDS} are allowed")
    return held
