"""Fine-tunes as the runner's work: one at a time on one base model that stays in memory."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import torch

from helix_es.core.catalogue import Model
from helix_es.core.errors import EngineError, Rejected
from helix_es.core.events import Failure, Workload
from helix_es.core.params import TrainParams, parsed
from helix_es.jetstream.files import Files
from helix_runners.finetune.base import Base
from helix_runners.finetune.course import Asked, Course, Tools
from helix_runners.finetune.failures import TrainingFailed
from helix_runners.finetune.thread import TorchThread
from helix_runners.work import Job, Outcome, Output

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Place:
    """A fine-tune in the line. A session may have two for a moment: an attempt that is lost, and the next."""

    session: str
    task: asyncio.Task[Any] | None
    asked: Asked = field(default_factory=Asked)


class FinetuneWork:
    """`Work` that learns adapters."""

    def __init__(self, files: Files, *, device: str, threads: int | None = None) -> None:
        """`device`: cpu or cuda:<number>. `threads`: torch's on a CPU; None leaves torch's choice."""
        self._threads = threads
        self._tools = Tools(files=files, thread=TorchThread(), base=Base(device))
        self._loaded = False
        self._line: list[Place] = []
        """The first computes, the others wait."""
        self._course: Course | None = None
        self._changed = asyncio.Event()

    async def load(self, workload: Workload, model: Model) -> None:
        """Load the base model and its tokenizer. Who still computes on another was released, and is not waited for."""
        await self._stop_all()
        try:
            await self._tools.thread.run(lambda: self._load(model))
        except TrainingFailed as error:
            raise EngineError(str(error), code=error.failure.code) from error
        self._loaded = True

    def _load(self, model: Model) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._tools.base.load(model)

    async def perform(self, job: Job, output: Output) -> Outcome:
        """Learn the adapter; a second one waits until the first has ended."""
        if not self._loaded:
            raise EngineError("no model is loaded")
        place = Place(job.session, asyncio.current_task())
        self._line.append(place)
        try:
            while self._line[0] is not place:
                if place.asked.to_stop:
                    return Outcome(cancelled=True)
                await self._changed.wait()
            return await self._do(job, output, place)
        finally:
            self._line.remove(place)
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _do(self, job: Job, output: Output, place: Place) -> Outcome:
        try:
            params = parsed(job.params, TrainParams)
            with tempfile.TemporaryDirectory(prefix="helix-finetune-") as folder:
                self._course = Course(job, params, self._tools, Path(folder))
                return await self._course.run(output, place.asked)
        except TrainingFailed as error:
            log.info("training_failed", session=job.session, code=error.failure.code, error=str(error))
            return Outcome(error=error.failure, retry=error.retry)
        except Rejected as error:
            return Outcome(error=Failure(code=error.code, message=str(error)))
        finally:
            self._course = None

    async def cancel(self, session: str) -> None:
        """Stop after the step that is computed now; what was learnt until then is kept."""
        for place in self._line:
            if place.session == session:
                place.asked.to_stop = True
        self._notify()

    async def give_way(self, session: str) -> None:
        """Keep a checkpoint after the step that is computed now, and go on; who still waits has nothing to keep."""
        for place in self._line:
            if place.session == session:
                place.asked.to_keep = True

    async def forget(self, session: str) -> None:
        """Nothing is kept of a session that is over."""

    @property
    def broken(self) -> str | None:
        """Why the device computes no more."""
        return self._tools.thread.broken

    def detail(self) -> dict[str, Any]:
        """What is learnt now."""
        return {"doing": "nothing"} if self._course is None else self._course.detail()

    async def close(self) -> None:
        """Stop what is computed, without an end of it in the log: another runner goes on from its checkpoint."""
        await self._stop_all()
        await self._tools.thread.run(self._tools.base.free)
        await self._tools.thread.close()

    async def _stop_all(self) -> None:
        running = [place.task for place in self._line if place.task is not None]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
