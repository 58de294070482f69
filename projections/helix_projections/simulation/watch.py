"""What each GPU of a recorded floor offers, holds and computes, as its log goes on."""

from __future__ import annotations

from helix_es.core.occupancy import Occupancy
from helix_projections.simulation.meter import Meter


class Sharing:
    """Turns that run on a GPU, each with an equal part of its time."""

    __slots__ = ("_at_ms", "_got_ms", "since")

    def __init__(self) -> None:
        self.since: dict[str, float] = {}
        """Session -> what each had got when it began."""
        self._got_ms = 0.0
        self._at_ms = 0

    def advance(self, at_ms: int) -> float:
        """Return what each has got until now, ms."""
        if self.since:
            self._got_ms += (at_ms - self._at_ms) / len(self.since)
        self._at_ms = at_ms
        return self._got_ms


class Watch:
    """Keeps a meter by a fold that somebody else feeds."""

    def __init__(self, state: Occupancy, meter: Meter) -> None:
        self._state = state
        self._levels = (meter.present, meter.busy, meter.held, meter.offered)
        self._counted: dict[str, tuple[int, int, int, int]] = {}
        """GPU -> what it is counted with in each level."""
        self._sharing: dict[str, Sharing] = {}

    def begin(self, gpu: str, session: str, at_ms: int) -> None:
        """A turn of `session` runs on `gpu`."""
        sharing = self._sharing.get(gpu)
        if sharing is None:
            sharing = self._sharing[gpu] = Sharing()
        sharing.since[session] = sharing.advance(at_ms)

    def got_ms(self, gpu: str, session: str, at_ms: int) -> float:
        """Return what it had of the GPU's time until now, ms."""
        sharing = self._sharing.get(gpu)
        if sharing is None or session not in sharing.since:
            return 0.0
        return sharing.advance(at_ms) - sharing.since[session]

    def end(self, gpu: str, session: str, at_ms: int) -> float:
        """It runs no more; return what it had, ms."""
        got_ms = self.got_ms(gpu, session, at_ms)
        sharing = self._sharing.get(gpu)
        if sharing is not None:
            sharing.since.pop(session, None)
        return got_ms

    def look(self, name: str, at_ms: int) -> None:
        """Something happened to a GPU."""
        before, now = self._counted.get(name, (0, 0, 0, 0)), self._count(name)
        if now != before:
            self._counted[name] = now
            for level, old, new in zip(self._levels, before, now, strict=True):
                if new != old:
                    level.change(at_ms, new - old)

    def _count(self, name: str) -> tuple[int, int, int, int]:
        gpu = self._state.gpus.get(name)
        if gpu is None:
            return 0, 0, 0, 0
        sharing = self._sharing.get(name)
        busy = int(sharing is not None and bool(sharing.since))
        if gpu.purpose != "chat" or gpu.state != "ready":
            return 1, busy, 0, 0
        held = len(gpu.sessions)
        return 1, busy, held, max(gpu.slots, held)
