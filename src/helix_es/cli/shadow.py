"""`helix shadow`: a second scheduler with other rules beside the real one; it appends nothing and says what differs."""

from __future__ import annotations

import asyncio
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from helix_es.cli.archives import archive_options, check_options, opened
from helix_es.cli.output import json_option, run, show_json, show_table
from helix_es.cli.serve import connection, on_signals
from helix_es.settings import read

if TYPE_CHECKING:
    from helix_es.core.events import Policy
    from helix_es.core.shadow import Report

COLUMNS = [
    "decision",
    "in the log",
    "the same",
    "shadow sooner",
    "only in the log",
    "only the shadow",
    "by chance",
]
SHOWN = 15  # differences in words


@click.command()
@archive_options
@click.option(
    "--config",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML configuration with the other rules.",
)
@click.option(
    "--for",
    "for_s",
    type=click.FloatRange(0.1),
    help="Seconds to follow the live log; by default until Ctrl-C.",
)
@json_option
def shadow(config: Path, for_s: float | None, as_json: bool, **options: Any) -> None:
    """Follow the log with other rules and report what they would have decided. Nothing is appended.

    With --log the whole of it is compared; else the live log, from now on. The floor is the real one: what GPUs would
    hold or compute otherwise under the other rules, 'helix simulate' says.
    """
    check_options(options)
    if options["log_path"] is not None and for_s is not None:
        raise click.UsageError("--for goes with the live log; a --log ends by itself")
    if options["and_live"]:
        raise click.UsageError("--and-live is not for 'helix shadow': without --log it follows the live log")

    async def work() -> None:
        policy = read(config).policy
        if options["log_path"] is None:
            report, same = await _live(policy, for_s, options)
        else:
            report, same = await _past(policy, options)
        if as_json:
            own = msgspec.to_builtins(same.decisions)
            show_json({**msgspec.to_builtins(report), "waits": _waits(report), "same_rules": own})
        else:
            _show(report, same)

    run(work)


async def _past(policy: Policy, options: dict[str, Any]) -> tuple[Report, Report]:
    from helix_es.core.shadow import Shadow

    beside, same = Shadow(policy), Shadow(None)
    async with opened(options) as source:
        async for records in source.archive.read():
            for record in records:
                beside.take(record)
                same.take(record)
    return beside.report(), same.report()


async def _live(policy: Policy, for_s: float | None, options: dict[str, Any]) -> tuple[Report, Report]:
    from helix_projections.shadow import LiveShadow

    connected = await connection("helix-shadow", options)
    try:
        beside = LiveShadow(connected, policy)
        following = asyncio.create_task(beside.run())
        stop = asyncio.Event()
        on_signals(stop.set)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({following, stopping}, timeout=for_s, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if following.done():
            await following
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        return beside.shadow.report(), beside.same.report()
    finally:
        await connected.close()


def _chance(same: Report, kind: str) -> int:
    """Return how many differ already for a shadow with the log's own rules: it looks at other moments."""
    count = same.decisions.get(kind)
    return 0 if count is None else count.sooner + count.only_live + count.only_shadow


def _waits(report: Report) -> dict[str, dict[str, float]] | None:
    """Return mean and quantiles of the waits that both would have ended, ms."""
    if len(report.live_wait_ms) < 2:
        return None
    found = {}
    for name, waits in (("live", report.live_wait_ms), ("shadow", report.shadow_wait_ms)):
        cuts = statistics.quantiles(waits, n=20, method="inclusive")
        found[name] = {"mean": statistics.fmean(waits), "p50": cuts[9], "p95": cuts[18]}
    return found


def _show(report: Report, same: Report) -> None:
    rows = [
        [kind, each.live, each.same, each.sooner, each.only_live, each.only_shadow, _chance(same, kind)]
        for kind, each in report.decisions.items()
    ]
    print(f"sequences {report.from_seq:,} to {report.last_seq:,}; nothing was appended")
    show_table(COLUMNS, rows) if rows else print("nothing was to be decided")
    waits = _waits(report)
    if waits is not None:
        print(f"\nwaits of the {len(report.live_wait_ms):,} first admissions that both made:")
        show_table(
            ["rules", "mean", "p50", "p95"],
            [
                [name, *(f"{each[key] / 1000:.2f} s" for key in ("mean", "p50", "p95"))]
                for name, each in waits.items()
            ],
        )
    if report.told:
        print("\nthe last differences:")
    for told in report.told[-SHOWN:]:
        moment = datetime.fromtimestamp(told.at_ms / 1000, UTC)
        print(f"  {moment:%H:%M:%S.%f}"[:-3] + f"  seq {told.seq}  {told.what}")
