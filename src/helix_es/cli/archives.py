"""Which log a command reads: a file or an export of an earlier one, the live one, or one after the other."""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import rich_click as click

from helix_es.archive import Archive, Chained, JsonLines, Live
from helix_es.cli.serve import NATS_OPTIONS, connection

RARELY = (200_000, 20, 50)  # records are no cycles: to look for some all the time costs a tenth of it


class Source(NamedTuple):
    """An archive, and whether it goes on while it is read."""

    archive: Archive
    live: bool


def archive_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--log`, `--and-live` and how to reach the live log; the command gets them for `opened`."""
    for option in NATS_OPTIONS[:4]:
        command = option(command)
    command = click.option(
        "--and-live",
        is_flag=True,
        help="After the end of --log go on with the live log, which goes on from there.",
    )(command)
    return click.option(
        "--log",
        "log_path",
        type=click.Path(exists=True, path_type=Path),
        help="A folder that 'helix export' wrote, or a .jsonl file; by default the live log.",
    )(command)


@asynccontextmanager
async def opened(options: dict[str, Any]) -> AsyncIterator[Source]:
    """Give what the options of `archive_options` name. Raises Misconfigured, Unavailable, Unreadable."""
    path: Path | None = options["log_path"]
    with _collecting_rarely():
        if path is not None and not options["and_live"]:
            yield Source(_stored(path), live=False)
            return
        from helix_es.jetstream.log import JetStreamLog

        connected = await connection("helix-replay", options)
        live = Live(JetStreamLog(connected))
        try:
            yield Source(live if path is None else Chained(_stored(path), live), live=True)
        finally:
            for seq, count in live.missing.items():
                print(
                    f"helix: {count} messages from sequence {seq} are not in the log: they were deleted, and what "
                    "follows may differ from what was",
                    file=sys.stderr,
                )
            await connected.close()


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def check_options(options: dict[str, Any]) -> None:
    """Raise UsageError for options that do not go together."""
    if options["and_live"] and options["log_path"] is None:
        raise click.UsageError("--and-live goes with --log FOLDER; without --log the live log is read anyway")


def _stored(path: Path) -> Archive:
    if path.is_file():
        return JsonLines(path)
    from helix_es.analytics.parquet import ParquetArchive

    return ParquetArchive(path)
