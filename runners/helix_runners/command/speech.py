"""What a turn's program says, on its way out: counted, kept, and stopped where it is too much."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right

import msgspec

from helix_es.core.events import Usage
from helix_runners.command.failures import CommandError, too_large
from helix_runners.work import Output


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """How far the program is, as it says itself."""

    step: int
    steps: int
    detail: dict[str, object]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The program's own word that its answer is complete."""

    usage: Usage = Usage()
    finish_reason: str = "stop"


class Meter:
    """Lets text through as long as it fits."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self.over = False
        """Whether something did not fit; from then on nothing does."""

    def take(self, text: str) -> str:
        """Return what of `text` still fits, in bytes of JSON: as deltas and the log hold it."""
        if self.over:
            return ""
        if _stored_bytes(text) > self._left:
            self.over = True
            text = text[
                : bisect_right(range(len(text)), self._left, key=lambda end: _stored_bytes(text[:end])) - 1
            ]
        self._left -= _stored_bytes(text)
        return text


def _stored_bytes(text: str) -> int:
    return len(msgspec.json.encode(text)) - 2  # without the quotes


class Speech:
    """One turn's answer as it grows."""

    def __init__(self, output: Output, most_bytes: int) -> None:
        self._output = output
        self._most_bytes = most_bytes
        self._meter = Meter(most_bytes)
        self._said: list[str] = []
        self._begun = time.monotonic()
        self.first_token_ms: int | None = None

    @property
    def text(self) -> str:
        return "".join(self._said)

    async def say(self, text: str) -> None:
        """Give out `text`. Raises CommandError("output_too_large") where it is too much, after what fits."""
        kept = self._meter.take(text)
        if kept:
            if self.first_token_ms is None:
                self.first_token_ms = int((time.monotonic() - self._begun) * 1000)
            self._said.append(kept)
            await self._output.say(kept)
        if self._meter.over:
            raise too_large(self._most_bytes)

    async def step(self, step: Step) -> None:
        """Say how far it is."""
        await self._output.step(step.step, step.steps, step.detail)


class Channel:
    """From the one reader of a program that stays to one turn. Holds at most one answer, however slow the turn is."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._meter = Meter(most_bytes)
        self._text: list[str] = []
        self._step: Step | None = None
        self._end: Done | CommandError | None = None
        self._news = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when the program does no more for this turn."""

    def push(self, text: str) -> None:
        """Pass on the next piece; nothing comes after the end."""
        if self._end is not None:
            return
        self._text.append(self._meter.take(text))
        if self._meter.over:
            self.fail(too_large(self._most_bytes))
        self._news.set()

    def step(self, step: Step) -> None:
        """Pass on a step; one that nobody has heard yet is replaced by the next."""
        if self._end is None:
            self._step = step
            self._news.set()

    def end(self, how: Done | CommandError) -> None:
        """Pass on that the program is done with this turn."""
        self._end = self._end or how
        self.ended.set()
        self._news.set()

    def fail(self, error: CommandError) -> None:
        """End the turn although the program goes on: it must still be told to stop."""
        self._end = self._end or error
        self._news.set()

    async def relay(self, speech: Speech) -> Done:
        """Give out all that comes, to the end. Raises CommandError if it is a failure."""
        while True:
            await self._news.wait()
            self._news.clear()
            text, self._text = "".join(self._text), []
            step, self._step = self._step, None
            if step is not None:
                await speech.step(step)
            await speech.say(text)
            if self._end is None or self._text or self._step is not None:
                continue  # while that was given out, more came
            if isinstance(self._end, CommandError):
                raise self._end
            return self._end
