"""Answers questions for a server: few at once, over a snapshot that is new enough, without blocking its event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

from helix_es.analytics.keeper import Keeper
from helix_es.analytics.questions import Limits, Question, Unanswered
from helix_es.analytics.schema import SNAPSHOT
from helix_es.analytics.snapshot import Wishes
from helix_es.settings import Analytics

AT_ONCE = 2
WAIT_S = 5.0  # for one of them to end
MOST_WAITING = 16  # more would all wait in vain
DEFAULT_FOLDER = Path("var/helix/analytics")  # of a `helix up` in this folder


class Analyst:
    """The analytics of one folder. Processes start with the first question."""

    def __init__(self, settings: Analytics, folder: Path | None = None) -> None:
        """`folder` is used where the settings name none."""
        self.settings = settings
        self.folder = Path(settings.folder) if settings.folder else folder or DEFAULT_FOLDER
        self._wishes = Wishes(self.folder, settings.fresh_s)
        self._free = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        limits = Limits(memory_bytes=settings.query_bytes)
        self._keepers = [Keeper(self.folder, limits) for _ in range(AT_ONCE)]
        self._idle = list(self._keepers)

    async def ask(self, question: Question) -> bytes:
        """Return the answer as JSON. Raises Unanswered."""
        await self._admitted()
        try:
            await self._wishes.wish()
            if not (self.folder / SNAPSHOT).is_file():
                raise Unanswered("analytics_unavailable", _NOTHING)
            keeper = self._idle.pop()
        except BaseException:
            self._free.release()
            raise
        # A client that goes away leaves its query running to its end or its limit; the place is taken until then.
        answer = await asyncio.shield(self._asked(keeper, question))
        if isinstance(answer, Unanswered):
            raise answer
        return answer

    async def _asked(self, keeper: Keeper, question: Question) -> bytes | Unanswered:
        """Return the answer, or why there is none: raised here, it would be logged if nobody waits any more."""
        try:
            return await asyncio.to_thread(keeper.ask, question)
        except Unanswered as error:
            return error
        finally:
            self._idle.append(keeper)
            self._free.release()

    async def _admitted(self) -> None:
        if self._waiting >= MOST_WAITING:
            raise _busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            raise _busy() from None
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the processes."""
        for keeper in self._keepers:
            await asyncio.to_thread(keeper.close)


_NOTHING = (
    "there is no snapshot to ask: start 'helix analytics', "
    "or set [analytics] folder to where it keeps its database"
)


def _busy() -> Unanswered:
    return Unanswered(
        "sql_busy", f"{AT_ONCE} queries run already and did not end in time; ask again in a moment"
    )
