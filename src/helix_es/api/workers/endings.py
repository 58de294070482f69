"""How a worker's turn ends: completed, failed or cancelled, behind the fence, once."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from helix_es import telemetry
from helix_es.api.workers.attempts import Attempt, Attempts, Looked
from helix_es.api.workers.reports import MOST_CHARS, Completion, Failing, too_large
from helix_es.api.workers.speech import Speech
from helix_es.api.workers.taskid import TaskId, stale
from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.errors import Rejected, Unavailable
from helix_es.jetstream.files import Files
from helix_es.log import Log
from helix_es.replica import Replica
from helix_es.turnlog import append_fact

log = structlog.get_logger(__name__)

SEEN_S = 2.0
End = e.TurnCompleted | e.TurnFailed | e.TurnCancelled


class Endings:
    """Ends turns on behalf of workers. Repeating an end that was stored is harmless."""

    def __init__(
        self, source: Log, replica: Replica, files: Files, attempts: Attempts, speech: Speech
    ) -> None:
        self._log = source
        self._replica = replica
        self._files = files
        self._attempts = attempts
        self._speech = speech

    async def complete(self, task: TaskId, body: Completion) -> bool:
        """End the turn with its result; return whether it was to be stopped. Raises Rejected, Unavailable, LogFull."""
        looked = await self._attempts.look(task)
        attempt = looked.attempt
        if attempt is None:
            return self._repeated(looked, e.TurnCompleted, e.TurnCancelled)
        for file in body.files:
            await self._files.info(file, looked.session.owner)
        words = await self._speech.whole(task)
        output = words.text if body.output is None else body.output
        if output is None:
            raise Rejected(
                "output_needed", "output: what was said is not remembered as a whole any more; send all of it"
            )
        if len(msgspec.json.encode(output)) > MOST_CHARS:
            raise too_large()
        first_token_ms = _since(looked, words.first_ms)
        usage = msgspec.convert(body.usage, e.Usage, from_attributes=True)
        about = _about(task) | {"output": output, "files": body.files, "usage": usage}
        end: End
        if attempt.cancelling:
            end = e.TurnCancelled(**about, first_token_ms=first_token_ms)
        else:
            end = e.TurnCompleted(
                **about,
                finish_reason=body.finish_reason,
                first_token_ms=first_token_ms,
                total_ms=_since(looked, self._replica.state.now_ms) or 0,
            )
        await self._end(attempt, end)
        return attempt.cancelling

    async def fail(self, task: TaskId, body: Failing) -> bool:
        """End the turn with an error; return whether it was to be stopped. Raises Rejected, Unavailable, LogFull."""
        looked = await self._attempts.look(task)
        attempt = looked.attempt
        if attempt is None:
            return self._repeated(looked, e.TurnFailed)
        error = e.Failure(code=body.code, message=body.message)
        await self._end(attempt, e.TurnFailed(**_about(task), error=error, output=await self._said(task)))
        return attempt.cancelling

    async def cancel(self, attempt: Attempt) -> None:
        """End a turn that was to be stopped, and that its worker has lost."""
        try:
            await self._end(
                attempt, e.TurnCancelled(**_about(attempt.task), output=await self._said(attempt.task))
            )
        except Rejected:
            log.info("turn_not_ours_any_more", session=attempt.task.session, turn=attempt.task.turn)

    async def _said(self, task: TaskId) -> str:
        """What was said so far, if it is to be had: of a turn without a result it is only a hint."""
        try:
            text = (await self._speech.whole(task)).text or ""
        except Unavailable:
            return ""
        return text if len(msgspec.json.encode(text)) <= MOST_CHARS else ""

    async def _end(self, attempt: Attempt, end: End) -> None:
        key = f"{type_of(end)}:{end.gpu}:{end.session}:{end.turn}:{end.attempt}"
        with telemetry.span(f"append {type_of(end)}"):
            seq = await append_fact(self._log, end, key, attempt)
        if seq is None:  # it was ended meanwhile: perhaps by this very report, sent twice
            self._repeated(await self._attempts.look(attempt.task), type(end), e.TurnCancelled)
            return
        await self._replica.reached(seq, SEEN_S)

    @staticmethod
    def _repeated(looked: Looked, *ends: type[e.Event]) -> bool:
        """Accept a report that was stored before. Raises Rejected("stale_attempt") for any other."""
        end = looked.end
        if not isinstance(end, ends):
            raise stale(looked.task)
        return isinstance(end, e.TurnCancelled)


def _about(task: TaskId) -> dict[str, Any]:
    return {"session": task.session, "turn": task.turn, "attempt": task.attempt, "gpu": task.worker}


def _since(looked: Looked, at_ms: int | None) -> int | None:
    """Return the distance of `at_ms` from the turn's start, on the server's clock."""
    started_ms = looked.session.turns[looked.task.turn - 1].started_ms
    return None if at_ms is None or started_ms is None else max(0, at_ms - started_ms)
