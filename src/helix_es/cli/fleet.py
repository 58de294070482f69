"""`helix fleet`: makes each pool as large as the scheduler says."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import rich_click as click

from helix_es.cli.client import DATA_DIR, written_url
from helix_es.cli.output import run
from helix_es.cli.serve import connection, log_lines, node_name, on_signals, served
from helix_es.core.errors import Misconfigured
from helix_es.jetstream.log import JetStreamLog
from helix_es.processes import end_leftovers
from helix_es.settings import Settings, read
from helix_projections.fleet.fleet import Fleet
from helix_projections.fleet.pools import Here, check, provider_of

# option of the connection -> how a runner is told the same
TOLD = {
    "nats_url": "HELIX_NATS_URL",
    "nats_user": "HELIX_NATS_USER",
    "nats_seed_file": "HELIX_NATS_SEED_FILE",
    "nats_ca_file": "HELIX_NATS_CA_FILE",
}


@click.command()
@served
@click.option("--data-dir", default=DATA_DIR, show_default=True, type=click.Path(file_okay=False))
@click.option(
    "--drain-s",
    type=click.FloatRange(0, 3600),
    default=5.0,
    show_default=True,
    help="How long runners of this machine may end their turns when the fleet is stopped.",
)
def fleet(config: str | None, data_dir: str, drain_s: float, **options: Any) -> None:
    """Start and end GPUs: each [pool.<name>] is made as large as the scheduler says. Start one for a shop."""
    log_lines()
    options["nats_url"] = options["nats_url"] or written_url("nats.url") or "nats://127.0.0.1:4222"
    here = Here(
        node=node_name(),
        folder=Path(data_dir).resolve() / "fleet",
        config=Path(config or "").resolve(),
        env={name: options[option] for option, name in TOLD.items() if options[option]},
        drain_s=drain_s,
    )

    async def work() -> None:
        settings = read(config)
        check(settings)
        stop = asyncio.Event()
        on_signals(stop.set)  # an event: a second signal must not cut the runners' end short
        with _only_one(here.folder):
            for each in sorted(here.folder.glob("*/")):
                await end_leftovers(each)
            await _serve(settings, here, options, stop)

    run(work)


async def _serve(settings: Settings, here: Here, options: dict[str, Any], stop: asyncio.Event) -> None:
    connected = await connection("helix-fleet", options)
    kept = Fleet(JetStreamLog(connected), {name: pool.max for name, pool in settings.pool.items()})
    try:
        for name in settings.pool:
            kept.add(name, await provider_of(name, settings, here, partial(kept.wake, name)))
        keeping = asyncio.create_task(kept.run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if keeping.done():
            await keeping
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    finally:
        await kept.close()
        await connected.close()


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder: of two fleets each would end the other's runners as leftovers."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Misconfigured(
                f"--data-dir {folder.parent}: another 'helix fleet' is using it; stop that one or choose another"
            ) from None
        yield
