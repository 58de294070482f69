"""One turn as it happens: its event stream, read on over dropped connections until the turn has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import msgspec

from helix_es.cli.client import BUSY, Api, Interrupted, NoHelix, Problem
from helix_es.core.errors import HelixError

SILENCE_S = 30.0  # three missed signs of life
# Waits between attempts to go on: 40 s in all, an API that starts again on a slow disk takes 10.
AGAIN_S: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0, *(2.0,) * 19)
ENDED = frozenset({"completed", "failed", "cancelled"})


class Place(msgspec.Struct, frozen=True):
    """The turn waits at the door."""

    position: int
    wait_s: float | None
    cold_start: dict[str, Any] | None = None
    """What must happen before the model is served at all."""


class Text(msgspec.Struct, frozen=True):
    """A piece of the answer."""

    text: str


class Progress(msgspec.Struct, frozen=True):
    """How far a long turn is."""

    step: int
    steps: int
    detail: dict[str, Any]


class Again(msgspec.Struct, frozen=True):
    """Another attempt replaces all the text there was."""

    attempt: int


class Dropped(msgspec.Struct, frozen=True):
    """The connection was lost; it will be made again."""

    why: str


class Ended(msgspec.Struct, frozen=True):
    """The turn has ended; nothing comes after this."""

    turn: dict[str, Any]


Update = Place | Text | Progress | Again | Dropped | Ended


class Answer:
    """The answer to one turn of a session."""

    def __init__(
        self,
        api: Api,
        session_id: str,
        turn: int,
        *,
        again_s: Sequence[float] = AGAIN_S,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = api
        self._session = f"/api/v1/sessions/{session_id}"
        self._turn = turn
        self._again_s = again_s
        self._pause = pause
        self._last_id = ""
        self._attempt = 0
        self._text = ""

    def updates(self) -> Generator[Update, None, None]:
        """Yield what happens, `Ended` last. Raises NoHelix or Interrupted when the server stays away."""
        failures = 0
        while True:
            why: HelixError = Interrupted("the event stream ended before the turn did")
            try:
                for update in self._connected():
                    failures = 0
                    yield update
                    if isinstance(update, Ended):
                        return
                turn = self._now()
                if turn["state"] in ENDED:
                    yield from self._end(turn)
                    return
            except (NoHelix, Interrupted) as error:
                why = error
            except Problem as error:
                if error.status not in BUSY:
                    raise
                why = error
            if failures == len(self._again_s):
                raise why
            if failures == 0:
                yield Dropped(str(why))
            self._pause(self._again_s[failures])
            failures += 1

    def _now(self) -> dict[str, Any]:
        turn: dict[str, Any] = self._api.get(self._session)["turns"][self._turn - 1]
        return turn

    def _connected(self) -> Iterator[Update]:
        """Yield updates from one connection, from where the one before it ended."""
        from httpx_sse import EventSource, SSEError

        headers = {"Accept": "text/event-stream"}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        path = f"{self._session}/events?turn={self._turn}"
        with self._api.stream(path, headers, SILENCE_S) as response:
            try:
                for event in EventSource(response).iter_sse():
                    if not event.data:
                        continue  # a sign of life: it comes as an event without data once there was an id
                    yield from self._updates(event.event, msgspec.json.decode(event.data))
                    self._last_id = event.id or self._last_id
            except (SSEError, msgspec.DecodeError, KeyError, TypeError) as error:
                raise Problem(200, "not_helix", f"{self._api.url} does not answer as Helix") from error

    def _updates(self, name: str, data: dict[str, Any]) -> Iterator[Update]:
        if name == "queue":
            yield Place(data["position"], data["wait_s"], data.get("cold_start"))
        elif name == "delta":
            if data["turn"] == self._turn:
                yield from self._piece(data["attempt"], data["offset"], data["text"])
        elif name == "progress":
            if data["turn"] == self._turn:
                yield Progress(data["step"], data["steps"], data["detail"])
        elif (turn := data.get("turn")) is not None and turn["turn"] == self._turn:
            if turn["state"] in ENDED:
                yield from self._end(turn)
            elif name == "turn.progressed" and (told := turn["progress"]) is not None:
                yield Progress(told["step"], told["steps"], told["detail"])
            else:
                yield from self._attempted(turn["attempt"])

    def _attempted(self, attempt: int) -> Iterator[Update]:
        if attempt > self._attempt:
            self._attempt = attempt
            if self._text:
                self._text = ""
                yield Again(attempt)

    def _piece(self, attempt: int, offset: int, text: str) -> Iterator[Update]:
        if attempt < self._attempt:
            return
        yield from self._attempted(attempt)
        # A piece beyond a gap is left out: the end of the turn carries the whole text.
        fresh = text[len(self._text) - offset :] if offset <= len(self._text) else ""
        if fresh:
            self._text += fresh
            yield Text(fresh)

    def _end(self, turn: dict[str, Any]) -> Iterator[Update]:
        """What the stream did not say, then the end."""
        yield from self._attempted(turn["attempt"])
        output: str = turn["output"]
        if output and not output.startswith(self._text):
            self._text = ""
            yield Again(turn["attempt"])
        if len(output) > len(self._text):
            yield Text(output[len(self._text) :])
        yield Ended(turn)
