"""What the handlers work with, put together once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from helix_es.api.adapters import Adapters, Shelf
from helix_es.api.desk import Desk
from helix_es.api.directory import Directory
from helix_es.api.tokens import TokenCounter
from helix_es.api.workers.parts import Parts
from helix_es.api.workers.workers import Workers
from helix_es.core.events import Recorded
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.deltas import Deltas
from helix_es.jetstream.files import Files
from helix_es.jetstream.log import JetStreamLog
from helix_es.replica import Replica
from helix_es.settings import Settings

BEATS_EVERY_S = 0.5  # heartbeats come once a second; many viewers share one read


@dataclass
class Services:
    """One API process: its connection, its fold, its desk."""

    connection: Connection
    settings: Settings
    log: JetStreamLog
    replica: Replica
    directory: Directory
    deltas: Deltas
    desk: Desk
    beats: Beats
    files: Files
    adapters: Adapters
    workers: Workers
    _latest: dict[str, Recorded] = field(default_factory=dict)
    _latest_at: float = 0.0

    @property
    def ready(self) -> bool:
        """Connected and caught up."""
        return self.connection.connected and self.replica.caught_up.is_set()

    async def heartbeats(self) -> dict[str, Recorded]:
        """Return the last heartbeat of each GPU, at most half a second old."""
        now = asyncio.get_running_loop().time()
        if now - self._latest_at > BEATS_EVERY_S:
            self._latest, self._latest_at = await self.beats.latest(list(self.replica.state.gpus)), now
        return self._latest


def build(
    connection: Connection, settings: Settings, counter: TokenCounter, *, new_id: Callable[[], str]
) -> Services:
    """Return the services of one API process; nothing runs yet."""
    log = JetStreamLog(connection)
    # From the log's beginning, not from a snapshot: the directory needs every session that ever was.
    replica = Replica(log, from_snapshot=False)
    directory = Directory()
    adapters = Adapters()
    replica.listen(directory.take)
    replica.listen(adapters.take)
    files = Files(connection, new_id=new_id)
    return Services(
        connection=connection,
        settings=settings,
        log=log,
        replica=replica,
        directory=directory,
        deltas=Deltas(connection),
        desk=Desk(log, replica, settings, counter, Shelf(adapters, files), new_id=new_id),
        beats=Beats(connection),
        files=files,
        adapters=adapters,
        workers=Workers(
            Parts.build(connection, log, replica, settings, files, new_secret=lambda: secrets.token_hex(16))
        ),
    )
