"""One attempt at a turn on a simulated GPU: where its fence is, and how others reach it while it waits."""

from __future__ import annotations

import asyncio

from helix_es.core.events import TurnStarted
from helix_es.jetstream.tasks import TaskEvent
from helix_runners.bindings import Binding
from helix_runners.stall import Stall


class Attempt:
    """Waits without a thread; whoever wants something of it ends the wait."""

    def __init__(self, event: TaskEvent, started: TurnStarted, seq: int, stall: Stall) -> None:
        """`seq`: of `started` in the log. `stall`: of its GPU."""
        self.event = event
        self.started = started
        self.binding = Binding(event.session, seated_seq=seq, fence=seq)
        """Its fence; each attempt has its own, so that a late one cannot move that of the next."""
        self.yielding = False
        """A checkpoint is wanted at the next step."""
        self._stall = stall
        self._waking: asyncio.Future[None] | None = None

    @property
    def stopped(self) -> bool:
        """It is to end; `dropped` says whether that is a fact."""
        return self.binding.cancelled

    @property
    def dropped(self) -> bool:
        """It is another's now, or over: nothing more is appended."""
        return self.binding.released

    def stop(self) -> None:
        """End it, with what there is."""
        self.binding.cancelled = True
        self._wake()

    def drop(self) -> None:
        """End it without a word."""
        self.binding.released = True
        self.stop()

    def give_way(self) -> None:
        """Make a checkpoint soon."""
        self.yielding = True
        self._wake()

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until somebody wants something; then it has moved."""
        if self.stopped or seconds <= 0:
            await asyncio.sleep(0)
        else:
            loop = asyncio.get_running_loop()
            waking = self._waking = loop.create_future()
            timer = loop.call_later(seconds, self._wake)
            try:
                await waking
            finally:
                timer.cancel()
                self._waking = None
        self._stall.moved()

    def _wake(self) -> None:
        if self._waking is not None and not self._waking.done():
            self._waking.set_result(None)
