"""The composition root of runners: device, slots and engine from options, then the loop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from helix_es import telemetry
from helix_es.core.catalogue import Model, derived_slots, find
from helix_es.core.errors import Misconfigured, Rejected
from helix_es.core.events import GpuId
from helix_es.core.subjects import token
from helix_es.jetstream.client import Connection
from helix_es.settings import Settings
from helix_runners import devices
from helix_runners.engine.port import TextEngine
from helix_runners.loop import Offer, Runner
from helix_runners.text import TextWork

Connect = Callable[[str, dict[str, Any]], Awaitable[Connection]]


async def text_runner(
    settings: Settings,
    names: tuple[str, ...],
    options: dict[str, Any],
    connect: Connect,
    on_signals: Callable[[Callable[[], None]], None],
    node: str,
) -> None:
    """Serve the models called `names` until a signal comes. Raises Misconfigured for what cannot be served."""
    device = _device(options["device"])
    offer = _offer(settings, names, device, options, node)
    telemetry.configure("runner")

    def open_model(model: Model) -> TextEngine:
        from helix_runners.engine.open import EngineSettings, open_engine  # torch takes seconds to import

        return open_engine(
            EngineSettings(
                source=model.source,
                device=device.torch_name,
                dtype=model.dtype,
                context_tokens=model.context_tokens,
                threads=options["threads"],
            )
        )

    connection = await connect(f"helix-runner-{offer.gpu}", options)
    runner = Runner(connection, TextWork(open_model), offer, new_incarnation=lambda: secrets.token_hex(6))
    on_signals(runner.stop)
    try:
        await runner.run()
    finally:
        await connection.close()
        await asyncio.to_thread(telemetry.shutdown)


def _device(name: str | None) -> devices.Device:
    found = devices.devices()[0] if name is None else devices.device(name)
    if found is None:
        there = ", ".join(each.torch_name for each in [*devices.devices(), devices.cpu()])
        raise Misconfigured(f"--device {name}: there is no such device here; there are: {there}")
    return found


def _offer(
    settings: Settings, names: tuple[str, ...], device: devices.Device, options: dict[str, Any], node: str
) -> Offer:
    try:
        slugs = [find(settings.models, name) for name in names]
        index = device.torch_name.removeprefix("cuda:") if device.torch_name != "cpu" else "0"
        gpu = GpuId(token(options["gpu"] or f"{node}-{index}", "--gpu"))
    except Rejected as error:
        raise Misconfigured(str(error)) from error
    models = {slug: settings.models[slug] for slug in slugs}
    slots: dict[str, int] = {}
    for slug, model in models.items():
        if model.type != "text":
            raise Misconfigured(f"--model {slug}: makes {model.type}, not text")
        configured = settings.coefficients.get(f"{device.kind}/{slug}")
        slots[slug] = options["slots"] or derived_slots(model, device.memory_total_bytes)
        if not (slots[slug] if configured is None else configured):
            raise Misconfigured(
                f"--model {slug}: does not fit {device.kind} with {device.memory_total_bytes / 2**30:.1f} GiB"
            )
    return Offer(
        gpu=gpu,
        device=device,
        models=models,
        slots=slots,
        heartbeat_s=settings.sessions.heartbeat_s,
        drain_s=options["drain_s"],
    )
