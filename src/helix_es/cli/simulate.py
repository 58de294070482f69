"""`helix simulate`: a trace or a recorded log once more, under other rules, on another fleet."""

from __future__ import annotations

from math import prod
from typing import Any

import rich_click as click

from helix_es.cli.asked import asking, understood
from helix_es.cli.given import case_of
from helix_es.cli.output import json_option
from helix_es.cli.presented import check_outputs, present
from helix_es.cli.simulating import Progress, ended_well, waited
from helix_projections.simulation.axis import points
from helix_projections.simulation.sweep import sweep
from helix_projections.simulation.table import Table
from helix_projections.simulation.target import parse

MOST_POINTS = 10_000  # more are a mistake: it would run for hours


@click.command()
@asking
@click.option("--target", "target", help="Marks it: 'p95 first token <= 1.5s and p95 wait <= 10s'.")
@json_option
def simulate(target: str | None, **options: Any) -> None:
    """Simulate a trace or a log under other rules: every combination of the ranges, on all cores.

    Time is virtual; what is decided is decided by the scheduler's own code. Example: helix simulate --trace
    mooncake.csv --gpus 8xa100-80 --coefficient mistral=1..16 --reserved 0..2 --plot what-if.png
    """
    with ended_well():
        asked = understood(options)
        check_outputs(options, asked.axes)
        targets = parse(target) if target else ()
        combinations = prod(len(axis.values) for axis in asked.axes)
        if combinations > MOST_POINTS:
            raise click.UsageError(
                f"{combinations:,} combinations are too many (at most {MOST_POINTS:,}): give steps, as in 4..32:4"
            )
        case = waited(case_of(options, asked, targets))
        log = case.was is not None
        at = points(asked.axes)
        jobs = [{}, *at] if log and asked.axes else at
        progress = Progress()
        answers = sweep(case.question, case.arrivals, jobs, processes=asked.processes, told=progress)
        progress.end()
        table = Table(
            about=case.about,
            axes=asked.axes,
            answers=answers[1:] if log else answers,
            within_ms=asked.within_ms,
            targets=targets,
            was=case.was,
            own=answers[0].measures if log else None,
        )
        present(table, options)
