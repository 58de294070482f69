"""The adapters that fine-tunes made: folded from the log, by owner, model and name; the newest of a name counts."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from helix_es.core import events as e
from helix_es.core.errors import Rejected
from helix_es.jetstream.files import Files

SHOWN = 20  # names in an error


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A finished fine-tune."""

    name: str
    owner: str
    model: str
    session: str
    files: list[str]
    """Weights and configuration, in the format of peft."""
    created_ms: int


class Adapters:
    """Every adapter there is. Fed with each record of the log, from its beginning."""

    def __init__(self) -> None:
        self._training: dict[str, e.SessionCreated] = {}
        self._finished: dict[tuple[str, str, str], Adapter] = {}

    def take(self, record: e.Recorded) -> None:
        """Fold a record."""
        match record.event:
            case e.SessionCreated(mode="finetune", session=session) as created:
                self._training.setdefault(session, created)
            case e.TurnCompleted(session=session, files=files) if session in self._training:
                self._finish(self._training.pop(session), files, record.at_ms)
            case e.SessionClosed(session=session) | e.TurnFailed(session=session):
                self._training.pop(session, None)
            case e.TurnCancelled(session=session):
                self._training.pop(session, None)
            case _:
                pass

    def _finish(self, created: e.SessionCreated, files: list[str], at_ms: int) -> None:
        if not files or created.name is None:
            return
        adapter = Adapter(
            name=created.name,
            owner=created.owner,
            model=created.model,
            session=created.session,
            files=files,
            created_ms=at_ms,
        )
        key = (created.owner, created.model, created.name)
        self._finished.pop(key, None)  # so that the order stays that of the making
        self._finished[key] = adapter

    def of(self, owner: str) -> list[Adapter]:
        """Return the owner's adapters, newest first."""
        return [each for each in reversed(self._finished.values()) if each.owner == owner]

    def files(self, owner: str, model: str, name: str | None) -> list[str]:
        """Return the files of the adapter called `name`, [] for None. Raises Rejected("unknown_adapter")."""
        if name is None:
            return []
        found = self._finished.get((owner, model, name))
        if found is None:
            there = [each.name for each in self.of(owner) if each.model == model][:SHOWN]
            raise Rejected(
                "unknown_adapter",
                f"no adapter {name[:100]!r} for {model}; there are: {', '.join(there) or 'none yet'}",
            )
        return found.files


@dataclass
class Shelf:
    """What sessions can refer to: adapters by name, files by id."""

    adapters: Adapters
    files: Files
