"""The options of `helix runner …`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rich_click as click

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

GPU = click.option("--gpu", envvar="HELIX_GPU", help="Name of the GPU, as <node>-<index>.")
POOL = click.option(
    "--pool",
    envvar="HELIX_POOL",
    default="default",
    show_default=True,
    help="The pool of GPUs that it belongs to, as in [pool.<name>].",
)
DRAIN = click.option("--drain-s", type=click.FloatRange(0, 3600), default=10.0, show_default=True)

PROGRAM_OPTIONS = (
    click.option("--mode", type=click.Choice(["create", "finetune"]), default="create", show_default=True),
    click.option("--type", "kind", type=click.Choice(["text", "image"]), default="text", show_default=True),
    click.option("--model", required=True, help="Catalogue slug that the program stands for."),
    GPU,
    click.option("--device", help="Whose facts the heartbeats tell: cpu, cuda:0, …"),
    click.option(
        "--slots",
        type=click.IntRange(1, 10_000),
        help="Sessions it holds.  [default: 4 for each of --parallel]",
    ),
    DRAIN,
    POOL,
    click.option(
        "--protocol",
        type=click.Choice(["once", "lines", "json"]),
        default="once",
        show_default=True,
        help="A process for each task, or one that stays and is spoken to line by line.",
    ),
    click.option(
        "--template", help="Around a prompt, with {prompt} and {system}; by default the model's own."
    ),
    click.option(
        "--conversation", is_flag=True, help="Give it the whole conversation, not the last prompt alone."
    ),
    click.option("--time-limit-s", type=float, help="Of one task."),
    click.option("--start-limit-s", type=float, help="Of a program that stays, until it is ready."),
    click.option("--grace-s", type=float, help="Between SIGTERM and SIGKILL."),
    click.option("--ready-line", help="What a program that stays says when it is ready."),
    click.option("--end-line", help="The line that ends an answer of --protocol lines."),
    click.option("--most-output-bytes", type=int, help="Of one answer; a program that says more is stopped."),
    click.option("--most-stderr-bytes", type=int, help="The last of stderr, for the text of a failure."),
    click.option("--collect", help="Which files of the task's output folder are the result, as '*.png'."),
    click.option("--most-files", type=int),
    click.option("--most-file-bytes", type=int),
    click.option("--parallel", type=int, default=1, show_default=True, help="Tasks at once."),
)


def models_option(default_model: str) -> Decorator:
    """Add which models of one kind it serves."""
    return click.option(
        "--model",
        "models",
        multiple=True,
        default=(default_model,),
        show_default=True,
        help="Catalogue slug.",
    )


def serve_option(command: Command) -> Command:
    """Add what a runner of any kind serves."""
    return click.option(
        "--serve",
        "words",
        multiple=True,
        required=True,
        help="What it may be assigned, preferred first: text:<model>, image:<model> or batch:<model>.",
    )(command)


def gpu_options(what: Decorator) -> Decorator:
    """Add the options of a runner whose model runs in its own process; `what` adds the one that says what it runs."""
    options = (
        what,
        click.option("--device", help="cpu, cuda:0, …; by default the first GPU, else the processor."),
        GPU,
        click.option(
            "--slots",
            type=click.IntRange(1, 10_000),
            help="Sessions it holds; by default what memory allows.",
        ),
        click.option(
            "--threads", type=click.IntRange(1, 1024), help="Threads to compute with on a processor."
        ),
        DRAIN,
        POOL,
    )
    return _all(options)


def program_options(command: Command) -> Command:
    """Add the options of a runner that is any program."""
    return _all(PROGRAM_OPTIONS)(command)


def _all(options: tuple[Decorator, ...]) -> Decorator:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add
