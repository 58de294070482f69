"""Text turns: the conversation through an engine, its pieces as they come."""

from __future__ import annotations

import asyncio
import time
import zlib
from contextlib import aclosing
from typing import Any, Protocol

import structlog

from helix_es.core.catalogue import Model
from helix_es.core.errors import EngineError, PromptTooLong, Unavailable
from helix_es.core.events import Failure, Usage, Workload
from helix_runners.adapters import AdapterFolders
from helix_runners.engine.port import Adapter, Finished, Piece, Sampling, TextEngine
from helix_runners.faults import OUT_OF_MEMORY, collect, fault, is_out_of_memory
from helix_runners.work import Job, Outcome, Output

log = structlog.get_logger(__name__)

RETRY_S = 0.5  # a broker that elects a leader is away for seconds


class OpenEngine(Protocol):
    """Loads a model and returns its engine; blocks."""

    def __call__(self, model: Model) -> TextEngine: ...


class TextWork:
    """`Work` on one text engine that stays in memory."""

    def __init__(self, open_engine: OpenEngine, folders: AdapterFolders) -> None:
        self._open = open_engine
        self._folders = folders
        self._engine: TextEngine | None = None
        self._fetching: set[str] = set()
        """Sessions whose adapter is on its way."""
        self._stopped: set[str] = set()
        """Those of them that were asked to stop meanwhile."""

    async def load(self, workload: Workload, model: Model) -> None:
        """Load the weights in a thread, since that blocks for seconds and heartbeats must go on."""
        await self.close()
        self._engine = await asyncio.to_thread(self._open, model)

    async def perform(self, job: Job, output: Output) -> Outcome:
        """Generate the answer."""
        begun = time.monotonic()
        self._stopped.discard(job.session)
        said: list[str] = []
        first_token_ms: int | None = None
        finished: Finished | None = None
        try:
            adapter = await self._adapter(job)
            if job.session in self._stopped:
                self._stopped.discard(job.session)
                return Outcome(cancelled=True)
            answer = self._running().generate(job.session, job.messages, sampling(job), adapter)
            async with aclosing(answer):  # whatever `say` raises: nothing may go on computing
                async for item in answer:
                    if isinstance(item, Piece):
                        if first_token_ms is None:
                            first_token_ms = int((time.monotonic() - begun) * 1000)
                        if item.text:
                            said.append(item.text)
                            await output.say(item.text)
                    else:
                        finished = item
        except (PromptTooLong, EngineError) as error:
            failure, retry = fault(error)
            return Outcome(output="".join(said), error=failure, retry=retry)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out_of_memory", session=job.session, error=str(error))
            failure = Failure(code=OUT_OF_MEMORY, message=f"the machine has no memory left: {error}")
            return Outcome(output="".join(said), error=failure, retry=True)
        if finished is None:
            raise EngineError("the engine ended a stream without saying how")
        return Outcome(
            output="".join(said),
            cancelled=finished.reason == "cancelled",
            usage=Usage(
                prompt_tokens=finished.prompt_tokens,
                cached_tokens=finished.cached_tokens,
                completion_tokens=finished.completion_tokens,
            ),
            finish_reason=finished.reason,
            first_token_ms=first_token_ms,
        )

    async def _adapter(self, job: Job) -> Adapter | None:
        """Bring the session's adapter onto this machine."""
        files = job.state.adapter_files
        if job.state.adapter is None:
            return None
        self._fetching.add(job.session)
        try:
            while True:
                try:
                    return Adapter(key=files[0] if files else "", folder=await self._folders.folder(files))
                except Unavailable as error:
                    log.warning("adapter_not_fetched", session=job.session, error=str(error))
                    if job.session in self._stopped:
                        return None
                    await asyncio.sleep(RETRY_S)
        finally:
            self._fetching.discard(job.session)

    async def cancel(self, session: str) -> None:
        """Stop at the next step; a turn whose adapter is still on its way, when that is here."""
        if session in self._fetching:
            self._stopped.add(session)
        if self._engine is not None:
            await self._engine.cancel(session)

    async def give_way(self, session: str) -> None:
        """Whoever goes on elsewhere says it all again: there is nothing to keep."""

    async def forget(self, session: str) -> None:
        """Drop the session's keys and values: nobody will come back for them."""
        if self._engine is not None:
            await self._engine.forget(session)

    @property
    def broken(self) -> str | None:
        """Why the engine computes no more."""
        return None if self._engine is None else self._engine.stopped

    def detail(self) -> dict[str, Any]:
        """What the engine holds now."""
        if self._engine is None:
            return {}
        stats = self._engine.stats()
        return {
            "running": stats.running,
            "waiting": stats.waiting,
            "cached_sessions": stats.cached_sessions,
            "cache_bytes": stats.cache_bytes,
            "cache_budget_bytes": stats.cache_budget_bytes,
            "evictions": stats.evictions,
            "generated_tokens": stats.generated_tokens,
            "weights_bytes": stats.weights_bytes,
            "adapters": stats.adapters,
        }

    async def close(self) -> None:
        """Stop the engine and free its memory."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()
            del engine
            collect()

    def _running(self) -> TextEngine:
        if self._engine is None:
            raise EngineError("no model is loaded")
        return self._engine


def sampling(job: Job) -> Sampling:
    """Return how to sample a turn. Without a seed it is derived, so that a second attempt says the same."""
    params = job.params
    derived = zlib.crc32(f"{job.session}:{job.turn.turn}".encode())
    return Sampling(
        max_tokens=int(params.get("max_tokens", 512)),
        temperature=float(params.get("temperature", 0.0)),
        top_p=float(params.get("top_p", 1.0)),
        seed=int(params.get("seed", derived)),
        stop=tuple(params.get("stop", ())),
    )
