"""Reading and writing sessions: one session from the log, one fact behind its fence."""

from __future__ import annotations

from opentelemetry.trace import SpanKind

from helix_es import telemetry
from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.errors import Rejected
from helix_es.core.history import Session, fold
from helix_es.core.subjects import session_filter, token
from helix_es.log import Log


class Ledger:
    """The log as the desk uses it."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def append(self, event: e.AnyEvent, expected_seq: int, request: str) -> int:
        """Append `event` behind its fence and return its sequence; `request` makes it repeatable.

        Raises Conflict: somebody else was first.
        """
        session = getattr(event, "session", "")
        key = f"{type_of(event)}:{session}:{request}:{expected_seq}"
        with telemetry.span(f"append {type_of(event)}", SpanKind.PRODUCER):
            return await self._log.append(
                event, expected_seq=expected_seq, key=key, headers=telemetry.carried()
            )

    async def exists(self, session: str) -> bool:
        """Return whether anything was ever said of `session`."""
        return bool(await self._log.history(session_filter(session), fresh=True))

    async def read(self, session: str, owner: str | None = None) -> Session:
        """Return a session from the log. Raises Rejected("session_not_found") also if it is another owner's."""
        try:
            records = await self._log.history(session_filter(token(session, "session")), fresh=True)
        except Rejected as error:
            raise Rejected("session_not_found", f"no session {session[:80]!r}") from error
        found = fold(session, records)
        if found.phase == "new" or (owner is not None and found.owner != owner):
            raise Rejected("session_not_found", f"no session {session[:80]!r}")
        return found
