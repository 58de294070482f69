"""The fleet on the shipped broker, as the user that may only read: nothing is denied."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from helix_es.core import events as e
from helix_es.jetstream.client import Connection, NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from helix_es.jetstream.streams import provision
from helix_es.replica import Replica
from helix_projections.fleet.fleet import Fleet
from tests.deploy.local_nats import Server, config_folder
from tests.projections.fleet.test_fleet import FakeProvider

pytestmark = pytest.mark.anyio


async def test_reading_is_all_that_the_fleet_needs(tmp_path: Path) -> None:
    folder = config_folder(tmp_path)
    server = Server(
        folder, ("-c", "single.conf", "-p", "-1", "-m", "-1"), {"STORE_DIR": str(folder / "data")}
    )

    async def joined(user: str) -> Connection:
        seed = str(folder / "secrets" / f"{user}.nk")
        return await connect(NatsSettings(url=server.url, nkey_seed_file=seed, inbox_prefix=f"_INBOX_{user}"))

    server.start()
    try:
        scheduler, observer = await joined("scheduler"), await joined("observer")
        await provision(scheduler)
        log = JetStreamLog(scheduler)
        event = e.FleetResized(pool="burst", size=2, reason="test", decided_seq=0, decided_at_ms=0)
        await log.append(event, expected_seq=0, key="resized")
        replica = Replica(log)
        following = asyncio.create_task(replica.run())
        assert await replica.reached(1, 10)
        await replica.save()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        fleet, provider = Fleet(JetStreamLog(observer), {"burst": 4}), FakeProvider()
        fleet.add("burst", provider)
        keeping = asyncio.create_task(fleet.run())
        await provider.until(2, {})
        assert fleet._replica.snapshot_seq == 1, "the snapshot was not read"
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await scheduler.close()
        await observer.close()
    finally:
        server.stop()
    assert "iolation" not in server.log.read_text()
