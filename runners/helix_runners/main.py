"""The composition root of runners: device, slots and work from options, then the loop."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from helix_es import telemetry
from helix_es.core.catalogue import Model, derived_slots, find
from helix_es.core.errors import Misconfigured, Rejected
from helix_es.core.events import GpuId, Workload
from helix_es.core.subjects import token
from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import Files
from helix_es.settings import Settings
from helix_runners import devices
from helix_runners.engine.quantisation import refusal
from helix_runners.loop import Offer, Runner
from helix_runners.work import Work

if TYPE_CHECKING:
    from helix_runners.command.settings import CommandSettings

Connect = Callable[[str, dict[str, Any]], Awaitable[Connection]]
MakeWork = Callable[[devices.Device, Files], Work]

BATCH_SLOTS = 1  # two trainings on one GPU are slower than one after the other, and need the memory of both
LAST_WORDS_S = 2.0  # to say why, and to close the connection


class RunnerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of a runner; `nats` are the options of the connection."""

    workloads: tuple[Workload, ...]
    """What it serves, preferred first; a model may be given by its full name."""
    pool: str = "default"
    device: str | None = None
    gpu: str | None = None
    """Name of the GPU; None: made of the machine's name."""
    slots: int | None = None
    """Sessions it holds; None: what its memory allows."""
    fits: bool = True
    """Whether the model runs in this process, so that it must fit the device."""
    drain_s: float = 10.0
    node: str
    nats: dict[str, Any]


async def serve(
    settings: Settings,
    options: RunnerOptions,
    make_work: MakeWork,
    connect: Connect,
    on_signals: Callable[[Callable[[], None]], None],
) -> None:
    """Serve until a signal comes, or the shop needs this GPU no more.

    Raises Misconfigured for what cannot be served.
    """
    device = _device(options.device)
    offer = _offer(settings, options, device)
    telemetry.configure("runner")
    connection = await connect(f"helix-runner-{offer.gpu}", options.nats)
    try:
        work = make_work(device, Files(connection, new_id=lambda: secrets.token_hex(10)))
        runner = Runner(
            connection, work, offer, new_incarnation=lambda: secrets.token_hex(6), on_stuck=end_soon
        )
        on_signals(runner.stop)
        await runner.run()
    finally:
        await connection.close()
        await asyncio.to_thread(telemetry.shutdown)


def end_soon() -> None:
    """End this process in a moment with exit code 1, if it has not ended by then: a hung thread must not keep it."""
    timer = threading.Timer(LAST_WORDS_S, os._exit, [1])
    timer.daemon = True
    timer.start()


def text_work(threads: int | None) -> MakeWork:
    """Return how to make the work of a text runner."""

    def make(device: devices.Device, files: Files) -> Work:
        # Here, before it joins: these take seconds, and what is imported holds up heartbeats.
        from helix_runners.adapters import AdapterFolders
        from helix_runners.engine.open import EngineSettings, open_engine
        from helix_runners.text import TextWork

        def open_model(model: Model) -> Any:
            return open_engine(
                EngineSettings(
                    source=model.source,
                    device=device.torch_name,
                    dtype=model.dtype,
                    quantisation=model.quantisation,
                    context_tokens=model.context_tokens,
                    threads=threads,
                )
            )

        return TextWork(open_model, AdapterFolders(files))

    return make


def image_work(threads: int | None) -> MakeWork:
    """Return how to make the work of an image runner."""

    def make(device: devices.Device, files: Files) -> Work:
        from helix_runners.image.work import ImageWork

        return ImageWork(files, device=device.torch_name, threads=threads)

    return make


def finetune_work(threads: int | None) -> MakeWork:
    """Return how to make the work of a fine-tune runner."""

    def make(device: devices.Device, files: Files) -> Work:
        from helix_runners.finetune.work import FinetuneWork

        return FinetuneWork(files, device=device.torch_name, threads=threads)

    return make


