"""OpenAI-compatible routes: a chat completion is a turn of a session, continued on its GPU if the client names one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import anyio
import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.response import Stream

from helix_es.api import openai_types as t
from helix_es.api.owner import owner_of
from helix_es.api.problems import classify
from helix_es.api.requests import NewSession, NewTurn, checked_history, digest
from helix_es.api.services import Services
from helix_es.api.sessions import SSE_HEADERS, Web
from helix_es.api.stream import Cursor, SessionStream
from helix_es.core.catalogue import Model
from helix_es.core.errors import HelixError, Rejected
from helix_es.core.events import Message
from helix_es.core.history import Session, Turn

MOST_GENERATIONS = 50
KEY_CHARS = 512
HEADER_SAFE = "".join(map(chr, range(33, 127)))  # what can stand in a header as it is
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class TurnFailedError(HelixError):
    """The turn ended without an answer."""

    code = "turn_failed"


class OpenAI(Controller):
    """GET /v1/models, POST /v1/chat/completions."""

    path = "/v1"
    tags = ("openai",)

    @get("/models", summary="The models")
    async def models(self, services: Services, request: Web) -> t.ModelCards:
        rows = sorted(services.settings.models.items())
        owner = owner_of(request, services.settings.auth)
        names = [slug for slug, model in rows if model.type == "text"]
        names += [f"{each.model}:{each.name}" for each in services.adapters.of(owner)]
        return t.ModelCards(data=[t.ModelCard(id=name) for name in names])

    @get("/models/{name:path}", summary="One model")
    async def model(self, name: str, services: Services, request: Web) -> t.ModelCard:
        owner = owner_of(request, services.settings.auth)
        wanted = name.strip("/")
        slug, adapter = adapted(wanted, services.settings.models)
        if slug not in services.settings.models:
            raise Rejected("unknown_model", f"The model {slug[:100]!r} does not exist")
        services.adapters.files(owner, slug, adapter)
        return t.ModelCard(id=wanted)

    @post("/chat/completions", status_code=200, summary="A chat completion", response_model=None)
    async def chat(self, data: t.ChatRequest, services: Services, request: Web) -> Response[Any] | Stream:
        owner = owner_of(request, services.settings.auth)
        key = request.headers.get("x-session-id") or data.user or None
        if key is not None and len(key) > KEY_CHARS:
            raise Rejected("invalid_request", f"x-session-id and user: at most {KEY_CHARS} characters")
        chat = Chat(services, owner, data, key)
        turn = await chat.begin()
        headers = {"x-session-id": quote(key, safe=HEADER_SAFE) if key else chat.session}
        if data.stream:
            return Stream(
                _guarded(chat.stream(turn), chat, turn),
                media_type="text/event-stream",
                headers={**SSE_HEADERS, **headers},
            )
        return Response(await chat.whole(turn), headers=headers)


class Chat:
    """One completion: the turn behind it, and its answer in OpenAI's words."""

    def __init__(self, services: Services, owner: str, data: t.ChatRequest, key: str | None) -> None:
        self._services = services
        self._owner = owner
        self._data = data
        self._key = key
        self.session = ""
        self.finished = False
        self.left = False

    async def begin(self) -> int:
        """Append the turn and return its number."""
        refuse_unserved(self._data)
        messages = conversation(self._data.messages)
        prompt, history = messages[-1], checked_history(messages[:-1], self._services.settings)
        params = self._params()
        desk = self._services.desk
        key = None
        if self._key is not None:
            key, found = await self._find()
            if found is not None:
                more = NewTurn(prompt=prompt.content, params=params)
                brought = None if found.messages(len(found.turns)) + _answered(found) == history else history
                return (await desk.say(found.session, more, self._owner, history=brought)).turn
        model, adapter = adapted(self._data.model, self._services.settings.models)
        body = NewSession(model=model, adapter=adapter, prompt=prompt.content, params=params)
        opened = await desk.open(body, self._owner, key, history or None)
        self.session = opened.session
        return len(opened.turns)

    async def _find(self) -> tuple[str, Session | None]:
        """Return the idempotency key that the client's session key stands for, and its session if there is one.

        A closed session cannot go on, so the client's key then stands for the next one.
        """
        for generation in range(MOST_GENERATIONS):
            key = f"openai:{self._data.model}:{generation}:{self._key}"
            try:
                found = await self._services.desk.read(digest("session", self._owner, key), self._owner)
            except Rejected as error:
                if error.code != "session_not_found":
                    raise
                return key, None
            if found.phase != "closed":
                self.session = found.session
                return key, found
        raise Rejected("session_closed", "this session key was closed too often; use another")

    def _params(self) -> dict[str, Any]:
        data = self._data
        given = {
            "max_tokens": data.max_completion_tokens or data.max_tokens,
            "temperature": data.temperature,
            "top_p": data.top_p,
            "seed": data.seed,
            "stop": data.stop,
        }
        return {name: value for name, value in given.items() if value is not None}

    # -- answers

    async def whole(self, turn: int) -> t.Completion:
        """Wait for the turn's end and return the answer."""
        async for _ in self._stream(turn).items(turn):
            pass
        ended = await self._ended(turn)
        await self.leave()
        message = t.Answer(content=ended.output)
        choice = t.Choice(message=message, finish_reason=ended.finish_reason or "stop")
        return t.Completion(
            id=self._id(turn),
            created=ended.queued_ms // 1000,
            model=self._data.model,
            choices=[choice],
            usage=_usage(ended),
        )

    async def stream(self, turn: int) -> AsyncIterator[bytes]:
        """Yield the answer as chunks: role, content, finish reason, usage if asked for, [DONE]."""
        created = (await self._services.desk.read(self.session)).turns[turn - 1].queued_ms // 1000
        yield self._chunk(turn, created, {"role": "assistant", "content": ""})
        sent = ""
        attempt: dict[int, str] = {}
        async for item in self._stream(turn).items(turn):
            if item is None:
                yield b": ping\n\n"
            elif item.name == "delta":
                number = item.data["attempt"]
                attempt[number] = attempt.get(number, "")[: item.data["offset"]] + item.data["text"]
                fresh = _beyond(sent, attempt[number])
                if fresh:
                    sent += fresh
                    yield self._chunk(turn, created, {"content": fresh})
        ended = await self._ended(turn)
        if fresh := _beyond(sent, ended.output):
            yield self._chunk(turn, created, {"content": fresh})
        yield self._chunk(turn, created, {}, ended.finish_reason or "stop")
        options = self._data.stream_options
        if options is not None and options.include_usage:
            yield self._chunk(turn, created, None, usage=_usage(ended))
        await self.leave()  # before the last word: clients hang up at it
        yield b"data: [DONE]\n\n"

    def _chunk(
        self,
        turn: int,
        created: int,
        delta: dict[str, str] | None,
        finish_reason: str | None = None,
        usage: t.ChatUsage | None = None,
    ) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}]
        chunk: dict[str, Any] = {
            "id": self._id(turn),
            "object": "chat.completion.chunk",
            "created": created,
            "model": self._data.model,
            "choices": choices if delta is not None else [],
        }
        if usage is not None:
            chunk["usage"] = usage
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _id(self, turn: int) -> str:
        return f"chatcmpl-{self.session}-{turn}"

    def _stream(self, turn: int) -> SessionStream:
        services = self._services
        return SessionStream(services.log, services.replica, services.deltas, self.session, Cursor())

    async def _ended(self, turn: int) -> Turn:
        ended = (await self._services.desk.read(self.session)).turns[turn - 1]
        self.finished = True
        if ended.error is not None:
            await self.leave()
            raise TurnFailedError(ended.error.message, code=ended.error.code)
        return ended

    async def leave(self) -> None:
        """A session that nobody can name again is closed, so that its slot is free at once."""
        self.left = True
        if self._key is None:
            await self._services.desk.close(self.session, self._owner)

    async def abandon(self, turn: int) -> None:
        """The client went away in the middle: stop computing for it."""
        if not self.finished:
            await self._services.desk.cancel(self.session, turn, self._owner)
        await self.leave()


