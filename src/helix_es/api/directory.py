"""All sessions there ever were, newest first, for listing: folded from every fact, a few words for each."""

from __future__ import annotations

import msgspec

from helix_es.core import events as e
from helix_es.core.session import NEXT, SESSION_STATE, Phase, SessionState


class Entry(msgspec.Struct, kw_only=True):
    """One line of the directory."""

    session: str
    owner: str
    type: str
    model: str
    phase: Phase = "created"
    turn_failed: bool = False
    batch: bool = False

    @property
    def state(self) -> SessionState:
        if self.batch and self.turn_failed and self.phase == "released":
            return "failed"
        return SESSION_STATE[self.phase]


class Directory:
    """Entries in the order in which the sessions were created."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._order: list[str] = []
        self._at: dict[str, int] = {}

    def take(self, record: e.Recorded) -> None:
        """Fold a record."""
        event = record.event
        if isinstance(event, e.SessionCreated):
            if event.session not in self._entries:
                self._at[event.session] = len(self._order)
                self._order.append(event.session)
                self._entries[event.session] = Entry(
                    session=event.session,
                    owner=event.owner,
                    type=event.type,
                    model=event.model,
                    batch=event.mode == "finetune",
                )
            return
        entry = self._entries.get(getattr(event, "session", ""))
        if entry is None or event is None:
            return
        after = NEXT.get(type(event), {}).get(entry.phase)
        if after is not None:
            entry.phase = after
            if isinstance(event, e.TurnFailed):
                entry.turn_failed = True

    def page(
        self,
        *,
        owner: str,
        state: str | None,
        type: str | None,
        model: str | None,
        limit: int,
        after: str | None,
    ) -> tuple[list[str], bool]:
        """Return at most `limit` session ids, newest first, and whether there are more."""
        start = self._at.get(after, 0) if after is not None else len(self._order)
        found: list[str] = []
        for index in range(start - 1, -1, -1):
            entry = self._entries[self._order[index]]
            if entry.owner != owner or (state is not None and entry.state != state):
                continue
            if (type is not None and entry.type != type) or (model is not None and entry.model != model):
                continue
            if len(found) == limit:
                return found, True
            found.append(entry.session)
        return found, False
