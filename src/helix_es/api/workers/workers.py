"""All that a worker can ask for, whichever way it speaks: long polls or a websocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import PurePosixPath
from typing import BinaryIO, cast, get_args

import structlog

from helix_es.api.workers.attempts import Attempt
from helix_es.api.workers.dispatch import Dispatch, Poll
from helix_es.api.workers.handout import TaskView, inputs
from helix_es.api.workers.offer import Request
from helix_es.api.workers.parts import Parts
from helix_es.api.workers.reports import Completion, Failing, Piece
from helix_es.api.workers.taskid import TaskId, stale
from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.errors import LogFull, Rejected, Unavailable
from helix_es.jetstream.deltas import Step
from helix_es.jetstream.files import FileInfo, FilePurpose
from helix_es.turnlog import append_fact

log = structlog.get_logger(__name__)

LEAST_WAIT_S = 0.1  # a pull's way to the broker and back: who waits for nothing shall still get what is there
MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
SUFFIXES = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".txt": "text/plain",
    ".log": "text/plain",
    ".csv": "text/csv",
    ".safetensors": "application/octet-stream",
    ".bin": "application/octet-stream",
}
HEAD_BYTES = 16
PURPOSES = tuple(purpose for purpose in get_args(FilePurpose) if purpose != "dataset")


class Workers:
    """Raises Rejected with a stable code, Unavailable or LogFull; what was refused left nothing in the log."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.dispatch = Dispatch(parts)
        self.presence = parts.presence

    async def poll(self, request: Request, gone: asyncio.Future[None]) -> TaskView | None:
        """Return the next task, or None if none came while somebody waited."""
        until_s = asyncio.get_running_loop().time() + max(request.wait_s, LEAST_WAIT_S)
        return await self.dispatch.next(Poll(request.offer, until_s, gone, request.holds))

    async def leave(self, worker: e.GpuId) -> None:
        """Take the worker off the floor."""
        await self._parts.presence.leave(worker)

    async def delta(self, task: TaskId, piece: Piece) -> bool:
        """Tell what the task says; return whether it is to be stopped."""
        attempt = await self._parts.attempts.running(task)
        await self._parts.presence.beat(task.worker)
        if piece.text:
            await self._parts.speech.say(task, piece.text, piece.offset)
        if piece.step is not None and piece.steps is not None:
            step = Step(step=piece.step, steps=piece.steps, detail=piece.detail)
            if await self._parts.speech.step(task, step):
                await self._note(attempt, step)
        return attempt.cancelling

    async def _note(self, attempt: Attempt, step: Step) -> None:
        """Make a step a fact; it may be lost while the log does not answer."""
        task = attempt.task
        fact = e.TurnProgressed(
            session=task.session,
            turn=task.turn,
            attempt=task.attempt,
            gpu=task.worker,
            step=step.step,
            steps=step.steps,
            detail=step.detail,
        )
        key = f"{type_of(fact)}:{fact.gpu}:{fact.session}:{fact.turn}:{fact.attempt}:{fact.step}:0"
        try:
            seq = await append_fact(self._parts.log, fact, key, attempt)
        except (Unavailable, LogFull) as error:
            log.warning("step_not_noted", code=error.code, error=str(error))
            return
        if seq is None:
            raise stale(task)

    async def complete(self, task: TaskId, body: Completion) -> bool:
        """End the task with its result; return whether it was to be stopped."""
        cancelled = await self._parts.endings.complete(task, body)
        await self._parts.presence.beat(task.worker)  # only now is it known to be of that worker
        return cancelled

    async def fail(self, task: TaskId, body: Failing) -> bool:
        """End the task with an error; return whether it was to be stopped."""
        cancelled = await self._parts.endings.fail(task, body)
        await self._parts.presence.beat(task.worker)
        return cancelled

    # -- files

    async def store(self, task: TaskId, name: str, source: BinaryIO, purpose: str | None) -> FileInfo:
        """Keep a file that the task made; it belongs to the owner of its session."""
        looked = await self._parts.attempts.look(task)
        if looked.attempt is None:
            raise stale(task)
        await self._parts.presence.beat(task.worker)
        session = looked.session
        usual = (
            "adapter" if session.mode == "finetune" else "image" if session.type == "image" else "artefact"
        )
        if purpose is not None and purpose not in PURPOSES:
            raise Rejected(
                "invalid_file", f"purpose: {purpose[:40]!r} is not allowed; {', '.join(PURPOSES)} are"
            )
        media = await asyncio.to_thread(media_of, name, source)
        wanted = cast(FilePurpose, purpose or usual)
        if wanted == "image" and not media.startswith("image/"):
            raise Rejected("invalid_file", f"file {name}: is no PNG, JPEG, GIF or WebP, as an image must be")
        file = await self._parts.files.put(
            source, owner=session.owner, name=name, media=media, purpose=wanted, session=task.session
        )
        return await self._parts.files.info(file)

    async def input(self, task: TaskId, file: str) -> tuple[FileInfo, AsyncIterator[bytes]]:
        """Return a file that the task works on, and nothing else of anybody's."""
        looked = await self._parts.attempts.look(task)
        if looked.attempt is None:
            raise stale(task)
        await self._parts.presence.beat(task.worker)
        if file not in inputs(looked.session, looked.session.turns[task.turn - 1]):
            raise Rejected("file_not_found", f"no file {file[:80]!r} belongs to this task")
        return await self._parts.files.info(file, looked.session.owner), self._parts.files.read(file)


def media_of(name: str, source: BinaryIO) -> str:
    """Return the media type: of pictures by their first bytes, else by the name. `source` is left at its beginning."""
    head = source.read(HEAD_BYTES)
    source.seek(0)
    for magic, media in MAGIC:
        if head.startswith(magic):
            return media
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return SUFFIXES.get(PurePosixPath(name.lower()).suffix, "application/octet-stream")
