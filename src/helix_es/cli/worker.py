"""`helix worker`: a worker that speaks only HTTP and runs a command for each task."""

from __future__ import annotations

import shutil
from urllib.parse import urlencode

import rich_click as click

from helix_es.cli.client import api_key, url_option
from helix_es.cli.output import FAILED, WRONG_USE, fail
from helix_es.core.errors import Misconfigured

WRONG = frozenset({400, 401, 403, 404, 422})  # what another option or key would have avoided


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@url_option
@click.option("--model", required=True, help="Catalogue slug or full name.")
@click.option(
    "--mode",
    default="create",
    show_default=True,
    type=click.Choice(["create", "finetune"], case_sensitive=False),
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(["text", "image"], case_sensitive=False),
    help="By default the model's.",
)
@click.option("--name", envvar="HELIX_WORKER", help="Of this worker, its own.  [default: the host's name]")
@click.option("--slots", default=1, show_default=True, type=click.IntRange(1, 64), help="Sessions it holds.")
@click.option(
    "--lease-s", default=30.0, show_default=True, type=click.FloatRange(3, 3600), help="Silence allowed."
)
@click.option("--timeout-s", type=click.FloatRange(min=0.1), help="Longest time for one task.")
@click.option("--drain-s", default=10.0, show_default=True, type=click.FloatRange(0, 3600))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def worker(
    url: str,
    model: str,
    mode: str,
    kind: str | None,
    name: str | None,
    slots: int,
    lease_s: float,
    timeout_s: float | None,
    drain_s: float,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND for each task that the API has: the prompt on its stdin, its stdout is the answer.

    It needs no NATS, only the API: `helix worker --model mistral -- ./answer.sh`.
    """
    from helix_es import httpworker

    if shutil.which(command[0]) is None:
        raise click.UsageError(f"{command[0]!r} is not a program that can be run here")
    query = {"mode": mode, "model_name": model, "slots": slots, "lease_s": f"{lease_s:g}"}
    query |= {"type": kind} if kind is not None else {}
    try:
        api = httpworker.Api(f"{url}/api/v1/worker/task?{urlencode(query)}", name, api_key())
        serving = httpworker.Worker(api, drain_s=drain_s)
        click.echo(f"worker {api.name} asks {url} for {model}; Ctrl-C ends it", err=True)
        serving.run(httpworker.command(list(command), timeout_s=timeout_s))
    except httpworker.Refused as error:
        fail(str(error), WRONG_USE if error.status in WRONG else FAILED)
    except Misconfigured as error:
        fail(str(error), WRONG_USE)
