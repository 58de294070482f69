"""A worker's websocket: tasks and cancellations go out, reports come in; while it is open the worker is alive."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import msgspec
import structlog

from helix_es.api.problems import classify
from helix_es.api.workers.attempts import RUNNING, task_of
from helix_es.api.workers.dispatch import Poll
from helix_es.api.workers.handout import TaskView
from helix_es.api.workers.offer import Request
from helix_es.api.workers.presence import BEAT_S
from helix_es.api.workers.reports import Completion, Failing, Piece, taken
from helix_es.api.workers.stations import Station
from helix_es.api.workers.taskid import TaskId
from helix_es.api.workers.workers import Workers
from helix_es.core.errors import HelixError, Rejected
from helix_es.replica import Replica

log = structlog.get_logger(__name__)

ASK_S = 30.0  # one question for work; the next follows at once
RETRY_S = 0.5


class Gone(Exception):
    """The other side has closed."""


class Socket(Protocol):
    """Text messages, one after the other."""

    async def receive(self) -> str | bytes:
        """Return the next message. Raises Gone."""

    async def send(self, text: bytes) -> None:
        """Send a message. Raises Gone."""


class Conversation:
    """One websocket of one worker."""

    def __init__(
        self, socket: Socket, workers: Workers, replica: Replica, request: Request, most_bytes: int
    ) -> None:
        self._socket = socket
        self._workers = workers
        self._replica = replica
        self._offer = request.offer
        self._most_bytes = most_bytes
        self._says_holds = request.holds is not None or request.offer.slots == 1
        self._given: set[str] = set(request.holds or ())
        self._told: set[str] = set()
        """Tasks whose worker was told to stop."""
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Serve until the worker closes. Raises Rejected if it may not be who it says."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._give())
                watching = group.create_task(self._watch())
                await self._hear()
                self._gone.set_result(None)  # a task that is being started now is started properly
                watching.cancel()
        except* Gone:
            pass

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._sending:
            await self._socket.send(msgspec.json.encode(message))

    # -- tasks

    async def _give(self) -> None:
        """Send a task as soon as there is one."""
        loop = asyncio.get_running_loop()
        station = await self._workers.dispatch.stations.of(self._offer.worker)
        lives = station.lives
        while not self._gone.done():
            if station.lives != lives:
                raise Gone  # it has left by another way, and means it
            holds = self._given if self._says_holds else None
            try:
                view = await self._workers.dispatch.next(
                    Poll(self._offer, loop.time() + ASK_S, self._gone, holds)
                )
            except Rejected:
                raise
            except HelixError as error:  # the log cannot be reached now
                await self._refuse(None, error)
                await asyncio.wait({self._gone}, timeout=RETRY_S)
                continue
            if view is not None:
                await self._hand_over(view)

    async def _hand_over(self, view: TaskView) -> None:
        self._given.add(view.task_id)
        # In a field of its own, since a task has a `type` too: text or image.
        await self._send({"type": "task", "task_id": view.task_id, "task": view})

    # -- cancellations, and signs of life

    async def _watch(self) -> None:
        station = await self._workers.dispatch.stations.of(self._offer.worker)
        while True:
            changed = station.changed()
            await self._workers.presence.beat(self._offer.worker)
            for task in sorted(self._given - self._told):
                if self._to_stop(task, station):
                    self._told.add(task)
                    await self._send({"type": "cancel", "task_id": task})
            await asyncio.wait({changed}, timeout=BEAT_S)

    def _to_stop(self, name: str, station: Station) -> bool:
        """Whether the worker works at something that nobody wants, or not from it."""
        try:
            task = TaskId.parse(name)
        except Rejected:
            self._given.discard(name)
            return False
        if station.beyond(task.session, self._replica.state.seq):
            return False
        seat = self._replica.state.seats.get(task.session)
        runs = seat is not None and seat.phase in RUNNING and task_of(seat) == task
        return not runs or (seat is not None and seat.phase == "cancelling")

    # -- reports

    async def _hear(self) -> None:
        while True:
            try:
                raw = await self._socket.receive()
            except Gone:
                return
            await self._take(raw)

    async def _take(self, raw: str | bytes) -> None:
        task: str | None = None
        try:
            if len(raw) > self._most_bytes:
                raise Rejected("body_too_large", f"a message has at most {self._most_bytes} bytes")
            fields = _object(raw)
            task = fields.pop("task_id", None)
            task = task if isinstance(task, str) else None
            await self._report(fields.pop("type", None), task, fields)
        except HelixError as error:
            await self._refuse(task, error)

    async def _report(self, kind: object, name: str | None, fields: dict[str, Any]) -> None:
        if kind not in ("delta", "complete", "fail"):
            raise Rejected(
                "invalid_request", f"type: {kind!r:.60} is not allowed; delta, complete or fail is"
            )
        if name is None:
            raise Rejected("invalid_request", "task_id: is missing")
        task = TaskId.parse(name)
        if task.worker != self._offer.worker:
            raise Rejected("task_not_found", f"no task {name[:120]!r} was given to {self._offer.worker}")
        if kind == "delta":
            await self._workers.delta(task, taken(fields, Piece))
        else:
            self._told.add(name)  # its end is no reason to say stop
            try:
                if kind == "complete":
                    await self._workers.complete(task, taken(fields, Completion))
                else:
                    await self._workers.fail(task, taken(fields, Failing))
            except HelixError:
                self._told.discard(name)
                raise
            self._given.discard(name)
            self._told.discard(name)
        await self._send({"type": "accepted", "task_id": name, "of": kind})

    async def _refuse(self, task: str | None, error: HelixError) -> None:
        await self._send(refusal(task, error))


def refusal(task: str | None, error: Exception) -> dict[str, Any]:
    """Return the message that says what went wrong."""
    code, _, detail = classify(error)
    return {"type": "error", "task_id": task, "code": code, "detail": detail}


def _object(raw: str | bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Rejected("invalid_json", f"the message is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Rejected("invalid_request", "a message is a JSON object with type and task_id")
    return fields
