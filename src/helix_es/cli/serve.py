"""The commands that serve: `scheduler`, `api`, `runner …`."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich_click as click
import structlog

from helix_es.cli.client import DATA_DIR, written_url
from helix_es.cli.output import fail, run
from helix_es.cli.runner_options import gpu_options, models_option, program_options, serve_option
from helix_es.core.errors import Misconfigured
from helix_es.core.events import Kind, Mode, Workload

NATS_OPTIONS = (
    click.option(
        "--nats",
        "nats_url",
        envvar="HELIX_NATS_URL",
        help=f"URL of the NATS server; by default what {DATA_DIR}/nats.url says, else nats://127.0.0.1:4222.",
    ),
    click.option("--nats-user", envvar="HELIX_NATS_USER", help="User of the NATS server; names its inbox."),
    click.option("--nats-seed-file", envvar="HELIX_NATS_SEED_FILE", help="File with its nkey seed."),
    click.option("--nats-ca-file", envvar="HELIX_NATS_CA_FILE", help="CA certificate: speaks TLS."),
    click.option("--config", envvar="HELIX_CONFIG", type=click.Path(), help="TOML configuration."),
)


def served(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every serving process has."""
    for option in NATS_OPTIONS:
        command = option(command)
    return command


def log_lines() -> None:
    """Logs for humans, a line each, on stderr."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def connection(name: str, options: dict[str, Any]) -> Any:
    """Return a connection to the server that the options name."""
    from helix_es.jetstream.client import NatsSettings, connect

    user = options["nats_user"]
    settings = NatsSettings(
        url=options["nats_url"] or written_url("nats.url") or "nats://127.0.0.1:4222",
        name=name,
        nkey_seed_file=options["nats_seed_file"],
        tls_ca_file=options["nats_ca_file"],
        inbox_prefix=f"_INBOX_{user}" if user else "_INBOX",
    )
    return await connect(settings)


def on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def cancel(task: asyncio.Task[None]) -> None:
    """Cancel `task`."""
    task.cancel()


def node_name() -> str:
    """Return this machine's name as a subject token."""
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:40] or "node"


@click.command()
@served
@click.option("--replicas", type=click.IntRange(1, 5), default=1, help="Replicas of each stream.")
def scheduler(config: str | None, replicas: int, **options: Any) -> None:
    """Fold the log, decide, append. Start as many as you like: one acts, the others stand by."""
    from helix_es import telemetry
    from helix_es.settings_file import SettingsFile
    from helix_projections.scheduler import Scheduler

    log_lines()

    async def work() -> None:
        settings = SettingsFile(config)
        telemetry.configure("scheduler")
        connected = await connection("helix-scheduler", options)
        name = f"{node_name()}-{secrets.token_hex(4)}"
        serving = asyncio.create_task(Scheduler(connected, settings, name=name, replicas=replicas).run())
        on_signals(lambda: cancel(serving))
        try:
            await serving
        except asyncio.CancelledError:
            pass
        finally:
            await connected.close()
            telemetry.shutdown()

    run(work, fast=True)


@click.command()
@served
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--data-dir",
    envvar="HELIX_DATA_DIR",
    default=DATA_DIR,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Its folder 'analytics' is what POST /api/v1/sql asks, unless [analytics] folder says otherwise.",
)
def api(config: str | None, host: str, port: int, data_dir: Path, **options: Any) -> None:
    """Serve HTTP: sessions, the floor, the OpenAI-compatible routes, the web page."""
    import uvicorn

    from helix_es import telemetry
    from helix_es.api.app import create_app
    from helix_es.api.services import build
    from helix_es.api.tokens import TokenCounter
    from helix_es.cache import model_folders
    from helix_es.settings import read

    log_lines()

    async def work() -> None:
        settings = read(config)
        telemetry.configure("api")
        services = build(
            await connection("helix-api", options),
            settings,
            TokenCounter(model_folders()),
            new_id=lambda: secrets.token_hex(10),
        )
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(services, data_dir / "analytics"),
                host=host,
                port=port,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=3,
                server_header=False,
            )
        )
        await server.serve()

    run(work, fast=True)


