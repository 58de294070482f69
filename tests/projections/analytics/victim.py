"""The projection as a process of its own, which a test may kill at any time."""

from __future__ import annotations

import asyncio
from pathlib import Path

from helix_es.jetstream.client import NatsSettings, connect
from helix_projections.analytics.projection import Plan, Projection
from helix_projections.analytics.writer import Pace

SMALL = Pace(together=150, keep_every=300, window_ms=100, wal_mib=1)


def run(url: str, folder: str, pace: Pace = SMALL) -> None:
    """Put all that the server's streams have into the tables in `folder`, and end."""
    asyncio.run(once(url, Path(folder), pace))


async def once(url: str, folder: Path, pace: Pace) -> None:
    """The same, in this process."""
    connection = await connect(NatsSettings(url=url))
    try:
        plan = Plan(folder=folder, parquet=folder / "parquet", once=True, pace=pace, fresh_s=0.05)
        await Projection(connection, plan).run()
    finally:
        await connection.close()
