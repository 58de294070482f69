"""`helix analytics`: keeps the log as tables."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from helix_es.cli.client import DATA_DIR
from helix_es.cli.output import fail, run
from helix_es.cli.serve import cancel, connection, log_lines, on_signals, read_or_fail, served

if TYPE_CHECKING:
    from helix_es.settings import Settings

MISSING = "DuckDB and pyarrow are not installed: pip install 'helix-es[analytics]'"
# The fold makes many objects and no cycles: looking for these took a fifth of the time.
GARBAGE = (100_000, 50, 100)
# Whoever commits wants the interpreter back after each call of DuckDB: with the usual 5 ms it mostly waited for that.
SWITCH_S = 0.001


@click.command()
@served
@click.option("--data-dir", default=DATA_DIR, show_default=True, type=click.Path(file_okay=False))
@click.option("--once", is_flag=True, help="End when all that the log has is in the tables.")
def analytics(config: str | None, data_dir: str, once: bool, **options: Any) -> None:
    """Follow the log into a DuckDB database, for `helix sql`; and export it as Parquet. Start one for a shop."""
    from helix_es.settings import read

    try:
        from helix_projections.analytics.projection import Plan, Projection
    except ModuleNotFoundError:
        fail(MISSING)
    log_lines()
    gc.set_threshold(*GARBAGE)
    sys.setswitchinterval(SWITCH_S)

    async def work() -> None:
        settings = read_or_fail(lambda: read(config))
        plan = Plan(
            folder=folder_of(settings, data_dir),
            parquet=parquet_of(settings, data_dir),
            export_every_s=0 if once else settings.analytics.export_every_s,
            fresh_s=settings.analytics.fresh_s,
            once=once,
        )
        connected = await connection("helix-analytics", options)
        serving = asyncio.create_task(Projection(connected, plan).run())
        on_signals(lambda: cancel(serving))
        try:
            await serving
        except asyncio.CancelledError:
            pass
        finally:
            await connected.close()

    run(work, fast=True)


def folder_of(settings: Settings, data_dir: str) -> Path:
    """Return where the database and its snapshot are."""
    return Path(settings.analytics.folder or Path(data_dir) / "analytics").resolve()


def parquet_of(settings: Settings, data_dir: str) -> Path:
    """Return where the running process exports to."""
    return Path(settings.analytics.parquet or folder_of(settings, data_dir) / "parquet").resolve()
