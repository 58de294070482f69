"""A patient client: asks the other API where one does not answer, repeats itself under one key, resumes its streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from tests.chaos.processes import now_ms
from tests.chaos.shop import headers
from tests.chaos.told import Ack, Stream, Told
from tests.chaos.visits import Step

ENDS = frozenset({"turn.completed", "turn.failed", "turn.cancelled", "session.closed"})
PATIENCE_S = 90.0  # with one request
HEARD_S = 150.0  # until a turn has ended
SILENT_S = 6.0  # less than the server's own pings: a client that cannot know whether the API is frozen
AGAIN_S = (0.1, 1.0)
POLL_S = 0.7
LAGGING = frozenset({"conflict", "turn_open", "session_not_found", "turn_not_found", "file_not_found"})
"""What an API says that read from a replica which has not yet what another API told us."""
BROKEN = (httpx.HTTPError, httpx.StreamError)


class Refused(Exception):
    """The API said no, and will again."""


class Event(msgspec.Struct, kw_only=True):
    """A server-sent event."""

    name: str = ""
    id: str = ""
    data: Any = None


class Client:
    """One visitor; begins at one API and changes whenever that does not answer."""

    def __init__(
        self, http: httpx.AsyncClient, urls: list[str], told: Told, *, owner: str, first: int
    ) -> None:
        self._http = http
        self._urls = urls
        self._told = told
        self._headers = headers(owner)
        self._at = first

    @property
    def _url(self) -> str:
        return self._urls[self._at % len(self._urls)] + "/api/v1"

    def _note(self, what: str) -> None:
        self._told.refusals[what] = self._told.refusals.get(what, 0) + 1

    async def ask(self, method: str, path: str, *, key: str = "", **what: Any) -> Any:
        """Return the answer's JSON, None for an empty one. Raises Refused, also when patience is at its end."""
        pause_s, most_s = AGAIN_S
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        sent = self._headers | ({"Idempotency-Key": key} if key else {})
        while asyncio.get_running_loop().time() < deadline:
            try:
                answer = await self._http.request(method, self._url + path, headers=sent, **what)
            except BROKEN as error:
                self._note(type(error).__name__)
            else:
                if answer.is_success:
                    return answer.json() if answer.content else None
                code = _code(answer)
                self._note(f"{answer.status_code} {code}")
                if answer.status_code < 500 and code not in LAGGING:
                    raise Refused(code)
            self._at += 1
            await asyncio.sleep(pause_s)
            pause_s = min(most_s, 2 * pause_s)
        self._note("out of patience")
        raise Refused("out of patience")

    def acknowledged(self, session: str, turn: int) -> None:
        """Remember what we were promised."""
        self._told.acks.append(Ack(session=session, turn=turn, at_ms=now_ms()))

    # -- until a turn has ended

    async def hear(self, session: str, turn: int, step: Step) -> Stream:
        """Return the turn as we saw it to its end, by its stream or by asking."""
        stream = Stream(session=session, turn=turn, followed=step.follow)
        self._told.streams.append(stream)
        try:
            async with asyncio.timeout(HEARD_S):
                if step.follow:
                    await self._follow(stream, step)
                else:
                    await self._poll(stream)
        except (TimeoutError, Refused):
            self._told.unheard.append(f"{session}/{turn}")
        return stream

    async def _poll(self, stream: Stream) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            view = await self.ask("GET", f"/sessions/{stream.session}")
            if len(view["turns"]) < stream.turn:  # from a replica that lags
                continue
            turn = view["turns"][stream.turn - 1]
            if turn["ended_at"] is not None:
                stream.state, stream.output = turn["state"], turn["output"]
                return

    async def _follow(self, stream: Stream, step: Step) -> None:
        last, drop = "", step.drop_after
        while True:
            count = 0
            try:
                async for event in self._events(stream, last):
                    last, count = event.id or last, count + 1
                    if _take(stream, event):
                        return
                    if drop is not None and count >= drop:
                        drop = None
                        break
            except httpx.ReadTimeout:
                self._told.silences += 1
            except BROKEN as error:
                self._note(type(error).__name__)
            self._at += 1
            stream.resumes += 1
            await asyncio.sleep(AGAIN_S[0])

    async def _events(self, stream: Stream, last: str) -> AsyncIterator[Event]:
        sent = self._headers | ({"Last-Event-ID": last} if last else {})
        address = f"{self._url}/sessions/{stream.session}/events"
        asked = self._http.stream(
            "GET",
            address,
            headers=sent,
            params={"turn": stream.turn},
            timeout=httpx.Timeout(SILENT_S),
        )
        async with asked as answer:
            if not answer.is_success:
                await answer.aread()
                self._note(f"{answer.status_code} {_code(answer)} (stream)")
                await asyncio.sleep(AGAIN_S[1])
                return
            event = Event()
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    event.name = value
                elif name == "id":
                    event.id = value
                elif name == "data":
                    event.data = json.loads(value)
                elif not line and event.name:
                    yield event
                    event = Event()


def _take(stream: Stream, event: Event) -> bool:
    """Note an event; return whether it is the turn's end."""
    data = event.data
    if event.name == "delta":
        stream.heard(data["attempt"], data["offset"], data["text"])
        return False
    turn = data.get("turn")
    if not isinstance(turn, dict) or turn["turn"] != stream.turn:
        return False
    stream.attempted(turn["attempt"])
    if event.name not in ENDS:
        return False
    stream.state, stream.output = turn["state"], turn["output"]
    return True


def _code(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("code", "?"))
    except (ValueError, AttributeError):
        return "?"
