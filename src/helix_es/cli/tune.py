"""`helix tune`: the coefficient and the fleet that reach a target at least cost."""

from __future__ import annotations

import sys
from collections import Counter
from math import prod
from typing import Any

import rich_click as click

from helix_es.cli.asked import Asked, asking, understood
from helix_es.cli.given import Case, case_of
from helix_es.cli.output import FAILED, json_option, show_json, show_table
from helix_es.cli.presented import check_outputs, json_rows, plot, write_parquet
from helix_es.cli.simulating import Progress, ended_well, waited
from helix_es.core.errors import Misconfigured
from helix_projections.simulation import frontier
from helix_projections.simulation.answerable import kinds_of
from helix_projections.simulation.sweep import Answer, crew
from helix_projections.simulation.table import Table, as_csv
from helix_projections.simulation.target import parse
from helix_projections.simulation.tune import Prefer, Search, Tuned
from helix_projections.simulation.tune import tune as searched

MOST_POINTS = 100_000  # of the space that is searched; a small part of it is simulated
FIXED = ("time_scale", "thin")  # they change what is asked, not the answer


@click.command()
@asking
@click.option(
    "--target",
    required=True,
    help="'p95 first token <= 1.5s and share of continued turns within 1.5s >= 95%'",
)
@click.option("--price", "prices", multiple=True, metavar="KIND=N", help="Of one GPU; else each counts as 1.")
@click.option(
    "--prefer",
    type=click.Choice(["cost", "reserved"]),
    default="cost",
    show_default=True,
    help="Least cost, or most GPUs kept free.",
)
@click.option(
    "--all", "every", is_flag=True, help="Simulate every combination, not only those near the best."
)
@json_option
def tune(target: str, prices: tuple[str, ...], prefer: Prefer, every: bool, **options: Any) -> None:
    """Find the coefficient and the fleet that reach a target at least cost; exit 1 if none does.

    Example: helix tune --trace mooncake.csv --gpus 4..32 --coefficient mistral=1..16 --target "p95 first token <= 1.5s"
    """
    with ended_well():
        asked = understood(options)
        targets = parse(target)
        _check(asked, options)
        case = waited(case_of(options, asked, targets))
        search = Search(
            axes=asked.axes,
            targets=targets,
            prices=_prices(prices, kinds_of(case.question)),
            fleet=dict(Counter(offer.kind for offer in case.question.base.offers)),
            prefer=prefer,
            every=every,
        )
        progress = Progress()
        with crew(case.question, case.arrivals, asked.processes) as hired:
            found = searched(search, hired, progress)
        progress.end()
        _present(case, search, found, options)
    if found.best is None:
        raise SystemExit(FAILED)


def _check(asked: Asked, options: dict[str, Any]) -> None:
    """Refuse what has no answer, before anything is simulated. Raises UsageError, Misconfigured."""
    check_outputs(options, asked.axes)
    for axis in asked.axes:
        if axis.setting in FIXED and axis.varied:
            raise Misconfigured(
                f"--{axis.setting.replace('_', '-')}: one load has one answer; give a single value"
            )
    combinations = prod(len(axis.values) for axis in asked.axes)
    if combinations > MOST_POINTS:
        raise Misconfigured(
            f"{combinations:,} combinations are too many (at most {MOST_POINTS:,}): give steps, as in 4..32:4"
        )
    if not any(axis.varied for axis in asked.axes):
        raise Misconfigured(
            "nothing to choose from: give ranges, as in --gpus 4..32 --coefficient mistral=1..16"
        )


def _prices(words: tuple[str, ...], kinds: list[str]) -> dict[str, float]:
    """Return what one GPU of each kind costs. Raises Misconfigured, also for a kind that is not among `kinds`."""
    found = {}
    for word in words:
        kind, _, text = word.partition("=")
        try:
            found[kind] = float(text)
        except ValueError:
            found[kind] = -1.0
        if not kind or not 0 <= found[kind] < 1e9:
            raise Misconfigured(f"--price {word}: give KIND=NUMBER, as in a100-80=2.5")
        if kind not in kinds:
            raise Misconfigured(f"--price {word}: the fleet has no {kind}; its kinds are {', '.join(kinds)}")
    return found


def _present(case: Case, search: Search, found: Tuned, options: dict[str, Any]) -> None:
    table = Table(
        about=case.about,
        axes=search.axes,
        answers=found.simulated,
        within_ms=case.question.within_ms,
        targets=search.targets,
    )
    if options["as_json"]:
        show_json(_as_json(table, search, found))
    elif options["as_csv"]:
        sys.stdout.write(as_csv(table))
    else:
        print("\n".join(table.about.lines()) + "\n")
        answers = frontier.shown(search, found)
        show_table(frontier.columns(search), [list(row) for row in frontier.rows(search, found, answers)])
        if len(answers) < len(found.simulated):
            print(f"({len(found.simulated)} combinations were simulated; --csv and --json show all of them)")
        print(f"\n{frontier.sentence(search, found)}")
    write_parquet(table, options["parquet"])
    if options["plots"]:
        drawn = frontier.frontier_picture(search, found, case.about)
        for name in options["plots"]:
            plot(drawn, name)


def _as_json(table: Table, search: Search, found: Tuned) -> dict[str, Any]:
    def point(answer: Answer) -> dict[str, Any]:
        return {
            "settings": answer.point,
            "cost": search.cost(answer.point),
            "reached": search.slack(answer) >= 1,
            "targets": {target.words(): answer.measures.get(target.measure) for target in search.targets},
        }

    return {
        "about": table.about,
        "answer": frontier.sentence(search, found),
        "best": None if found.best is None else point(found.best),
        "closest": point(found.closest),
        "frontier": [point(each) for each in found.frontier],
        "points": found.points,
        "rows": json_rows(table),
    }
