"""Visitors of a real shop: they say their lines through the log, as the API does for them, and wait for answers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from helix_es.core import events as e
from helix_es.core.errors import Conflict
from helix_es.jetstream.log import JetStreamLog
from helix_es.replica import Replica
from tests.fidelity.schedule import MODEL, Visit

HEARD_S = 300.0  # at most for an answer, the wait included


class Visitors:
    """Everybody of a schedule."""

    def __init__(self, log: JetStreamLog, replica: Replica) -> None:
        self.unheard: list[str] = []
        self._log = log
        self._replica = replica
        self._last_seq: dict[str, int] = {}
        self._ended: dict[str, asyncio.Event] = {}
        replica.listen(self._hear)

    async def come(self, visits: list[Visit]) -> None:
        """Let everybody come when it is time, and return when the last has left."""
        now_s = asyncio.get_running_loop().time
        begun_s = now_s()
        async with asyncio.TaskGroup() as group:
            for visit in visits:
                await asyncio.sleep(max(0.0, begun_s + visit.at_s - now_s()))
                group.create_task(self._visit(visit))

    def _hear(self, record: e.Recorded) -> None:
        session = getattr(record.event, "session", None)
        if session is None:
            return
        self._last_seq[session] = record.seq
        if isinstance(record.event, e.TurnCompleted | e.TurnFailed | e.TurnCancelled):
            self._ended.setdefault(session, asyncio.Event()).set()

    async def _visit(self, visit: Visit) -> None:
        session = e.SessionId(visit.name)
        about = {"session": session, "owner": visit.owner, "mode": "create", "type": "text", "model": MODEL}
        seq = await self._log.append(e.SessionCreated(**about), expected_seq=0, key=f"c{session}")  # type: ignore[arg-type]
        self._last_seq[session] = seq
        for turn, line in enumerate(visit.lines, start=1):
            await asyncio.sleep(line.think_s)
            ended = self._ended[session] = asyncio.Event()
            await self._say(visit, turn)
            try:
                async with asyncio.timeout(HEARD_S):
                    await ended.wait()
            except TimeoutError:
                self.unheard.append(f"{session}/{turn}")
                return
        if visit.leaves_s is not None:
            await asyncio.sleep(visit.leaves_s)
            await self._append(session, lambda: e.SessionClosed(session=session), "x")

    async def _say(self, visit: Visit, turn: int) -> None:
        session, line = e.SessionId(visit.name), visit.lines[turn - 1]
        prompt, params = "a" * line.prompt_chars, {"max_tokens": line.tokens}

        def said() -> e.AnyEvent:
            seat = self._replica.state.seats.get(session)
            if seat is not None and seat.gpu is not None:
                return e.TurnContinued(
                    session=session,
                    turn=turn,
                    type="text",
                    model=MODEL,
                    gpu=seat.gpu,
                    after_seq=seat.last_seq,
                    prompt=prompt,
                    params=params,
                )
            return e.TurnQueued(
                session=session,
                turn=turn,
                mode="create",
                type="text",
                model=MODEL,
                owner=visit.owner,
                prompt=prompt,
                params=params,
            )

        await self._append(session, said, f"t{turn}")

    async def _append(self, session: str, made: object, what: str) -> None:
        """Append behind what is known of the session; look again if somebody was faster."""
        assert callable(made)
        while True:
            changed, expected = self._replica.changed(), self._last_seq[session]
            with suppress(Conflict):
                key = f"{what}:{session}:{expected}"
                seq = await self._log.append(made(), expected_seq=expected, key=key)
                self._last_seq[session] = max(seq, self._last_seq[session])
                return
            if self._last_seq[session] == expected:
                await changed.wait()