async def _guarded(chunks: AsyncIterator[bytes], chat: Chat, turn: int) -> AsyncIterator[bytes]:
    """An error after the first byte can only be told in the stream."""
    try:
        async for chunk in chunks:
            yield chunk
    except HelixError as error:
        yield b"data: " + msgspec.json.encode(error_body(error)[1]) + b"\n\n"
    finally:
        if not chat.left:
            with anyio.CancelScope(shield=True):  # the response is being cancelled; this must still be said
                await chat.abandon(turn)


def _beyond(sent: str, now: str) -> str:
    """Return what of a new attempt's text goes beyond what was sent. Raises TurnFailedError if they differ:
    text that was sent cannot be taken back here, while our own event stream replaces it."""
    if now.startswith(sent):
        return now[len(sent) :]
    if sent.startswith(now):
        return ""
    raise TurnFailedError("the GPU was lost and a new attempt answers differently; send the request again")


def _answered(session: Session) -> list[Message]:
    last = session.turns[-1] if session.turns else None
    if last is None or not last.output:
        return []
    return [Message(role="assistant", content=last.output)]


def _usage(turn: Turn) -> t.ChatUsage:
    used = turn.usage
    return t.ChatUsage(
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        total_tokens=used.prompt_tokens + used.completion_tokens,
        prompt_tokens_details=t.PromptDetails(cached_tokens=used.cached_tokens),
    )


