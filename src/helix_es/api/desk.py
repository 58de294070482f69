"""The front desk: turns what clients want into facts, behind the fence of their session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from helix_es.api.adapters import Shelf
from helix_es.api.admission import check_waiting
from helix_es.api.ledger import Ledger
from helix_es.api.opening import SEEN_S, Opening
from helix_es.api.requests import (
    NewSession,
    NewTurn,
    check_prompt,
    checked_params,
    checked_wait_ms,
    digest,
)
from helix_es.api.tokens import TokenCounter
from helix_es.core import events as e
from helix_es.core.errors import Conflict, Rejected
from helix_es.core.history import Session, Turn
from helix_es.core.session import OPEN
from helix_es.log import Log
from helix_es.replica import Replica
from helix_es.settings import Settings

ATTEMPTS = 12  # at a fence that others keep moving: a session has few writers


class Desk:
    """Commands on sessions. Everything raises Rejected with a stable code where it cannot be done."""

    def __init__(
        self,
        log: Log,
        replica: Replica,
        settings: Settings,
        counter: TokenCounter,
        shelf: Shelf,
        *,
        new_id: Callable[[], str],
    ) -> None:
        self._ledger = Ledger(log)
        self._opening = Opening(self._ledger, replica, settings, counter, shelf, new_id=new_id)
        self._replica = replica
        self._settings = settings
        self._counter = counter
        self._new_id = new_id

    async def open(
        self, body: NewSession, owner: str, key: str | None = None, history: list[e.Message] | None = None
    ) -> Session:
        """Return the new session with its first turn in the queue; with `key`, the one it made before."""
        return await self._opening.open(body, owner, key, history)

    async def read(self, session: str, owner: str | None = None) -> Session:
        """Return a session from the log. Raises Rejected("session_not_found") also if it is another owner's."""
        return await self._ledger.read(session, owner)

    # -- going on

    async def say(
        self,
        session: str,
        body: NewTurn,
        owner: str,
        key: str | None = None,
        history: list[e.Message] | None = None,
    ) -> Turn:
        """Append the next turn and return it: to its GPU at once if it holds one, else to the queue."""
        check_prompt(body.prompt, self._settings)
        named = digest("turn", key) if key else ""
        request = named + digest(body.prompt, str(sorted(body.params.items()))) if key else self._new_id()
        if not key:
            quick = await self._continue_quickly(session, body, owner, request, history)
            if quick is not None:
                return quick
        for _ in range(ATTEMPTS):
            found = await self.read(session, owner)
            done = next((turn for turn in found.turns if key and turn.request.startswith(named)), None)
            if done is not None and done.request != request:
                raise Rejected("idempotency_key_reused", "this Idempotency-Key was used for another turn")
            if done is not None:
                return done
            self._refuse_unless_open_for_more(found)
            params = await self._checked_turn(body, found.workload)
            if found.phase != "idle":
                check_waiting(self._replica.state, self._settings, owner)
            event = self._next(found, body, params, request, history)
            try:
                seq = await self._ledger.append(event, found.last_seq, request)
            except Conflict:
                continue
            await self._replica.reached(seq, SEEN_S)
            return (await self.read(session, owner)).turns[event.turn - 1]
        raise Conflict(f"session {session} is being written by others all the time; try again")

    async def _continue_quickly(
        self,
        session: str,
        body: NewTurn,
        owner: str,
        request: str,
        history: list[e.Message] | None,
    ) -> Turn | None:
        """Continue a session that our own fold shows as idle on a GPU; None if it is not, or not any more."""
        seat = self._replica.state.seats.get(session)
        if seat is None or seat.phase != "idle" or seat.gpu is None or seat.owner != owner:
            return None
        params = await self._checked_turn(body, seat.workload)
        event = e.TurnContinued(
            session=seat.session,
            turn=seat.turn + 1,
            type=seat.workload.type,
            model=seat.workload.model,
            gpu=seat.gpu,
            after_seq=seat.last_seq,
            prompt=body.prompt,
            history=history,
            params=params,
            request=request,
        )
        seen: asyncio.Queue[e.Recorded] = asyncio.Queue()
        with self._replica.subscription(session, seen.put_nowait):
            try:
                seq = await self._ledger.append(event, event.after_seq, request)
            except Conflict:
                return None
            await self._replica.reached(seq, SEEN_S)
        record = next((each for each in _drained(seen) if each.seq == seq), None)
        if record is None:
            return (await self.read(session, owner)).turns[event.turn - 1]
        return Turn(
            turn=event.turn,
            state="admitted",
            prompt=body.prompt,
            request=request,
            attempt=1,
            gpu=event.gpu,
            queued_ms=record.at_ms,
            admitted_ms=record.at_ms,
        )

    async def _checked_turn(self, body: NewTurn, workload: e.Workload) -> dict[str, object]:
        """Return the turn's parameters. Raises Rejected if it cannot be served."""
        checked_wait_ms(body.max_wait_s)
        if workload.type == "text":
            await self._counter.check(self._settings.models.get(workload.model), body.prompt)
        return checked_params(body.params, self._settings, workload)

    @staticmethod
    def _refuse_unless_open_for_more(found: Session) -> None:
        if found.phase == "closed":
            raise Rejected("session_closed", f"session {found.session} is closed; start a new one")
        if found.phase in OPEN:
            raise Rejected(
                "turn_open", f"turn {len(found.turns)} is still open; wait for its end or cancel it"
            )
        if found.mode == "finetune":
            raise Rejected("session_is_batch", "a fine-tune has one turn; start another session")

    @staticmethod
    def _next(
        found: Session,
        body: NewTurn,
        params: dict[str, object],
        request: str,
        history: list[e.Message] | None,
    ) -> e.TurnContinued | e.TurnQueued:
        if found.phase == "idle" and found.gpu is not None:
            return e.TurnContinued(
                session=found.session,
                turn=len(found.turns) + 1,
                type=found.type,
                model=found.model,
                gpu=e.GpuId(found.gpu),
                after_seq=found.last_seq,
                prompt=body.prompt,
                history=history,
                params=params,
                request=request,
            )
        return e.TurnQueued(
            session=found.session,
            turn=len(found.turns) + 1,
            mode=found.mode,
            type=found.type,
            model=found.model,
            owner=found.owner,
            priority=found.priority,
            prompt=body.prompt,
            history=history,
            params=params,
            request=request,
            max_wait_ms=checked_wait_ms(body.max_wait_s),
        )

    # -- ending

    async def cancel(self, session: str, turn: int, owner: str) -> None:
        """Cancel a turn: at once if no GPU has it yet, else its GPU is asked to stop. Harmless if it has ended."""
        for _ in range(ATTEMPTS):
            found = await self.read(session, owner)
            if not 1 <= turn <= len(found.turns):
                raise Rejected("turn_not_found", f"session {session} has no turn {turn}")
            open_turn = found.open_turn
            if open_turn is None or open_turn.turn != turn or open_turn.cancelling:
                return
            event: e.TurnCancelling | e.TurnCancelled
            if found.phase == "running" and found.gpu is not None:
                event = e.TurnCancelling(session=found.session, turn=turn, gpu=e.GpuId(found.gpu))
            else:
                gpu = e.GpuId(found.gpu) if found.gpu is not None else e.NO_GPU
                event = e.TurnCancelled(session=found.session, turn=turn, attempt=open_turn.attempt, gpu=gpu)
            try:
                await self._replica.reached(await self._ledger.append(event, found.last_seq, ""), SEEN_S)
                return
            except Conflict:
                continue
        raise Conflict(f"session {session} is being written by others all the time; try again")

    async def close(self, session: str, owner: str) -> None:
        """Close a session, whatever it is doing. Harmless if it is closed."""
        for _ in range(ATTEMPTS):
            found = await self.read(session, owner)
            if found.phase == "closed":
                return
            try:
                closed = e.SessionClosed(session=found.session)
                await self._replica.reached(await self._ledger.append(closed, found.last_seq, ""), SEEN_S)
                return
            except Conflict:
                continue
        raise Conflict(f"session {session} is being written by others all the time; try again")


def _drained(queue: asyncio.Queue[e.Recorded]) -> list[e.Recorded]:
    """Return what `queue` holds now."""
    return [queue.get_nowait() for _ in range(queue.qsize())]
