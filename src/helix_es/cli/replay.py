"""`helix replay`: the shop at any instant of its log, a stretch of it as a film, or every decision made again."""

from __future__ import annotations

import sys
from typing import Any

import rich_click as click
import structlog

from helix_es.cli.archives import Source, archive_options, check_options, opened
from helix_es.cli.instants import Moment, When
from helix_es.cli.output import json_option, run, show_json
from helix_es.cli.seek import seek
from helix_es.cli.serve import log_lines
from helix_es.core.timeline import NO_END, Timeline

SPEED = 60.0


@click.command()
@click.option("--at", "at", type=Moment(), help="Show the shop after a sequence, or at a time.")
@click.option("--follow", is_flag=True, help="Play a stretch like a film; Ctrl-C ends.")
@click.option("--verify", is_flag=True, help="Make every decision again and compare.")
@click.option(
    "--other-rules", is_flag=True, help="With --verify: pass over decisions by another release's rules."
)
@click.option("--from", "start", type=Moment(), help="With --follow: begin there; else at the beginning.")
@click.option("--to", "end", type=Moment(), help="With --follow: end there; else at the end, or never.")
@click.option(
    "--speed",
    type=click.FloatRange(0.001, 1_000_000),
    help="With --follow: so many times as fast as it was.  [default: 60]",
)
@archive_options
@json_option
def replay(at: When | None, follow: bool, verify: bool, as_json: bool, **options: Any) -> None:
    """Look back: the floor, the door and each binding as they were.

    An instant is a sequence (1234), a time (2026-11-24T12:30:00Z; without a zone it is UTC) or how long ago (-10m):
    before the end of a recording, before now in a log that goes on.
    """
    _check(at, follow, verify, options)
    if follow and sys.stdout.isatty():
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # lines would tear the picture
    else:
        log_lines()

    async def work() -> None:
        async with opened(options) as source:
            if verify:
                from helix_es.cli.verified import verify as verified

                await verified(source.archive, as_json=as_json, other_rules=options["other_rules"])
            elif follow:
                from helix_es.cli.filmed import Wanted, play

                speed = options["speed"] or SPEED
                wanted = Wanted(start=options["start"], end=options["end"], speed=speed, as_json=as_json)
                await play(source, wanted)
            elif at is not None:
                await _show(source, at, as_json=as_json)

    run(work)


def _check(at: When | None, follow: bool, verify: bool, options: dict[str, Any]) -> None:
    """Raise UsageError for options that do not go together."""
    if (at is not None) + follow + verify != 1:
        raise click.UsageError("give one of --at TIME|SEQ, --follow and --verify")
    if options["other_rules"] and not verify:
        raise click.UsageError("--other-rules goes with --verify")
    if not follow:
        given = [name for name in ("start", "end", "speed") if options[name] is not None]
        if given:
            raise click.UsageError(
                f"--{given[0].replace('start', 'from').replace('end', 'to')} goes with --follow"
            )
    check_options(options)


async def _show(source: Source, at: When, *, as_json: bool) -> None:
    from helix_es.cli.pictured import picture

    timeline = Timeline(source.archive.read, every=NO_END)  # one seek: nobody goes back
    try:
        state = await seek(timeline, at, live=source.live)
    finally:
        await timeline.close()
    shown = picture(state, source.archive.name)
    if as_json:
        show_json(shown)
        return
    from rich.console import Console

    from helix_es.cli.then import screen

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(screen(shown))
