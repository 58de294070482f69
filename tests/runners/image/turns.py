"""Image turns for tests: jobs, an output that remembers, and the work with its store."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from helix_es.core.catalogue import Picture
from helix_es.core.events import SessionId, Workload
from helix_es.core.history import Session, Turn
from helix_es.jetstream.files import Files
from helix_runners.image.work import ImageWork
from helix_runners.work import Job, Outcome, Work
from tests.runners.image.engines import PATIENCE_S, Unet

TINY = Workload("create", "image", "tiny")
PICTURE = Picture(width=64, height=64, steps=4, guidance=3.0, most_side=128, most_steps=60, most_count=3)


class Heard:
    """An `Output` that remembers; `at` is called with every step's number."""

    def __init__(self, at: Any = None) -> None:
        self.steps: list[tuple[int, int]] = []
        self.details: list[dict[str, Any]] = []
        self.previews: list[bytes] = []
        self._at = at

    async def say(self, text: str) -> None:
        raise AssertionError(f"pictures say nothing, but {text!r}")

    async def step(
        self,
        step: int,
        steps: int,
        detail: Mapping[str, Any] | None = None,
        *,
        preview: bytes = b"",
        checkpoint: Sequence[str] = (),
    ) -> bool:
        self.steps.append((step, steps))
        self.details.append(dict(detail or {}))
        if preview:
            self.previews.append(preview)
        if self._at is not None:
            await self._at(step)
        return False

    def alive(self) -> None:
        """Steps say enough."""


class Shop:
    """The work under test, its store and its denoiser."""

    def __init__(self, made: ImageWork, files: Files, unet: Unet) -> None:
        self.work: Work = made
        self.files = files
        self.unet = unet

    async def perform(self, job: Job, heard: Heard | None = None) -> Outcome:
        async with asyncio.timeout(PATIENCE_S):
            return await self.work.perform(job, heard or Heard())

    async def contents(self, outcome: Outcome) -> list[bytes]:
        """Return the files of a turn that completed."""
        assert outcome.error is None, outcome.error
        return [b"".join([piece async for piece in self.files.read(file)]) for file in outcome.files]


def job(*prompts: str, session: str = "s1", before: str | None = None, **params: Any) -> Job:
    """Return the last of a session's turns; each before it made the picture `before`."""
    turns = [
        Turn(
            turn=number,
            state="running" if number == len(prompts) else "completed",
            prompt=prompt,
            files=[] if before is None or number == len(prompts) else [before],
            queued_ms=0,
        )
        for number, prompt in enumerate(prompts, 1)
    ]
    state = Session(session=SessionId(session), type="image", model="tiny", owner="ann", turns=tuple(turns))
    return Job(state=state, params=params)


def said_of(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return {name: str(value) for name, value in image.info.items()}