class _Runners(click.RichGroup):
    """Whatever is not here is in a module of its own, which needs this one."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), "simulated"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name != "simulated":
            return super().get_command(ctx, cmd_name)
        from helix_es.cli.simulated import simulated

        return simulated


@click.group(cls=_Runners)
def runner() -> None:
    """Run a model on a GPU of this machine."""


@runner.command("text")
@served
@gpu_options(models_option("smollm2"))
def runner_text(config: str | None, models: tuple[str, ...], **options: Any) -> None:
    """Serve text models; many conversations, and many adapters, share one model."""
    from helix_runners.main import text_work

    wanted = asked(models, "create", "text")
    _serve(config, lambda _: {"workloads": wanted}, text_work(options.pop("threads")), options)


@runner.command("image")
@served
@gpu_options(models_option("scenes"))
def runner_image(config: str | None, models: tuple[str, ...], **options: Any) -> None:
    """Serve image models; several pictures are made at once, step by step."""
    from helix_runners.main import image_work

    wanted = asked(models, "create", "image")
    _serve(config, lambda _: {"workloads": wanted}, image_work(options.pop("threads")), options)


@runner.command("finetune")
@served
@gpu_options(models_option("smollm2"))
def runner_finetune(config: str | None, models: tuple[str, ...], **options: Any) -> None:
    """Train adapters, one at a time; this GPU serves no chats."""
    from helix_runners.main import finetune_work

    wanted = asked(models, "finetune", "text")
    _serve(config, lambda _: {"workloads": wanted}, finetune_work(options.pop("threads")), options)


@runner.command("any")
@served
@gpu_options(serve_option)
def runner_any(config: str | None, words: tuple[str, ...], **options: Any) -> None:
    """Serve what is wanted most, one model at a time: the scheduler gives this GPU around."""
    from helix_es.settings import Settings, served
    from helix_runners.main import any_work

    def about(settings: Settings) -> dict[str, Any]:
        return {"workloads": tuple(served(word, settings.models) for word in words)}

    _serve(config, about, any_work(options.pop("threads")), options)


@runner.command("command")
@served
@program_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def runner_command(
    config: str | None, kind: Kind, mode: Mode, model: str, command: tuple[str, ...], **options: Any
) -> None:
    """Make any program a runner: COMMAND, behind --, reads a prompt on stdin and answers on stdout."""
    from helix_runners.command.settings import CommandSettings, checked
    from helix_runners.main import command_work

    names = [name for name in CommandSettings.__struct_fields__ if name in options]
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    settings = read_or_fail(lambda: checked(CommandSettings(command=list(command), **given)))
    options["slots"] = options["slots"] or 4 * settings.parallel
    # It is beside the device's own runner, so it needs another name; who wants a lasting one gives it.
    options["gpu"] = options["gpu"] or f"{node_name()}-command-{secrets.token_hex(3)}"
    about = {"workloads": asked((model,), mode, kind), "fits": False}
    _serve(config, lambda _: about, command_work(settings), options)


def asked(models: tuple[str, ...], mode: Mode, kind: Kind) -> tuple[Workload, ...]:
    """Return the workloads of one kind with these models."""
    return tuple(Workload(mode, kind, model) for model in models)


def _serve(
    config: str | None, about: Callable[[Any], dict[str, Any]], make_work: Any, options: dict[str, Any]
) -> None:
    """Serve what `about` says, given the settings."""
    from helix_es.settings import read
    from helix_runners.main import RunnerOptions, serve

    log_lines()
    settings = read_or_fail(lambda: read(config))
    given = {name: options.pop(name) for name in RunnerOptions.__struct_fields__ if name in options}
    told = read_or_fail(lambda: about(settings))
    made = RunnerOptions(**told, **given, node=node_name(), nats=options)
    run(lambda: serve(settings, made, make_work, connection, on_signals), fast=True)


def read_or_fail(read: Callable[[], Any]) -> Any:
    """Return what `read` gives; a wrong configuration ends the command."""
    try:
        return read()
    except Misconfigured as error:
        fail(str(error), 2)
