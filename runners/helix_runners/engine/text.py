"""Tokens to final text: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what decoders put for bytes that are no character (yet)

Decode = Callable[[Sequence[int]], str]


class Detokeniser:
    """Gives out text that later tokens cannot change.

    Text is decoded together with the tokens before it, because some tokenizers write the first token of a
    text differently (a leading space less).
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._context: list[int] = []
        """Tokens whose text is out, the ones that give `_pending` its context."""
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Text that became final with `token`; empty while a character is incomplete."""
        self._pending.append(token)
        text = self._unseen()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What is left at the end, without the bytes of a character that was never completed."""
        text = self._unseen().rstrip(REPLACEMENT)
        self._context, self._pending = [], []
        return text

    def _unseen(self) -> str:
        seen = self._decode(self._context) if self._context else ""
        return self._decode(self._context + self._pending)[len(seen) :]


class StopFilter:
    """Ends a text before the stop string that is complete first, however the text was cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What of the text so far is certainly not part of a stop string."""
        if self.stopped:
            return ""
        self._held += text
        hits = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if hits:
            self.stopped = True
            _, start = min(hits)
            return self._release(start)
        return self._release(len(self._held) - self._beginning())

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, count: int) -> str:
        out, self._held = self._held[:count], self._held[count:]
        return out

    def _beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest


class TextStream:
    """The text of one turn, token by token."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self._detokeniser = Detokeniser(decode)
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; the text is then complete."""
        return self._filter.stopped

    def push(self, token: int) -> str:
        """Text that is final after `token`."""
        return self._filter.push(self._detokeniser.push(token))

    def flush(self) -> str:
        """The rest of the text; nothing may be pushed afterwards."""
        return self._filter.push(self._detokeniser.flush()) + self._filter.flush()
