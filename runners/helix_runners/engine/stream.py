"""From the computing thread to one consumer: text that waits is joined, the last item ends the stream."""

from __future__ import annotations

import asyncio

from helix_es.core.errors import HelixError
from helix_runners.engine.port import Finished, Piece

Item = Piece | Finished | HelixError


class Stream:
    """Belongs to one event loop; `put` and `take` are called in it only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._texts: list[str] = []
        self._tokens = 0
        self._last: Finished | HelixError | None = None
        self._changed = asyncio.Event()

    @property
    def complete(self) -> bool:
        """Whether the last item has come, taken or not."""
        return self._last is not None

    def put(self, item: Item) -> None:
        """Add what the engine gave out; anything after the last item is ignored."""
        if self._last is not None:
            return
        if isinstance(item, Piece):
            self._texts.append(item.text)
            self._tokens = item.tokens
        else:
            self._last = item
        self._changed.set()

    async def take(self) -> Piece | Finished:
        """Wait for something; all text that is there comes as one piece. Raises the error it ended with."""
        await self._changed.wait()
        if self._texts:
            piece = Piece(text="".join(self._texts), tokens=self._tokens)
            self._texts.clear()
            if self._last is None:
                self._changed.clear()
            return piece
        if isinstance(self._last, Finished):
            return self._last
        raise self._last if self._last is not None else RuntimeError("stream signalled without an item")
