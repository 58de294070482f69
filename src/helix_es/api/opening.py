"""The first two facts of a session: created and queued, behind one another, once however often they are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from helix_es.api.adapters import Shelf
from helix_es.api.admission import check_room
from helix_es.api.ledger import Ledger
from helix_es.api.requests import NewSession, checked_params, checked_session, checked_wait_ms, digest
from helix_es.api.tokens import TokenCounter
from helix_es.core import events as e
from helix_es.core.errors import Conflict, Rejected
from helix_es.core.history import Session, evolve
from helix_es.replica import Replica
from helix_es.settings import Settings

SEEN_S = 2.0  # how long our own append may take to come back to us


class Opening:
    """Opens sessions. Raises Rejected with a stable code where that cannot be done."""

    def __init__(
        self,
        ledger: Ledger,
        replica: Replica,
        settings: Settings,
        counter: TokenCounter,
        shelf: Shelf,
        *,
        new_id: Callable[[], str],
    ) -> None:
        self._ledger = ledger
        self._replica = replica
        self._settings = settings
        self._counter = counter
        self._adapters = shelf.adapters
        self._files = shelf.files
        self._new_id = new_id

    async def open(
        self, body: NewSession, owner: str, key: str | None = None, history: list[e.Message] | None = None
    ) -> Session:
        """Return the new session with its first turn in the queue; with `key`, the one it made before."""
        workload = checked_session(body, self._settings)
        params = checked_params(body.params, self._settings, workload)
        if workload.type == "text":
            said = "".join(each.content for each in history or ()) + (body.system or "") + (body.prompt or "")
            await self._counter.check(self._settings.models[workload.model], said)
        adapter_files = self._adapters.files(owner, workload.model, body.adapter)
        if body.dataset is not None:
            await self._check_dataset(body.dataset, owner)
        session = e.SessionId(digest("session", owner, key) if key else self._new_id())
        request = digest(msgspec.json.encode(body).decode(), msgspec.json.encode(history).decode())
        created = e.SessionCreated(
            session=session,
            owner=owner,
            mode=workload.mode,
            type=workload.type,
            model=workload.model,
            system=body.system,
            params=params,
            adapter=body.adapter,
            adapter_files=adapter_files,
            dataset=body.dataset,
            name=body.name,
            priority=body.priority,
            request=request,
        )
        queued = e.TurnQueued(
            session=session,
            turn=1,
            mode=workload.mode,
            type=workload.type,
            model=workload.model,
            owner=owner,
            priority=body.priority,
            prompt=body.prompt or "",
            history=history,
            request=request,
            max_wait_ms=checked_wait_ms(body.max_wait_s),
        )
        if key is None or not await self._ledger.exists(session):
            check_room(self._replica.state, self._settings, workload, owner)
        try:
            return await self._append_both(created, queued, request, fresh=key is None)
        except Conflict:
            found = await self._ledger.read(session, owner)
        if found.request != request:
            raise Rejected("idempotency_key_reused", "this Idempotency-Key was used for another request")
        if found.phase == "created":  # whoever began died before the turn was stored
            await self._ledger.append(queued, found.last_seq, request)
            found = await self._ledger.read(session, owner)
        return found

    async def _check_dataset(self, file: str, owner: str) -> None:
        """Raise Rejected for a dataset that is not there or was not checked as one."""
        info = await self._files.info(file, owner)
        if info.purpose != "dataset":
            raise Rejected(
                "invalid_dataset", f"dataset: file {file[:80]} is of purpose '{info.purpose}', not 'dataset'"
            )

    async def _append_both(
        self, created: e.SessionCreated, queued: e.TurnQueued, request: str, *, fresh: bool
    ) -> Session:
        """Append the two first facts of a session and return it as they make it."""
        seen: asyncio.Queue[e.Recorded] = asyncio.Queue()
        with self._replica.subscription(created.session, seen.put_nowait):
            last_seq = await self._append_in_step(created, queued, request, fresh=fresh)
            await self._replica.reached(last_seq, SEEN_S)
        state = Session(session=created.session)
        while not seen.empty() and state.last_seq < last_seq:
            state = evolve(state, seen.get_nowait())
        if not state.turns:  # they were stored before (a repeated request), so they did not come again
            return await self._ledger.read(created.session)
        return state

    async def _append_in_step(
        self, created: e.SessionCreated, queued: e.TurnQueued, request: str, *, fresh: bool
    ) -> int:
        """Append both and return the sequence of the second, which is fenced by that of the first.

        While the log is quiet the first one's sequence can be foreseen, so the second is sent without waiting for
        it: that saves a third of the way to the GPU. A wrong guess is refused by the fence, as any other writer
        would be, and the second is sent again behind the right sequence. Only for a `fresh` name: a session that a
        repeated request made before has other facts, and one of them could stand where we guess.
        """
        guess = self._replica.next_seq() if fresh else None
        first = asyncio.create_task(self._ledger.append(created, 0, request))
        second = None if guess is None else asyncio.create_task(self._ledger.append(queued, guess, request))
        try:
            created_seq = await first
        except BaseException:
            if second is not None:
                second.cancel()
            raise
        if second is not None:
            try:
                return await second
            except Conflict:
                pass
        return await self._ledger.append(queued, created_seq, request)
