"""Routes of workers that speak only HTTP: ask for a task, say what there is of it, end it; or all over a websocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, BinaryIO, cast

import msgspec
from litestar import Controller, Response, WebSocket, delete, get, post, websocket
from litestar.connection import ASGIConnection
from litestar.exceptions import WebSocketDisconnect
from litestar.params import Parameter
from litestar.response import Stream
from opentelemetry.trace import SpanKind

from helix_es import telemetry
from helix_es.api.files import FileView, checked_name, download, file_view, refuse_larger, size_of, uploaded
from helix_es.api.services import Services
from helix_es.api.sessions import Web
from helix_es.api.workers.conversation import Conversation, Gone, refusal
from helix_es.api.workers.handout import TaskView
from helix_es.api.workers.keys import check_worker
from helix_es.api.workers.offer import Request, request_of, worker_name
from helix_es.api.workers.reports import Completion, Failing, Piece, read
from helix_es.api.workers.taskid import TaskId
from helix_es.core.errors import HelixError

POLICY_VIOLATION = 1008  # RFC 6455


class Accepted(msgspec.Struct, kw_only=True):
    """What was said is stored."""

    status: str = "accepted"
    cancel: bool
    """Somebody asked to stop: end the task with what there is."""


class WorkerRoutes(Controller):
    """Everything under /api/v1/worker but uploads."""

    path = "/worker"
    tags = ("worker",)

    @get(
        "/task",
        summary="Ask for a task (long poll)",
        description="204: none came. The poll is the worker's sign of life, and makes it a GPU of the floor.",
    )
    async def task(
        self,
        services: Services,
        request: Web,
        mode: str = "create",
        kind_of_work: Annotated[str | None, Parameter(query="type")] = None,
        model_name: str | None = None,
        worker: str | None = None,
        wait_s: str = "30",
        slots: str = "1",
        lease_s: str = "30",
        kind: str = "http",
        holds: str | None = None,
    ) -> Response[TaskView | None]:
        asked = _request(request, services)
        async with _hung_up(request) as gone:
            try:
                view = await services.workers.poll(asked, gone)
            except (
                asyncio.CancelledError
            ):  # this process is stopping: another replica, or its next life, goes on
                view = None
        return Response(view, status_code=204 if view is None else 200)

    @post("/task/{name:str}/delta", status_code=202, summary="Say the next piece, a step, or that you live")
    async def delta(self, name: str, services: Services, request: Web) -> Accepted:
        task = _task(request, services, name)
        piece = read(await request.body(), Piece)
        with telemetry.span("worker delta", SpanKind.SERVER, request.headers):
            return Accepted(cancel=await services.workers.delta(task, piece))

    @post("/task/{name:str}/complete", status_code=202, summary="End a task with its result")
    async def complete(self, name: str, services: Services, request: Web) -> Accepted:
        task = _task(request, services, name)
        body = read(await request.body(), Completion)
        with telemetry.span("worker complete", SpanKind.SERVER, request.headers):
            return Accepted(cancel=await services.workers.complete(task, body))

    @post("/task/{name:str}/fail", status_code=202, summary="End a task with an error")
    async def fail(self, name: str, services: Services, request: Web) -> Accepted:
        task = _task(request, services, name)
        body = read(await request.body(), Failing)
        with telemetry.span("worker fail", SpanKind.SERVER, request.headers):
            return Accepted(cancel=await services.workers.fail(task, body))

    @get("/task/{name:str}/input/{file:str}", summary="Read a file that a task works on")
    async def input(self, name: str, file: str, services: Services, request: Web) -> Stream:
        info, content = await services.workers.input(_task(request, services, name), file)
        return download(info, content)

    @delete("/{worker:str}", summary="Leave the floor")
    async def leave(self, worker: str, services: Services, request: Web) -> None:
        name = worker_name(worker)
        check_worker(request.headers, services.settings.auth, name)
        await services.workers.leave(name)

    @websocket("/ws")
    async def talk(self, socket: WebSocket[Any, Any, Any], services: Services) -> None:
        """The same over one websocket."""
        await socket.accept()
        try:
            asked = _request(socket, services)
            most_bytes = services.settings.limits.body_bytes
            await Conversation(Text(socket), services.workers, services.replica, asked, most_bytes).run()
            await socket.close()
        except* WebSocketDisconnect:
            pass
        except* HelixError as group:
            await _refuse(socket, _first(group))


class TaskFiles(Controller):
    """Uploads of workers; apart, since they may be larger than other bodies."""

    path = "/worker/task"
    tags = ("worker",)

    @post("/{name:str}/files", summary="Keep a file that a task made (multipart: file, purpose)")
    async def store(self, name: str, services: Services, request: Web) -> FileView:
        task = _task(request, services, name)
        file, purpose = await uploaded(request)
        try:
            called = checked_name(file.filename)
            size = await asyncio.to_thread(size_of, file)
            refuse_larger(called, size, services.settings.limits.file_bytes)
            source = cast(BinaryIO, file.file)  # a spooled file reads as any binary file does
            wanted = None if purpose is None else str(purpose)
            return file_view(await services.workers.store(task, called, source, wanted))
        finally:
            await file.close()


class Text:
    """A `Socket` of Litestar's."""

    def __init__(self, socket: WebSocket[Any, Any, Any]) -> None:
        self._socket = socket

    async def receive(self) -> str | bytes:
        """See `Socket.receive`."""
        event = await self._socket.receive()
        if event["type"] != "websocket.receive":
            raise Gone
        return event.get("text") or event.get("bytes") or ""

    async def send(self, text: bytes) -> None:
        """See `Socket.send`."""
        try:
            await self._socket.send_text(text)
        except WebSocketDisconnect as error:
            raise Gone from error


def _request(connection: ASGIConnection[Any, Any, Any, Any], services: Services) -> Request:
    asked = request_of(dict(connection.query_params.items()), services.settings)
    check_worker(connection.headers, services.settings.auth, asked.offer.worker)
    return asked


def _task(request: Web, services: Services, name: str) -> TaskId:
    """Return the task that is spoken of, by whoever may speak for its worker."""
    task = TaskId.parse(name)
    check_worker(request.headers, services.settings.auth, task.worker)
    return task


@asynccontextmanager
async def _hung_up(request: Web) -> AsyncIterator[asyncio.Future[None]]:
    """Give a future that is done when the client is gone."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone: asyncio.Task[None] = asyncio.create_task(wait())
    try:
        yield gone
    finally:
        gone.cancel()


def _first(group: BaseExceptionGroup[HelixError]) -> Exception:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return cast(Exception, first)


async def _refuse(socket: WebSocket[Any, Any, Any], error: Exception) -> None:
    """Say why, then close."""
    refused = refusal(None, error)
    try:
        await socket.send_text(msgspec.json.encode(refused))
        await socket.close(POLICY_VIOLATION, refused["code"])
    except WebSocketDisconnect:
        pass
