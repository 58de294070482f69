"""Routes of sessions, turns and their event streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, Response, delete, get, post
from litestar.params import Parameter
from litestar.response import Stream
from opentelemetry.trace import SpanKind

from helix_es import telemetry
from helix_es.api.owner import owner_of
from helix_es.api.requests import NewSession, NewTurn, checked_key
from helix_es.api.services import Services
from helix_es.api.stream import Cursor, SessionStream
from helix_es.api.views import SessionView, TurnView, session_view, turn_view
from helix_es.core.catalogue import find
from helix_es.core.errors import Rejected
from helix_es.core.session import SessionState

SSE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
Web = Request[Any, Any, Any]
Idempotency = Annotated[str | None, Parameter(header="Idempotency-Key", default=None)]


class SessionPage(msgspec.Struct, kw_only=True):
    """Sessions, newest first."""

    object: Literal["list"] = "list"
    data: list[SessionView]
    has_more: bool


class Sessions(Controller):
    """POST, GET and DELETE under /api/v1/sessions."""

    path = "/sessions"
    tags = ("sessions",)

    @post("/", summary="Start a session with its first turn")
    async def create(
        self, data: NewSession, services: Services, request: Web, idempotency_key: Idempotency
    ) -> SessionView:
        owner = owner_of(request, services.settings.auth)
        with telemetry.span("POST /sessions", SpanKind.SERVER, request.headers):
            session = await services.desk.open(data, owner, checked_key(idempotency_key))
        return session_view(session, services.replica.state)

    @get("/", summary="List sessions, newest first")
    async def page(
        self,
        services: Services,
        request: Web,
        session_state: Annotated[SessionState | None, Parameter(query="state")] = None,
        kind: Annotated[Literal["text", "image"] | None, Parameter(query="type")] = None,
        model: str | None = None,
        limit: Annotated[int, Parameter(ge=1, le=100)] = 20,
        after: str | None = None,
    ) -> SessionPage:
        owner = owner_of(request, services.settings.auth)
        slug = None if model is None else find(services.settings.models, model)
        names, more = services.directory.page(
            owner=owner, state=session_state, type=kind, model=slug, limit=limit, after=after
        )
        found = [await services.desk.read(name) for name in names]
        return SessionPage(data=[session_view(each, services.replica.state) for each in found], has_more=more)

    @get("/{sid:str}", summary="A session with its turns")
    async def one(self, sid: str, services: Services, request: Web) -> SessionView:
        session = await services.desk.read(sid, owner_of(request, services.settings.auth))
        return session_view(session, services.replica.state)

    @delete("/{sid:str}", summary="Close a session")
    async def close(self, sid: str, services: Services, request: Web) -> None:
        await services.desk.close(sid, owner_of(request, services.settings.auth))

    @post("/{sid:str}/turns", summary="Say the next thing")
    async def say(
        self, sid: str, data: NewTurn, services: Services, request: Web, idempotency_key: Idempotency
    ) -> TurnView:
        owner = owner_of(request, services.settings.auth)
        with telemetry.span("POST /turns", SpanKind.SERVER, request.headers):
            turn = await services.desk.say(sid, data, owner, checked_key(idempotency_key))
        return turn_view(turn)

    @post("/{sid:str}/turns/{turn:int}/cancel", status_code=202, summary="Cancel a turn")
    async def cancel(self, sid: str, turn: int, services: Services, request: Web) -> Response[dict[str, str]]:
        await services.desk.cancel(sid, turn, owner_of(request, services.settings.auth))
        return Response({"status": "accepted"}, status_code=202)

    @get("/{sid:str}/events", summary="Follow a session (server-sent events)")
    async def events(
        self,
        sid: str,
        services: Services,
        request: Web,
        turn: Annotated[int | None, Parameter(ge=1, le=1_000_000)] = None,
        last_event_id: Annotated[str | None, Parameter(header="Last-Event-ID", default=None)] = None,
    ) -> Stream:
        session = await services.desk.read(sid, owner_of(request, services.settings.auth))
        if turn is not None and turn > len(session.turns):
            raise Rejected("turn_not_found", f"session {sid} has no turn {turn}")
        cursor = Cursor.parse(last_event_id)
        stream = SessionStream(services.log, services.replica, services.deltas, sid, cursor)
        return Stream(_encoded(stream, turn), media_type="text/event-stream", headers=SSE_HEADERS)


async def _encoded(stream: SessionStream, turn: int | None) -> AsyncIterator[bytes]:
    async for item in stream.items(turn):
        yield b": ping\n\n" if item is None else item.encode()
