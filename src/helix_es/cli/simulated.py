"""`helix runner simulated`: many GPUs in one process that compute nothing, to load the real system."""

from __future__ import annotations

from typing import Any

import rich_click as click

from helix_es.cli.output import run
from helix_es.cli.serve import connection, log_lines, node_name, on_signals, read_or_fail, runner, served


@runner.command("simulated")
@served
@click.option("--model", "models", multiple=True, required=True, help="Catalogue slug; may be given again.")
@click.option("--batch", is_flag=True, help="Offer fine-tunes of the text models as well.")
@click.option("--kind", required=True, help="Kind of each GPU, as in a100-80.")
@click.option("--count", type=click.IntRange(1, 20_000), default=1, show_default=True, help="GPUs.")
@click.option("--gpu-prefix", help="GPUs are called <prefix>-<index>.  [default: sim-<node>]")
@click.option(
    "--slots", type=click.IntRange(1, 10_000), help="Sessions that each holds; by default as memory allows."
)
@click.option("--pool", default="default", show_default=True, help="Pool that they belong to.")
@click.option("--first-token-ms", type=click.IntRange(0, 600_000), default=200, show_default=True)
@click.option("--tokens-per-s", type=click.FloatRange(0.1, 1e6), default=40.0, show_default=True)
@click.option("--load-ms", type=click.IntRange(0, 3_600_000), default=2000, show_default=True)
@click.option(
    "--step-ms", type=click.IntRange(0, 600_000), default=500, show_default=True, help="Pictures, fine-tunes."
)
@click.option(
    "--checkpoint-every", type=click.IntRange(1, 1000), default=10, show_default=True, help="Steps."
)
@click.option(
    "--fail-rate", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of the attempts."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of durations and failures.")
@click.option("--no-deltas", is_flag=True, help="Say nothing before the end: measures dispatch alone.")
@click.option("--drain-s", type=click.FloatRange(0, 3600), default=10.0, show_default=True)
def simulated(config: str | None, **options: Any) -> None:
    """Simulate GPUs: they pull, wait by a model of service and stream synthetic tokens."""
    from helix_es.settings import read
    from helix_runners.simulated.main import SimulatedOptions, serve
    from helix_runners.simulated.service import Service

    log_lines()
    settings = read_or_fail(lambda: read(config))
    service = Service(**{name: options.pop(name) for name in Service.__struct_fields__})
    options["gpu_prefix"] = options["gpu_prefix"] or f"sim-{node_name()}"
    given = {name: options.pop(name) for name in SimulatedOptions.__struct_fields__ if name in options}
    deltas = not options.pop("no_deltas")
    made = SimulatedOptions(**given, deltas=deltas, service=service, nats=options)
    run(lambda: serve(settings, made, connection, on_signals), fast=True)
