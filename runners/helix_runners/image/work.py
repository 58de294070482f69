"""Image turns: parameters checked, pictures through the engine, files into the object store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from PIL import Image

from helix_es.core.catalogue import Model
from helix_es.core.errors import EngineError, LogFull, Misconfigured, Rejected, Unavailable
from helix_es.core.events import Failure, Workload
from helix_es.jetstream.files import Files
from helix_runners.faults import OUT_OF_MEMORY, collect, fault, is_out_of_memory
from helix_runners.image import png
from helix_runners.image.engine import ImageEngine, open_engine
from helix_runners.image.painting import Painting
from helix_runners.image.picture import Painted, Wanted
from helix_runners.image.request import Request, about, checked, wanted
from helix_runners.work import Job, Outcome, Output

log = structlog.get_logger(__name__)

PATIENCE_S = 30.0  # with the store of files: a leader election takes 5 to 9 s
RETRY_S = 0.5

Result = TypeVar("Result")


class _Ongoing:
    """A turn that is being done."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.first_ms: int | None = None
        """From the beginning to the first step."""
        self.files: list[str] = []
        self.cancelled = False
        self.painting: Painting | None = None

    def cancel(self) -> None:
        self.cancelled = True
        if self.painting is not None:
            self.painting.cancel()

    def ended(self, error: Failure | None = None, *, retry: bool = False) -> Outcome:
        return Outcome(
            files=self.files,
            error=error,
            retry=retry,
            cancelled=self.cancelled and error is None,
            first_token_ms=self.first_ms,
        )


class ImageWork:
    """`Work` on one diffusion model that stays in memory."""

    def __init__(self, files: Files, *, device: str, threads: int | None = None) -> None:
        """`device`: as torch calls it; `threads`: at most so many compute on a CPU, None leaves torch's choice."""
        self._files = files
        self._device = device
        self._threads = threads
        self._engine: ImageEngine | None = None
        self._slug = ""
        self._model: Model | None = None
        self._ongoing: dict[str, _Ongoing] = {}

    async def load(self, workload: Workload, model: Model) -> None:
        """Load the weights; the engine does that in its own thread, and heartbeats go on."""
        if model.image is None:
            raise Misconfigured(
                f"models.{workload.model}.image: is missing, but this model is to make images"
            )
        await self.close()
        self._engine = await asyncio.to_thread(
            open_engine, model.source, device=self._device, dtype=model.dtype, threads=self._threads
        )
        self._slug, self._model = workload.model, model

    async def perform(self, job: Job, output: Output) -> Outcome:
        """Make the pictures of the turn, one after the other."""
        turn = self._ongoing[job.session] = _Ongoing()
        try:
            await self._perform(job, output, turn)
        except (Rejected, EngineError, LogFull, Unavailable) as error:
            failure, retry = fault(error)
            return turn.ended(failure, retry=retry)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out_of_memory", session=job.session, error=str(error))
            failure = Failure(code=OUT_OF_MEMORY, message=f"the machine has no memory left: {error}")
            return turn.ended(failure, retry=True)
        finally:
            # after this GPU was given up, the same session may have come back before its old turn has ended
            if self._ongoing.get(job.session) is turn:
                del self._ongoing[job.session]
        return turn.ended()

    async def _perform(self, job: Job, output: Output, turn: _Ongoing) -> None:
        engine, model = self._engine, self._model
        if engine is None or model is None or model.image is None:
            raise EngineError("no model is loaded")
        request = checked(job, model.image)
        before = await self._picture_before(job, model.image.most_side)
        for index in range(request.params.count):
            picture = await asyncio.to_thread(wanted, request, job.turn.prompt, index, before)
            if turn.cancelled:
                return
            with engine.painting(picture) as painting:
                turn.painting = painting
                await self._tell(painting, output, turn, request, index)
                if painting.painted is None:
                    turn.cancelled = True
                    return
                turn.files.append(await self._store(job, index, picture, painting.painted))

    async def _tell(
        self, painting: Painting, output: Output, turn: _Ongoing, request: Request, index: int
    ) -> None:
        """Say each step of the picture until there are no more."""
        count = request.params.count
        while (step := await painting.next_step()) is not None:
            if turn.first_ms is None:
                turn.first_ms = int((time.monotonic() - turn.begun) * 1000)
            detail: dict[str, Any] = {"picture": index + 1, "pictures": count}
            if step.truncated:
                detail["truncated"] = True
            done = index * step.steps + step.step
            await output.step(done, count * step.steps, detail, preview=step.preview)

    async def _picture_before(self, job: Job, most_side: int) -> Image.Image | None:
        """Return the picture that the turn goes on from, or None if it is the first."""
        file = job.state.picture_before(job.turn.turn)
        if file is None:
            return None
        data = await _patiently(lambda: self._read(file, job.state.owner, png.most_bytes(most_side)))
        return await asyncio.to_thread(png.decoded, data, most_side)

    async def _read(self, file: str, owner: str, most_bytes: int) -> bytes:
        size = (await self._files.info(file, owner)).size
        if size > most_bytes:
            raise Rejected(
                "invalid_picture",
                f"the picture to go on from has {size} bytes; with this model, it has at most {most_bytes}",
            )
        return b"".join([piece async for piece in self._files.read(file)])

    async def _store(self, job: Job, index: int, picture: Wanted, painted: Painted) -> str:
        said = about(picture, job, self._slug, truncated=painted.truncated)
        data = await asyncio.to_thread(png.encoded, painted.image, said)
        return await _patiently(
            lambda: self._files.put(
                data,
                owner=job.state.owner,
                name=f"{job.session}-{job.turn.turn}-{index + 1}.png",
                media="image/png",
                purpose="image",
                session=job.session,
            )
        )

    async def cancel(self, session: str) -> None:
        """Stop before the next step; pictures of the turn that are done are kept."""
        if session in self._ongoing:
            self._ongoing[session].cancel()

    async def give_way(self, session: str) -> None:
        """A picture that is not done cannot be gone on with elsewhere."""

    async def forget(self, session: str) -> None:
        """Nothing is kept of a session: its pictures are in the store."""

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
            "pictures": stats.pictures,
            "weights_bytes": stats.weights_bytes,
        }

    async def close(self) -> None:
        """Stop the engine and free its memory."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()
            del engine
            collect()


async def _patiently(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Return what `attempt` gives, trying again for PATIENCE_S while the store does not answer."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await attempt()
        except Unavailable as error:
            if time.monotonic() > give_up_at:
                raise
            log.warning("files_not_reached", error=str(error))
        await asyncio.sleep(RETRY_S)
