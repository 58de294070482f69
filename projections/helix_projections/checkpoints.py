"""Which checkpoints nobody can need any more, and their removal: only the last one of a training counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from helix_es.core import events as e
from helix_es.core.errors import HelixError
from helix_es.core.history import fold
from helix_es.core.subjects import session_filter
from helix_es.jetstream.files import Files
from helix_es.log import Log

log = structlog.get_logger(__name__)

RETRY_S = 5.0


def superseded(session: str, records: list[e.Recorded]) -> list[str]:
    """Return the files of the session's checkpoints, oldest first, that no attempt will go on from.

    The last one stays while the turn is open, and after it was cancelled or failed; a completed one left its result,
    and of a closed session nobody wants any.
    """
    made = [
        file
        for record in records
        if isinstance(record.event, e.TurnProgressed)
        for file in record.event.checkpoint
    ]
    state = fold(session, records)
    kept: set[str] = set()
    for turn in state.turns:
        kept.update(turn.files)
        if turn.state != "completed" and state.phase != "closed":
            kept.update(turn.checkpoint)
    return [file for file in dict.fromkeys(made) if file not in kept]


class Checkpoints:
    """Tidies up after trainings, session by session; what it misses while away it does at the session's next fact."""

    def __init__(self, source: Log, files: Files, acts: Callable[[], bool]) -> None:
        self._log = source
        self._files = files
        self._acts = acts
        self.due: asyncio.Queue[str] = asyncio.Queue()
        """Sessions to look at; `join` waits until all were."""
        self._removed: dict[str, set[str]] = {}

    def hear(self, record: e.Recorded, *, batch: bool) -> None:
        """Note that a session may have something to tidy. `batch`: it is a fine-tune."""
        match record.event:
            case e.TurnProgressed(session=session, checkpoint=[_, *_]):
                self.due.put_nowait(session)
            case e.TurnCompleted(session=session) | e.SessionClosed(session=session) if batch:
                self.due.put_nowait(session)
            case _:
                pass

    async def run(self) -> None:
        """Remove what is due, for ever. Only whoever acts does it; a file that is gone is no error."""
        while True:
            session = await self.due.get()
            try:
                if self._acts():
                    await self._tidy(session)
            except HelixError as error:
                log.warning("checkpoints_not_removed", session=session, error=str(error))
                await asyncio.sleep(RETRY_S)
            finally:
                self.due.task_done()

    async def _tidy(self, session: str) -> None:
        records = await self._log.history(session_filter(session), fresh=True)
        removed = self._removed.setdefault(session, set())
        for file in superseded(session, records):
            if file not in removed:
                await self._files.remove(file)
                removed.add(file)
        if any(isinstance(record.event, e.TurnCompleted) for record in records):
            del self._removed[session]