def adapted(name: str, models: Mapping[str, Model]) -> tuple[str, str | None]:
    """Return (model, adapter) of a name as in `smollm2:pirate`; a fine-tuned model is called so among the models."""
    if any(name.lower() in (slug.lower(), model.name.lower()) for slug, model in models.items()):
        return name, None
    model_name, colon, adapter = name.partition(":")
    return model_name, adapter if colon else None


def refuse_unserved(data: t.ChatRequest) -> None:
    """Raise Rejected for what is asked and would silently be left out."""
    if data.n not in (None, 1):
        raise Rejected("invalid_params", "n: only 1 is served")
    if data.tools:
        raise Rejected("invalid_params", "tools: are not served")
    if data.response_format and data.response_format.get("type") not in (None, "text"):
        raise Rejected("invalid_params", "response_format: only 'text' is served")


def conversation(messages: list[t.ChatMessage]) -> list[Message]:
    """Return the messages in our words. Raises Rejected for roles and contents that are not served."""
    said: list[Message] = []
    for number, message in enumerate(messages):
        role = ROLES.get(message.role)
        if role is None:
            raise Rejected("invalid_request", f"messages[{number}].role: must be one of {', '.join(ROLES)}")
        parts = message.content if isinstance(message.content, list) else []
        if any(part.type != "text" for part in parts):
            raise Rejected("invalid_request", f"messages[{number}].content: only text is served")
        text = message.content if isinstance(message.content, str) else "".join(part.text for part in parts)
        said.append(Message(role=role, content=text))  # type: ignore[arg-type]
    if not said or said[-1].role != "user":
        raise Rejected("invalid_request", "messages: the last one must be the user's")
    return said


TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return (status, body) of an error in OpenAI's shape."""
    code, status, detail = classify(error)
    if code in ("unknown_model", "unknown_adapter"):
        code, status = "model_not_found", 404
    elif status == 422:
        status = 400
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return status, {"error": {"message": detail, "type": kind, "param": None, "code": code}}


def openai_error(_request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    """The exception handler of /v1."""
    status, body = error_body(error)
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Response(body, status_code=status, headers=headers)
