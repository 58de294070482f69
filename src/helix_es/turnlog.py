"""Facts about one attempt at a turn, appended by whoever works on it: behind the fence, and only while it is theirs."""

from __future__ import annotations

import asyncio
from typing import Protocol

from helix_es import telemetry
from helix_es.core import events as e
from helix_es.core.errors import Conflict
from helix_es.core.history import Session, fold
from helix_es.core.subjects import session_filter
from helix_es.log import Log

STALE_S = 0.05  # between two reads of a replica that lags behind the leader

TurnFact = e.TurnProgressed | e.TurnReturned | e.TurnCompleted | e.TurnFailed | e.TurnCancelled


class Fenced(Protocol):
    """Whoever remembers where its session's fence was."""

    fence: int
    """Sequence of the last fact about the session that is known to be stored."""


async def append_started(source: Log, started: e.TurnStarted, fence: int) -> int | None:
    """Append `started` behind `fence`, its task's log sequence.

    Return its sequence, or None if the attempt is not there to be started any more.
    """
    while True:
        key = f"started:{started.gpu}:{started.incarnation}:{started.session}:{fence}"
        try:
            return await source.append(started, expected_seq=fence, key=key, headers=telemetry.carried())
        except Conflict:
            found = fold(started.session, await source.history(session_filter(started.session), fresh=True))
            if not _waits_for(started, found):
                return None
            if found.last_seq == fence:  # a replica that has not yet what refused us
                await asyncio.sleep(STALE_S)
            fence = found.last_seq  # what cannot happen there changes nothing, but moves the fence


def _waits_for(started: e.TurnStarted, found: Session) -> bool:
    """Whether the attempt is still there to be started by that GPU."""
    turn = found.open_turn
    if turn is None or (turn.turn, turn.attempt) != (started.turn, started.attempt):
        return False
    return found.phase == "admitted" or (found.phase == "continued" and found.gpu == started.gpu)


async def append_fact(source: Log, fact: TurnFact, key: str, holder: Fenced) -> int | None:
    """Append a fact about a running attempt and move the holder's fence; whatever came in between is looked at.

    Return its sequence, or None if the attempt does not run on that GPU any more.
    """
    headers = telemetry.carried()
    while True:
        try:
            seq = await source.append(fact, expected_seq=holder.fence, key=key, headers=headers)
        except Conflict:
            if not await _still_runs(source, fact, holder):
                return None
        else:
            holder.fence = max(holder.fence, seq)
            return seq


async def _still_runs(source: Log, fact: TurnFact, holder: Fenced) -> bool:
    """A fence failed: go on if the attempt still runs there, whatever came in between, else it is another's now."""
    found = fold(fact.session, await source.history(session_filter(fact.session), fresh=True))
    if not runs(found, fact.turn, fact.attempt, fact.gpu):
        return False
    if found.last_seq <= holder.fence:  # a replica that has not yet what refused us
        await asyncio.sleep(STALE_S)
    holder.fence = max(holder.fence, found.last_seq)
    return True


def runs(found: Session, turn: int, attempt: int, gpu: str) -> bool:
    """Whether that attempt is the one that runs, on that GPU."""
    open_turn = found.open_turn
    if open_turn is None or (open_turn.turn, open_turn.attempt) != (turn, attempt):
        return False
    return found.phase in ("running", "cancelling") and found.gpu == gpu
