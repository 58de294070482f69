"""The fold that fills the tables: the one that decisions are made from, and beside it what its facts say in rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from helix_es.core import events as e
from helix_es.core import snapshot
from helix_es.core.codec import decode
from helix_es.core.errors import Unreadable
from helix_es.core.occupancy import Occupancy
from helix_es.core.session import Phase
from helix_es.jetstream.follow import Message
from helix_projections.analytics.aside import NOT_TEXT, aside, is_text
from helix_projections.analytics.gpus import GpuFact, Gpus, GpuStates, applies
from helix_projections.analytics.rows import Rows
from helix_projections.analytics.sessions import Sessions, SessionsState
from helix_projections.analytics.telling import tell_unreadable, telling


class _State(msgspec.Struct):
    occupancy: msgspec.Raw
    sessions: SessionsState
    gpus: GpuStates


class Chronicle:
    """Tables after a prefix of the log. The same log gives the same tables, whenever `take` is called."""

    def __init__(self, occupancy: Occupancy | None = None) -> None:
        self.occupancy = occupancy or Occupancy()
        self._rows = Rows()
        self._events: list[tuple[Any, ...]] = []
        self._sessions = Sessions(self._rows, self.occupancy)
        self._gpus = Gpus(self._rows)

    # -- the fold

    def apply(self, message: Message) -> None:
        """Fold the next message of the log. They come in order, each once."""
        seq, at_ms, subject, trace, body = message
        try:
            event = decode(subject, body)
        except Unreadable as error:
            self.occupancy.apply(e.Recorded(seq, at_ms, subject, None))
            self._events.append(tell_unreadable(seq, at_ms, subject, trace))
            self._set_aside(message, str(error))
            return
        fold, tag, tell = _KINDS[type(event)]
        happened = fold(self, e.Recorded(seq, at_ms, subject, event), event)
        if not is_text(body):
            self._set_aside(message, NOT_TEXT)
            self._events.append(tell(seq, at_ms, subject, tag, event, happened, trace, None))
            return
        self._events.append(tell(seq, at_ms, subject, tag, event, happened, trace, body))

    def _set_aside(self, message: Message, reason: str) -> None:
        self._rows.add("set_aside", aside("LOG", message, reason))

    def take(self) -> Rows:
        """Return the rows since the last call."""
        rows = self._rows
        self._rows = Rows()
        self._sessions.took(self._rows)
        self._gpus.took(self._rows)
        if self._events:
            rows.at_ms = self._events[-1][1]
            rows.added["events"], self._events = self._events, []
        rows.seq = self.occupancy.seq
        return rows

    @property
    def waiting(self) -> int:
        """Messages since the last `take`."""
        return len(self._events)

    def _stepped(self, record: e.Recorded, event: Any) -> bool:
        """A fact about a session in its seat: it happens, or the fold counts it as a misfit."""
        occupancy = self.occupancy
        seat = occupancy.seats.get(event.session)
        if seat is None:
            occupancy.apply(record)
            return False
        before, misfits = seat.phase, occupancy.misfits
        occupancy.apply(record)
        if occupancy.misfits != misfits:
            return False
        self._sessions.stepped(record, event, seat, before)
        return True

    def _created(self, record: e.Recorded, event: e.SessionCreated) -> bool:
        self.occupancy.apply(record)
        return self._sessions.created(record, event)

    def _queued(self, record: e.Recorded, event: e.TurnQueued) -> bool:
        misfits = self.occupancy.misfits
        self.occupancy.apply(record)
        if self.occupancy.misfits != misfits:
            return False
        self._sessions.queued(record, event, self.occupancy.seats[event.session])
        return True

    def _started(self, record: e.Recorded, event: e.TurnStarted) -> bool:
        seat = self.occupancy.seats.get(event.session)
        binds = seat is not None and seat.phase == "admitted"
        happened = self._stepped(record, event)
        if happened and binds:
            self._gpus.held(record, event.gpu, self.occupancy.gpus.get(event.gpu))
        return happened

    def _released(self, record: e.Recorded, event: e.SessionReleased) -> bool:
        happened = self._stepped(record, event)
        if happened:
            self._gpus.held(record, event.gpu, self.occupancy.gpus.get(event.gpu))
        return happened

    def _closed(self, record: e.Recorded, event: e.SessionClosed) -> bool:
        occupancy = self.occupancy
        seat, misfits = occupancy.seats.get(event.session), occupancy.misfits
        before: Phase = "released" if seat is None else seat.phase
        occupancy.apply(record)
        if occupancy.misfits != misfits:
            return False
        self._sessions.closed(record, event, seat, before)
        return True

    def _gpu(self, record: e.Recorded, event: GpuFact) -> bool:
        fleet = self.occupancy.fleet
        applied = applies(fleet, event)
        gpu = fleet.gpus.get(event.gpu)
        was = None if gpu is None else (gpu.state, gpu.model, gpu.type, gpu.purpose)
        self.occupancy.apply(record)
        if not applied:
            return False
        if gpu is not None and was is not None:
            if isinstance(event, e.GpuAssigned):
                if was[1:] != (gpu.model, gpu.type, gpu.purpose):
                    self._gpus.assigned(record, event.reason)
            elif was[0] == "assigned":
                self._gpus.loaded(record, gpu, event.load_ms if isinstance(event, e.GpuReady) else None)
        self._gpus.held(record, event.gpu, fleet.gpus.get(event.gpu))
        return True

    def _resized(self, record: e.Recorded, event: e.FleetResized) -> bool:
        self.occupancy.apply(record)
        self._rows.add("fleet_sizes", (record.seq, record.at_ms, event.pool, event.size, event.reason))
        return True

    def _policy(self, record: e.Recorded, event: e.PolicySet) -> bool:
        self.occupancy.apply(record)
        self._rows.add("policies", (record.seq, record.at_ms, msgspec.json.encode(event.policy)))
        return True

    def _other(self, record: e.Recorded, _event: e.AnyEvent) -> bool:
        self.occupancy.apply(record)
        return True

    # -- kept

    def dump(self) -> bytes:
        """Return the fold as JSON. All rows must have been taken before."""
        kept = snapshot.dump(self.occupancy)
        return msgspec.json.encode(_State(msgspec.Raw(kept), self._sessions.state, self._gpus.state))

    @classmethod
    def load(cls, data: bytes) -> Chronicle:
        """Return what `dump` was called on. Raises Unreadable."""
        try:
            state = msgspec.json.decode(data, type=_State)
        except msgspec.DecodeError as error:
            raise Unreadable(f"kept fold: {error}") from error
        chronicle = cls(snapshot.load(bytes(state.occupancy)))
        rows = chronicle._rows
        chronicle._sessions = Sessions(rows, chronicle.occupancy, state.sessions)
        chronicle._gpus = Gpus(rows, state.gpus)
        return chronicle


_OF_GPU = GpuFact.__args__
_TURNS = (
    e.TurnAdmitted,
    e.TurnContinued,
    e.TurnProgressed,
    e.TurnCancelling,
    e.TurnYielding,
    e.TurnReturned,
    e.TurnCompleted,
    e.TurnFailed,
    e.TurnCancelled,
)
_ALL: tuple[type[e.Event], ...] = e.AnyEvent.__args__

_FOLDS: dict[type[e.Event], Callable[[Chronicle, e.Recorded, Any], bool]] = {
    **dict.fromkeys(_ALL, Chronicle._other),
    **dict.fromkeys(_TURNS, Chronicle._stepped),
    **dict.fromkeys(_OF_GPU, Chronicle._gpu),
    e.SessionCreated: Chronicle._created,
    e.TurnQueued: Chronicle._queued,
    e.TurnStarted: Chronicle._started,
    e.SessionReleased: Chronicle._released,
    e.SessionClosed: Chronicle._closed,
    e.FleetResized: Chronicle._resized,
    e.PolicySet: Chronicle._policy,
}
_KINDS = {kind: (_FOLDS[kind], str(kind.__struct_config__.tag), telling(kind)) for kind in _ALL}