def any_work(threads: int | None) -> MakeWork:
    """Return how to make the work of a runner that does what it is assigned, one kind at a time."""

    def make(device: devices.Device, files: Files) -> Work:
        import torch

        import helix_runners.engine.open
        import helix_runners.finetune.work
        import helix_runners.image.work  # noqa: F401  # all now: see text_work
        from helix_runners.several import SeveralWorks

        # Taken now: a small model of images sets it to one for the whole process, also for what comes after.
        count = threads or torch.get_num_threads()
        return SeveralWorks(
            {
                ("create", "text"): lambda: text_work(count)(device, files),
                ("create", "image"): lambda: image_work(count)(device, files),
                ("finetune", "text"): lambda: finetune_work(count)(device, files),
            }
        )

    return make


def command_work(settings: CommandSettings) -> MakeWork:
    """Return how to make the work that a program does."""

    def make(_device: devices.Device, files: Files) -> Work:
        from helix_runners.command.work import CommandWork

        return CommandWork(files, settings)

    return make


def _device(name: str | None) -> devices.Device:
    found = devices.devices()[0] if name is None else devices.device(name)
    if found is None:
        there = ", ".join(each.torch_name for each in [*devices.devices(), devices.cpu()])
        raise Misconfigured(f"--device {name}: there is no such device here; there are: {there}")
    return found


def _offer(settings: Settings, options: RunnerOptions, device: devices.Device) -> Offer:
    try:
        index = device.torch_name.removeprefix("cuda:") if device.torch_name != "cpu" else "0"
        gpu = GpuId(token(options.gpu or f"{options.node}-{index}", "--gpu"))
        pool = token(options.pool, "--pool")
        workloads = [
            Workload(each.mode, each.type, find(settings.models, each.model)) for each in options.workloads
        ]
    except Rejected as error:
        raise Misconfigured(str(error)) from error
    workloads = list(dict.fromkeys(workloads))
    return Offer(
        gpu=gpu,
        device=device,
        workloads=workloads,
        models={each.model: settings.models[each.model] for each in workloads},
        slots=_slots_by_model(settings, options, device, workloads),
        pool=pool,
        heartbeat_s=settings.sessions.heartbeat_s,
        drain_s=options.drain_s,
        stalls=options.fits,
    )


def _slots_by_model(
    settings: Settings, options: RunnerOptions, device: devices.Device, workloads: list[Workload]
) -> dict[str, int]:
    """Return the sessions it holds of each model. Of a model that it also trains, that is the conversations: whoever
    serves several workloads does one training at a time, and the scheduler knows that."""
    slots: dict[str, int] = {}
    for each in workloads:
        slots[each.model] = max(slots.get(each.model, 0), _slots(settings, options, device, each))
    return slots


def _slots(settings: Settings, options: RunnerOptions, device: devices.Device, workload: Workload) -> int:
    """Return how many sessions of a workload this runner holds. Raises Misconfigured if it cannot run it at all."""
    slug = workload.model
    model = settings.models[slug]
    if model.type != workload.type:
        raise Misconfigured(f"--model {slug}: makes {model.type}, not {workload.type}")
    if not options.fits:
        return options.slots or 1
    refused = refusal(model.quantisation, device.torch_name) if workload.mode == "create" else None
    if refused is not None:
        raise Misconfigured(f"models.{slug}.quantisation: {refused}")
    fitting = derived_slots(model, device.memory_total_bytes, device.kind)
    configured = settings.coefficients.get(f"{device.kind}/{slug}")
    if not (options.slots or fitting if configured is None else configured):
        memory = device.memory_total_bytes / 2**30
        raise Misconfigured(f"model {slug}: does not fit {device.kind} with {memory:.1f} GiB")
    if workload.mode == "finetune":
        alone = all(each.mode == "finetune" for each in options.workloads)
        return (options.slots or BATCH_SLOTS) if alone else BATCH_SLOTS
    return options.slots or fitting
