"""The name of a task in a worker's hand: it says which attempt of which turn, and who was given it."""

from __future__ import annotations

import msgspec

from helix_es.core import events as e
from helix_es.core.errors import Rejected
from helix_es.core.subjects import TOKEN

MOST_DIGITS = 9


class TaskId(msgspec.Struct, frozen=True):
    """`<session>.<turn>.<attempt>.<worker>.<incarnation>`.

    Nobody is shown an incarnation but in a task of his own, and it is random: the id is also the proof of having
    been given the task, at any replica of the API.
    """

    session: e.SessionId
    turn: int
    attempt: int
    worker: e.GpuId
    incarnation: str

    def __str__(self) -> str:
        return f"{self.session}.{self.turn}.{self.attempt}.{self.worker}.{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> TaskId:
        """Return the id in `text`. Raises Rejected("task_not_found") for one that we never gave out."""
        parts = text.split(".")
        if len(parts) == 5 and all(TOKEN.match(part) for part in parts):
            session, turn, attempt, worker, incarnation = parts
            if _number(turn) and _number(attempt):
                return cls(e.SessionId(session), int(turn), int(attempt), e.GpuId(worker), incarnation)
        raise not_found(text)


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and text[0] != "0"


def not_found(text: object) -> Rejected:
    """Return the refusal of an id that nobody was given."""
    return Rejected("task_not_found", f"no task {str(text)[:120]!r} was ever given out")


def stale(task: TaskId) -> Rejected:
    """Return the refusal of a task that is over, or another's by now."""
    return Rejected(
        "stale_attempt", f"task {task} is not this worker's any more: drop it and ask for another"
    )
