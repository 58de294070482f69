"""The sessions that hold a slot of this GPU, and what the runner remembers of their conversations."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from helix_es.core.history import Session


@dataclass
class Binding:
    """A session on this GPU."""

    session: str
    seated_seq: int
    """Sequence of the `started` that seated it."""
    fence: int
    """Sequence of the last fact about it that we know to be stored."""
    state: Session | None = None
    """The session as the facts make it that we know, complete; None: the log must be read."""
    turn: int = 0
    """The turn that is or was done last."""
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while one of its turns is being done."""
    cancelled: bool = False
    """The turn is to stop."""
    released: bool = False
    """The slot is free again: nobody wants to hear of the turn any more."""


class Bindings:
    """At most `slots` sessions. Only what the log has stored frees a slot."""

    def __init__(self) -> None:
        self.slots = 0
        self._sessions: dict[str, Binding] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    def get(self, session: str) -> Binding | None:
        return self._sessions.get(session)

    def bind(self, session: str, fence: int) -> Binding:
        """Seat a session whose `started` is in the log; one that sat here before waits for the end of its turn."""
        before = self._sessions.get(session)
        binding = self._sessions[session] = Binding(session, seated_seq=fence, fence=fence)
        if before is not None:
            before.released = before.cancelled = True
            binding.busy = before.busy
        return binding

    def release(self, session: str) -> Binding | None:
        """Free the slot of `session`."""
        found = self._sessions.pop(session, None)
        if found is not None:
            found.released = True
        self._notify()
        return found

    def clear(self) -> list[Binding]:
        """Free every slot: this GPU was given up."""
        found = list(self._sessions.values())
        for each in found:
            each.released = True
        self._sessions.clear()
        self._notify()
        return found

    def offer(self, slots: int) -> None:
        """Offer that many slots from now on; nobody is thrown out."""
        self.slots = slots
        self._notify()

    @property
    def load(self) -> int:
        """0 idle to 9 nearly full, as the broker's priorities want it."""
        return min(9, 10 * len(self._sessions) // self.slots) if self.slots else 9

    def fits(self, session: str) -> bool:
        """Whether `session` may be seated. Its own seat counts as taken until we have heard that it was freed."""
        return len(self._sessions) + (session not in self._sessions) <= self.slots

    async def room(self) -> None:
        """Wait until a slot is free."""
        while len(self._sessions) >= self.slots:
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
