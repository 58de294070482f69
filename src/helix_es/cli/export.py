"""`helix export`: the log and its tables as Parquet files, for any other tool, and to replay from."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from helix_es.cli.analytics import MISSING, folder_of
from helix_es.cli.client import DATA_DIR
from helix_es.cli.output import fail, json_option, run, show_json
from helix_es.cli.serve import connection, log_lines, read_or_fail, served
from helix_es.core.errors import Misconfigured

if TYPE_CHECKING:
    from helix_projections.analytics.exporting import Exported

SNAPSHOT_S = 10.0  # how long a running process may take for a snapshot of now; it is then taken as it is
LOOK_EVERY_S = 0.1


@click.command()
@served
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--data-dir", default=DATA_DIR, show_default=True, type=click.Path(file_okay=False))
@click.option(
    "--from",
    "from_seq",
    type=click.IntRange(1),
    help="First sequence of a new export.  [default: the log's first]",
)
@click.option("--format", "form", type=click.Choice(["parquet"]), default="parquet", show_default=True)
@json_option
def export(config: str | None, directory: Path, from_seq: int | None, as_json: bool, **options: Any) -> None:
    """Bring the export in DIRECTORY up to the log: events once each, by day, and all other tables anew.

    What a running 'helix analytics' has is taken from there; without one, the log is read.
    """
    try:
        import helix_projections.analytics.exporting  # noqa: F401
    except ModuleNotFoundError:
        fail(MISSING)
    from helix_es.settings import read

    log_lines()
    options.pop("form")
    folder = folder_of(read_or_fail(lambda: read(config)), options.pop("data_dir"))

    async def work() -> None:
        done = await _export(folder, directory, from_seq, options)
        if as_json:
            show_json({"directory": str(directory), "last_seq": done.last_seq, "events": done.events})
            return
        print(f"{directory}: {done.events:,} events came on top, up to sequence {done.last_seq:,}")

    run(work)


async def _export(folder: Path, directory: Path, from_seq: int | None, options: dict[str, Any]) -> Exported:
    from helix_es.analytics.schema import DATABASE, SNAPSHOT
    from helix_projections.analytics.opening import in_use

    if from_seq is not None and (directory / "events").exists():
        raise Misconfigured(
            f"--from is for a new export, and {directory} holds one; leave it out, or name another"
        )
    if in_use(folder):
        await _wish(folder)
        return _exported(folder / SNAPSHOT, directory, from_seq)
    with tempfile.TemporaryDirectory(prefix="helix-export-") as made:
        here = folder if (folder / DATABASE).exists() else Path(made)
        try:
            await _read(here, options)
        except Misconfigured as error:
            if not (here / SNAPSHOT).exists():
                raise
            print(f"helix: {error}; what is exported is what the database had", file=sys.stderr)
        return _exported(here / SNAPSHOT, directory, from_seq)


async def _read(folder: Path, options: dict[str, Any]) -> None:
    """Bring the database in `folder` up to the log."""
    from helix_projections.analytics.projection import Plan, Projection

    connected = await connection("helix-export", options)
    try:
        await Projection(connected, Plan(folder=folder, parquet=folder / "parquet", once=True)).run()
    finally:
        await connected.close()


async def _wish(folder: Path) -> None:
    """Return when the running process has made a snapshot of now, or does not in time."""
    from helix_es.analytics.schema import SNAPSHOT
    from helix_projections.analytics.snapshots import WANTED

    wished_s = time.time()
    (folder / WANTED).touch()
    snapshot = folder / SNAPSHOT
    while time.time() - wished_s < SNAPSHOT_S or not snapshot.exists():
        if snapshot.exists() and snapshot.stat().st_mtime >= wished_s:
            return
        if time.time() - wished_s > SNAPSHOT_S:
            raise Misconfigured(
                f"{folder}: 'helix analytics' runs and has made no snapshot yet; wait until it has"
            )
        await asyncio.sleep(LOOK_EVERY_S)


def _exported(database: Path, directory: Path, from_seq: int | None) -> Exported:
    from helix_projections.analytics.exporting import export_file

    return export_file(database, directory, from_seq or 1)
