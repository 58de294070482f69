"""What workers are served with, put together once in a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from helix_es.api.workers.attempts import Attempts
from helix_es.api.workers.endings import Endings
from helix_es.api.workers.presence import Presence
from helix_es.api.workers.speech import Speech
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import Files
from helix_es.log import Log
from helix_es.replica import Replica
from helix_es.settings import Settings


@dataclass
class Parts:
    """Nothing here is a worker's: any replica of the API has the same parts and goes on."""

    connection: Connection
    log: Log
    replica: Replica
    settings: Settings
    files: Files
    presence: Presence
    attempts: Attempts
    speech: Speech
    endings: Endings

    @classmethod
    def build(
        cls,
        connection: Connection,
        source: Log,
        replica: Replica,
        settings: Settings,
        files: Files,
        *,
        new_secret: Callable[[], str],
    ) -> Parts:
        """Return the parts; nothing runs yet."""
        attempts = Attempts(source, replica)
        speech = Speech(connection)
        return cls(
            connection=connection,
            log=source,
            replica=replica,
            settings=settings,
            files=files,
            presence=Presence(source, replica, Beats(connection), new_secret=new_secret),
            attempts=attempts,
            speech=speech,
            endings=Endings(source, replica, files, attempts, speech),
        )
