"""One turn, from the task in hand to its end in the log: started, pieces, completed; or dropped if it is not ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog
from opentelemetry.trace import SpanKind

from helix_es import telemetry
from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.errors import LogFull, NotOurs, Unavailable
from helix_es.core.history import Session, evolve, fold
from helix_es.core.subjects import session_filter, subject_of
from helix_es.jetstream.deltas import Deltas
from helix_es.jetstream.tasks import Task, TaskEvent
from helix_es.log import Log
from helix_es.turnlog import append_fact, append_started
from helix_runners.bindings import Binding, Bindings
from helix_runners.faults import BROKEN, OUT_OF_MEMORY, UNEXPECTED, is_out_of_memory
from helix_runners.output import Speaker
from helix_runners.stall import Stall
from helix_runners.work import Job, Outcome, Work

log = structlog.get_logger(__name__)

PATIENCE_S = 0.5
OPERATIONS = {"text": "chat", "image": "generate_image"}

Result = TypeVar("Result")


async def patiently(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Return what `attempt` gives, trying again while the log cannot be reached or is full: a turn waits for it."""
    while True:
        try:
            return await attempt()
        except (Unavailable, LogFull) as error:
            log.warning("log_not_reached", code=error.code, error=str(error))
            await asyncio.sleep(PATIENCE_S)


