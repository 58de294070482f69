"""Several kinds of work on one device, one of them in memory at a time: what a GPU does that is given around."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from helix_es.core.catalogue import Model
from helix_es.core.errors import EngineError, Misconfigured
from helix_es.core.events import Kind, Mode, Workload
from helix_runners.faults import collect
from helix_runners.work import Job, Outcome, Output, Work

MakeOne = Callable[[], Work]


class SeveralWorks:
    """`Work` that is handed on to the kind of work that is loaded."""

    def __init__(self, makers: Mapping[tuple[Mode, Kind], MakeOne]) -> None:
        """`makers`: how to make the work of each kind; one is made when it is wanted, and closed for another."""
        self._makers = makers
        self._kind: tuple[Mode, Kind] | None = None
        self._work: Work | None = None

    async def load(self, workload: Workload, model: Model) -> None:
        """Load a model of any kind; another kind of work is closed before, so that both need never fit."""
        kind = (workload.mode, workload.type)
        make = self._makers.get(kind)
        if make is None:
            raise Misconfigured(f"this runner does no {workload.mode} of {workload.type}")
        if kind != self._kind:
            await self.close()
            # in a thread, since it imports for seconds, and heartbeats must go on
            self._work, self._kind = await asyncio.to_thread(make), kind
        await self._loaded().load(workload, model)

    async def perform(self, job: Job, output: Output) -> Outcome:
        """Do the turn with what is loaded."""
        return await self._loaded().perform(job, output)

    async def cancel(self, session: str) -> None:
        """Stop the session's turn."""
        if self._work is not None:
            await self._work.cancel(session)

    async def give_way(self, session: str) -> None:
        """Say a checkpoint soon, where there are any."""
        if self._work is not None:
            await self._work.give_way(session)

    async def forget(self, session: str) -> None:
        """Drop what is kept of the session."""
        if self._work is not None:
            await self._work.forget(session)

    @property
    def broken(self) -> str | None:
        """Why what is loaded does no more."""
        return None if self._work is None else self._work.broken

    def detail(self) -> dict[str, Any]:
        """What is done now, and its kind."""
        if self._work is None or self._kind is None:
            return {}
        return {"kind": "/".join(self._kind), **self._work.detail()}

    async def close(self) -> None:
        """Close what is loaded and free its memory."""
        work, self._work, self._kind = self._work, None, None
        if work is not None:
            await work.close()
            del work
            collect()

    def _loaded(self) -> Work:
        if self._work is None:
            raise EngineError("no model is loaded")
        return self._work
