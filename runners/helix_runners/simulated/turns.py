"""One simulated turn, from the task in hand to its end in the log, behind the same fences as a real runner's."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.errors import LogFull, NotOurs, Rejected, Unavailable
from helix_es.jetstream.tasks import Task, TaskEvent
from helix_es.turnlog import append_fact, append_started
from helix_runners.faults import OUT_OF_MEMORY, UNEXPECTED
from helix_runners.output import Speaker
from helix_runners.simulated.attempt import Attempt
from helix_runners.simulated.doing import Doing, Tools, remember
from helix_runners.simulated.gpu import SimulatedGpu, Start
from helix_runners.simulated.steps import draw, train
from helix_runners.simulated.text import speak
from helix_runners.work import Outcome

log = structlog.get_logger(__name__)

End = e.TurnCompleted | e.TurnFailed | e.TurnCancelled | e.TurnReturned


class Turns:
    """Does the turns of all GPUs of the process."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._log = tools.log
        self._patiently = tools.patiently

    async def start(self, gpu: SimulatedGpu, task: Task, start: Start) -> Attempt | None:
        """Append `started`; return the attempt, its session seated, or None if the task is not ours (any more)."""
        event, incarnation = task.event, gpu.incarnation
        started = e.TurnStarted(
            session=event.session,
            turn=event.turn,
            attempt=event.attempt,
            gpu=gpu.gpu,
            incarnation=incarnation,
        )
        try:
            seq = await self._patiently(lambda: append_started(self._log, started, task.log_seq))
        finally:
            gpu.settle(event.session, start)
        attempt = None
        if seq is not None and gpu.incarnation == incarnation and start.released_seq < seq:
            attempt = self._seat(gpu, event, started, seq)
        if attempt is not None and start.cancelling_turn == event.turn:
            attempt.stop()
        with suppress(Unavailable):  # it comes again, and is stale then
            await task.ack()
        return attempt

    def _seat(self, gpu: SimulatedGpu, event: TaskEvent, started: e.TurnStarted, seq: int) -> Attempt | None:
        seat = gpu.seats.get(event.session)
        if not isinstance(event, e.TurnContinued):
            seat = gpu.seat(event.session, seq)
        if seat is None:
            return None
        seat.attempt = Attempt(event, started, seq, gpu.stall)
        return seat.attempt

    async def perform(self, gpu: SimulatedGpu, attempt: Attempt, begun_s: float) -> None:
        """Do a turn that was started and append how it ended. `begun_s`: when its task was in hand."""
        seat = gpu.seats.get(attempt.event.session)
        if seat is None or seat.attempt is not attempt:
            return  # it was released, or is another's, before it began
        queue_ms = int((asyncio.get_running_loop().time() - begun_s) * 1000)
        self._tools.attempts.add(attempt)
        try:
            told = await self._patiently(lambda: remember(self._log, attempt.event, seat))
            fate = self._tools.service.fate(self._tools.random)
            doing = Doing(self._tools, gpu, attempt, told, fate, begun_s)
            with gpu.stall.running():
                outcome = await self._do(doing)
            if attempt.dropped:
                return
            seat.held_tokens = outcome.usage.prompt_tokens + outcome.usage.completion_tokens
            end = _end(doing, outcome, queue_ms)
            key = f"{type_of(end)}:{gpu.gpu}:{end.session}:{end.turn}:{end.attempt}"
            await self._patiently(lambda: append_fact(self._log, end, key, attempt.binding))
        except NotOurs:
            pass
        finally:
            self._tools.attempts.discard(attempt)
            if seat.attempt is attempt:
                seat.attempt = None

    async def _do(self, doing: Doing) -> Outcome:
        attempt, event = doing.attempt, doing.event
        deltas, stall = self._tools.deltas, doing.gpu.stall
        note = partial(self._note, attempt=attempt)
        speaker = Speaker(deltas, attempt.started, attempt.binding, stall, note)
        try:
            if isinstance(event, e.TurnAdmitted) and event.mode == "finetune":
                return await train(doing, speaker)
            outcome = await (draw if event.type == "image" else speak)(doing, speaker)
            if not attempt.dropped:
                await speaker.flush()
            return outcome
        except NotOurs:
            raise
        except Rejected as error:
            return Outcome(error=e.Failure(code=error.code, message=str(error)))
        except Exception as error:
            # Whatever it is, the turn must end in the log, or its session hangs for ever.
            log.exception("work_failed", session=event.session, turn=event.turn)
            message = f"the simulated runner failed: {type(error).__name__}; see its log"
            return Outcome(error=e.Failure(code=UNEXPECTED, message=message), retry=True)

    async def _note(self, fact: e.TurnProgressed, attempt: Attempt) -> bool:
        """Append a step and return whether it is stored; without a checkpoint a log that is away is not waited for."""
        about = f"{fact.session}:{fact.turn}:{fact.attempt}:{fact.step}:{len(fact.checkpoint)}"
        key = f"{type_of(fact)}:{fact.gpu}:{about}"
        try:
            if fact.checkpoint:
                seq = await self._patiently(lambda: append_fact(self._log, fact, key, attempt.binding))
            else:
                seq = await append_fact(self._log, fact, key, attempt.binding)
        except (Unavailable, LogFull):
            return False
        if seq is None:
            raise NotOurs(f"turn {fact.turn} of {fact.session} is not ours any more")
        return True


def _end(doing: Doing, outcome: Outcome, queue_ms: int) -> End:
    """Return the fact that ends an attempt."""
    event, gpu, error = doing.event, doing.gpu, outcome.error
    retry = error is not None and (outcome.retry or error.code == OUT_OF_MEMORY)
    about: dict[str, Any] = {
        "session": event.session,
        "turn": event.turn,
        "attempt": event.attempt,
        "gpu": gpu.gpu,
    }
    if error is not None and retry and not doing.attempt.stopped:
        return e.TurnReturned(**about, error=error, held=len(gpu.seats))
    about["output"] = outcome.output
    if error is not None and not retry:
        return e.TurnFailed(**about, error=error)
    about |= {"files": outcome.files, "usage": outcome.usage, "first_token_ms": outcome.first_token_ms}
    if outcome.cancelled or retry:  # whoever wants it to stop wants no other attempt
        return e.TurnCancelled(**about)
    return e.TurnCompleted(
        **about, finish_reason=outcome.finish_reason, queue_ms=queue_ms, total_ms=doing.elapsed_ms()
    )