class Turns:
    """Does turns for one incarnation of a GPU's runner."""

    def __init__(self, source: Log, deltas: Deltas, work: Work, gpu: e.GpuId, bindings: Bindings) -> None:
        self._log = source
        self._deltas = deltas
        self._work = work
        self._gpu = gpu
        self._bindings = bindings
        self.stall = Stall()

    async def start(self, task: Task, incarnation: str) -> Binding | None:
        """Append `started`; return the session's binding, or None if the task is not ours to do (any more)."""
        event = task.event
        if isinstance(event, e.TurnContinued) and event.session not in self._bindings:
            await task.ack()  # it was meant for an earlier life of this GPU; the session was released since
            return None
        started = self._started(event, incarnation)
        with telemetry.span("turn.start", SpanKind.CONSUMER, task.headers):
            seq = await append_started(self._log, started, task.log_seq)
        if seq is None:
            log.info("task_stale", session=event.session, turn=event.turn, attempt=event.attempt)
            await task.ack()
            return None
        binding = await self._seated(event, seq)
        if binding is None:  # released while we said so
            await task.ack()
            return None
        known = binding.state
        if known is not None:
            upto = event.after_seq if isinstance(event, e.TurnContinued) else None
            binding.state = (
                _after(known, [(task.log_seq, event), (seq, started)]) if known.last_seq == upto else None
            )
        binding.fence, binding.turn, binding.cancelled = seq, event.turn, False
        await task.ack()
        return binding

    def _started(self, event: TaskEvent, incarnation: str) -> e.TurnStarted:
        return e.TurnStarted(
            session=event.session,
            turn=event.turn,
            attempt=event.attempt,
            gpu=self._gpu,
            incarnation=incarnation,
        )

    async def _seated(self, event: TaskEvent, seq: int) -> Binding | None:
        """Return the binding of a session whose `started` is at `seq`; None if what it went on with is gone."""
        found = self._bindings.get(event.session)
        if isinstance(event, e.TurnContinued) or (found is not None and found.seated_seq == seq):
            return found
        binding = self._bindings.bind(event.session, seq)
        if found is not None:  # it was released and came back sooner than we heard of that
            await self._work.cancel(event.session)
        return binding

    async def perform(self, task: Task, binding: Binding) -> None:
        """Do the turn and append how it ended."""
        event = task.event
        attributes: dict[str, str | int | float | bool] = {
            "gen_ai.operation.name": OPERATIONS.get(event.type, "chat"),
            "gen_ai.conversation.id": event.session,
            "gen_ai.request.model": event.model,
            "helix.turn": event.turn,
            "helix.attempt": event.attempt,
            "helix.gpu": self._gpu,
        }
        with telemetry.span("turn.perform", SpanKind.CONSUMER, task.headers, attributes) as span:
            begun = time.monotonic()
            job = await patiently(lambda: self._remember(task, binding))
            note = partial(self._note, binding=binding)
            speaker = Speaker(self._deltas, self._started(event, ""), binding, self.stall, note)
            try:
                outcome = Outcome(cancelled=True) if binding.cancelled else await self._do(job, speaker)
            except NotOurs:
                log.info("turn_not_ours_any_more", session=event.session, turn=event.turn)
                return
            await speaker.flush()
            span.set_attribute("gen_ai.usage.input_tokens", outcome.usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", outcome.usage.completion_tokens)
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", outcome.usage.cached_tokens)
            total_ms = int((time.monotonic() - begun) * 1000)
            await patiently(lambda: self._end(event, binding, outcome, total_ms))

    async def _do(self, job: Job, speaker: Speaker) -> Outcome:
        try:
            with self.stall.running():
                outcome = await self._work.perform(job, speaker)
        except NotOurs:
            raise
        except Exception as error:
            # Whatever it is, the attempt must end in the log, or its session hangs for ever.
            log.exception("work_failed", session=job.session, turn=job.turn.turn)
            message = f"the runner failed: {type(error).__name__}; see its log"
            code = OUT_OF_MEMORY if is_out_of_memory(error) else UNEXPECTED
            outcome = Outcome(error=e.Failure(code=code, message=message), retry=True)
        return self._blamed(outcome)

    def _blamed(self, outcome: Outcome) -> Outcome:
        """An engine that computes no more is the reason of whatever failed on it."""
        error = outcome.error
        if error is None or not outcome.retry or error.code == OUT_OF_MEMORY or self._work.broken is None:
            return outcome
        return msgspec.structs.replace(outcome, error=e.Failure(code=BROKEN, message=error.message))

    async def _remember(self, task: Task, binding: Binding) -> Job:
        """Bring the session up to this turn's prompt, from memory or from the log."""
        event = task.event
        if binding.state is None:
            binding.state = fold(
                event.session, await self._log.history(session_filter(event.session), fresh=True)
            )
        state = binding.state
        return Job(state=state, params={**state.params, **state.turns[event.turn - 1].params})

    async def _end(self, event: TaskEvent, binding: Binding, outcome: Outcome, total_ms: int) -> None:
        if outcome.retry and binding.cancelled:  # nobody wants another attempt
            outcome = Outcome(output=outcome.output, cancelled=True)
        fact = self._fact(event, outcome, total_ms)
        key = f"{type_of(fact)}:{self._gpu}:{event.session}:{event.turn}:{event.attempt}"
        seq = await append_fact(self._log, fact, key, binding)
        if seq is None:
            log.info("turn_not_ours_any_more", session=event.session, turn=event.turn)
        elif binding.state is not None:
            binding.state = _after(binding.state, [(seq, fact)])

    async def _note(self, fact: e.TurnProgressed, binding: Binding) -> bool:
        """Append a step and return whether it is stored; without a checkpoint a log that is away is not waited for."""
        kept = len(fact.checkpoint)
        key = f"{type_of(fact)}:{self._gpu}:{fact.session}:{fact.turn}:{fact.attempt}:{fact.step}:{kept}"
        try:
            if fact.checkpoint:
                seq = await patiently(lambda: append_fact(self._log, fact, key, binding))
            else:
                seq = await append_fact(self._log, fact, key, binding)
        except (Unavailable, LogFull) as error:
            log.warning("step_not_noted", code=error.code, error=str(error))
            return False
        if seq is None:
            raise NotOurs(f"turn {fact.turn} of {fact.session} is not ours any more")
        return True

    def _fact(
        self, event: TaskEvent, outcome: Outcome, total_ms: int
    ) -> e.TurnCompleted | e.TurnFailed | e.TurnCancelled | e.TurnReturned:
        about: dict[str, Any] = {
            "session": event.session,
            "turn": event.turn,
            "attempt": event.attempt,
            "gpu": self._gpu,
        }
        if outcome.error is not None and outcome.retry:
            return e.TurnReturned(**about, error=outcome.error, held=len(self._bindings))
        about["output"] = outcome.output
        if outcome.error is not None:
            return e.TurnFailed(**about, error=outcome.error)
        if outcome.cancelled:
            return e.TurnCancelled(
                **about, files=outcome.files, usage=outcome.usage, first_token_ms=outcome.first_token_ms
            )
        return e.TurnCompleted(
            **about,
            files=outcome.files,
            usage=outcome.usage,
            finish_reason=outcome.finish_reason,
            first_token_ms=outcome.first_token_ms,
            total_ms=total_ms,
        )


def _after(state: Session, facts: list[tuple[int, e.AnyEvent]]) -> Session:
    """Return `state` after facts that we know to be stored; when they were stored plays no part in a turn's work."""
    for seq, fact in facts:
        state = evolve(state, e.Recorded(seq, 0, subject_of(fact), fact))
    return state
