"""The composition root of the simulated runner: a crowd of GPUs from options."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import msgspec

from helix_es import telemetry
from helix_es.core.catalogue import derived_slots, find
from helix_es.core.errors import Misconfigured, Rejected
from helix_es.core.events import GpuId, Workload
from helix_es.core.hardware import KNOWN_GPUS
from helix_es.core.subjects import token
from helix_es.jetstream.client import Connection
from helix_es.jetstream.deltas import Deltas
from helix_es.jetstream.files import Files
from helix_es.jetstream.log import JetStreamLog
from helix_es.settings import Settings
from helix_runners.simulated.crowd import Crowd
from helix_runners.simulated.doing import NoDeltas, Tools
from helix_runners.simulated.files import Makings
from helix_runners.simulated.service import Service
from helix_runners.simulated.standing import Card, Standing

Connect = Callable[[str, dict[str, Any]], Awaitable[Connection]]


class SimulatedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; `nats` are the options of the connection."""

    models: tuple[str, ...]
    batch: bool = False
    """Whether the text models can be fine-tuned as well."""
    kind: str
    count: int
    gpu_prefix: str
    """GPUs are called `<prefix>-<index>`."""
    slots: int | None = None
    """Sessions that each GPU holds; None: the configuration's coefficient, else what its memory allows."""
    pool: str = "default"
    deltas: bool = True
    drain_s: float = 10.0
    seed: int = 1
    service: Service = Service()
    nats: dict[str, Any]


async def serve(
    settings: Settings,
    options: SimulatedOptions,
    connect: Connect,
    on_signals: Callable[[Callable[[], None]], None],
) -> None:
    """Serve until a signal comes or every GPU was told to leave. Raises Misconfigured for what cannot be served."""
    card = card_of(settings, options)
    names = names_of(options)
    telemetry.configure("simulated-runner")
    connection = await connect(f"helix-simulated-{options.gpu_prefix}", options.nats)
    try:
        crowd = make_crowd(connection, names, card, options)
        on_signals(crowd.stop)
        await crowd.run(heartbeat_s=settings.sessions.heartbeat_s, drain_s=options.drain_s)
    finally:
        await connection.close()
        await asyncio.to_thread(telemetry.shutdown)


def make_crowd(connection: Connection, names: list[GpuId], card: Card, options: SimulatedOptions) -> Crowd:
    """Return the GPUs, not yet joined."""
    tools = tools_of(connection, card, options)
    standing = Standing(tools.log, tools.patiently, card, new_incarnation=lambda: secrets.token_hex(6))
    return Crowd(connection, names, tools, standing)


def tools_of(connection: Connection, card: Card, options: SimulatedOptions) -> Tools:
    """Return what the turns of all these GPUs share."""
    return Tools(
        log=JetStreamLog(connection),
        deltas=Deltas(connection) if options.deltas else NoDeltas(connection),
        makings=Makings(Files(connection, new_id=lambda: secrets.token_hex(10))),
        service=options.service,
        random=Random(options.seed),
        models=card.models,
    )


def names_of(options: SimulatedOptions) -> list[GpuId]:
    """Return the names of the GPUs. Raises Misconfigured if they cannot stand in a subject."""
    try:
        token(f"{options.gpu_prefix}-{options.count - 1}", "--gpu-prefix")
        token(options.pool, "--pool")
    except Rejected as error:
        raise Misconfigured(str(error)) from error
    return [GpuId(f"{options.gpu_prefix}-{index}") for index in range(options.count)]


def card_of(settings: Settings, options: SimulatedOptions) -> Card:
    """Return what each GPU is and offers. Raises Misconfigured for a kind or model that cannot be."""
    known = KNOWN_GPUS.get(options.kind)
    if known is None:
        raise Misconfigured(f"--kind {options.kind[:80]!r}: must be one of {', '.join(KNOWN_GPUS)}")
    try:
        slugs = [find(settings.models, name) for name in options.models]
    except Rejected as error:
        raise Misconfigured(str(error)) from error
    models = {slug: settings.models[slug] for slug in slugs}
    workloads = [Workload("create", model.type, slug) for slug, model in models.items()]
    if options.batch:
        tuned = [Workload("finetune", "text", slug) for slug, model in models.items() if model.type == "text"]
        if not tuned:
            raise Misconfigured("--batch: none of the models is of type text, and only those are fine-tuned")
        workloads += tuned
    return Card(
        kind=options.kind,
        memory_bytes=known.memory_bytes,
        workloads=tuple(workloads),
        slots={slug: _slots(settings, options, slug, known.memory_bytes) for slug in models},
        models=models,
        pool=options.pool,
    )


def _slots(settings: Settings, options: SimulatedOptions, slug: str, memory_bytes: int) -> int:
    """Return how many sessions of a model each GPU holds. Raises Misconfigured if it does not fit the kind."""
    fitting = derived_slots(settings.models[slug], memory_bytes, options.kind)
    configured = settings.coefficients.get(f"{options.kind}/{slug}")
    slots = options.slots or (fitting if configured is None else configured)
    if not slots:
        raise Misconfigured(
            f"--model {slug}: does not fit {options.kind}; name another kind, or give --slots"
        )
    return slots
