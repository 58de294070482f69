"""Every GPU's slots by the raw records: never above the limit, never a chat on one that is kept for batch work."""

from __future__ import annotations

from bisect import bisect_right

import msgspec

from helix_es.core import events as e
from tests.chaos.violation import Rule, Violation


class Card(msgspec.Struct, kw_only=True):
    """One incarnation of a GPU."""

    gpu: str
    batch: bool
    """It can do fine-tunes."""
    limit: int = 0
    """Sessions that it may hold now: a wider limit holds at once, a narrower one when the runner answered it."""
    asked: list[tuple[int, int]] = msgspec.field(default_factory=list)
    """(sequence, slots) of each assignment that may still be in force."""
    serving: e.Workload | None = None
    bound: set[str] = msgspec.field(default_factory=set)
    most: int = 0
    """Sessions that it ever held at once."""

    @property
    def chats(self) -> bool:
        return self.serving is not None and self.serving.mode == "create"

    @property
    def kept(self) -> bool:
        """Counts for the reservation."""
        return self.batch and not self.chats


class Below(msgspec.Struct, kw_only=True):
    """A time in which fewer GPUs than reserved were kept free of chats."""

    since_ms: int
    until_ms: int | None = None
    least: int


class Slots:
    """Give it all records in order."""

    def __init__(self) -> None:
        self.cards: dict[tuple[str, str], Card] = {}
        self.live: dict[str, Card] = {}
        self.violations: list[Violation] = []
        self.below: list[Below] = []
        self.stale_starts = 0
        """Starts by an incarnation that was given up already; the scheduler takes them back."""
        self.assignments = 0
        self._work: dict[str, e.Workload] = {}
        self._reserved: list[tuple[int, int]] = [(0, 0)]
        """(sequence, GPUs) of each policy."""
        self._losses: list[int] = []
        """Sequences at which a kept GPU went away."""
        self._reached = False

    def apply(self, record: e.Recorded) -> None:
        """Take the next record."""
        match record.event:
            case e.SessionCreated() as created:
                self._work[created.session] = e.Workload(created.mode, created.type, created.model)
            case e.GpuJoined() as joined:
                self._join(joined)
            case e.GpuAssigned() as told:
                self._assign(record, told)
            case e.GpuReady() as ready:
                self._answer(ready)
            case e.GpuLost() | e.GpuLeft() as gone:
                self._leave(record.seq, gone)
            case e.TurnStarted() as started:
                self._start(record, started)
            case e.SessionReleased() as released:
                card = self.cards.get((released.gpu, released.incarnation))
                if card is not None:
                    card.bound.discard(released.session)
            case e.PolicySet(policy=policy):
                self._reserved.append((record.seq, policy.reserved))
            case _:
                pass
        self._measure(record.at_ms)

    def _break(self, rule: Rule, record: e.Recorded, gpu: str, text: str, session: str = "") -> None:
        self.violations.append(Violation(rule=rule, seq=record.seq, session=session, gpu=gpu, text=text))

    # -- slots

    def _join(self, joined: e.GpuJoined) -> None:
        batch = any(work.mode == "finetune" for work in joined.workloads)
        card = Card(gpu=joined.gpu, batch=batch)
        self.cards[joined.gpu, joined.incarnation] = self.live[joined.gpu] = card

    def _assign(self, record: e.Recorded, told: e.GpuAssigned) -> None:
        card = self.cards.get((told.gpu, told.incarnation))
        if card is None or self.live.get(told.gpu) is not card:
            return  # decided before its end was known: nobody hears it
        self.assignments += 1
        work = e.Workload("finetune" if told.purpose == "batch" else "create", told.type, told.model)
        if card.serving not in (None, work) and card.bound:
            text = f"given from {card.serving} to {work} while {len(card.bound)} sessions are bound"
            self._break("slots", record, told.gpu, text)
        chatted, card.serving = card.chats, work
        card.asked.append((record.seq, told.slots))
        card.limit = max(card.limit, told.slots)
        if card.batch and card.chats and not chatted:
            self._check_reserved(record, told)

    @staticmethod
    def _oldest(card: Card, ready: e.GpuReady) -> int:
        """Return the sequence of the assignment that `ready` answers."""
        return ready.assigned_seq or (card.asked[-1][0] if card.asked else 0)

    def _answer(self, ready: e.GpuReady) -> None:
        card = self.cards.get((ready.gpu, ready.incarnation))
        if card is None:
            return
        oldest = self._oldest(card, ready)
        card.asked = [each for each in card.asked if each[0] >= oldest]
        card.limit = max((slots for _, slots in card.asked), default=0)

    def _start(self, record: e.Recorded, started: e.TurnStarted) -> None:
        card, session = self.cards.get((started.gpu, started.incarnation)), started.session
        if card is None:
            self._break("slots", record, started.gpu, "started by a GPU that never joined", session)
            return
        self.stale_starts += self.live.get(started.gpu) is not card
        if session not in card.bound:  # further turns of whoever is bound go on while it drains
            card.bound.add(session)
            card.most = max(card.most, len(card.bound))
            if len(card.bound) > card.limit:
                text = f"holds {len(card.bound)} sessions, its limit is {card.limit}"
                self._break("slots", record, started.gpu, text, session)
        work = self._work.get(session)
        if work != card.serving:
            mode = "" if card.serving is None else card.serving.mode
            rule: Rule = "reserved" if work is not None and work.mode != mode else "slots"
            self._break(rule, record, started.gpu, f"{work} started on a GPU for {card.serving}", session)

    # -- reservation

    @property
    def kept(self) -> int:
        """GPUs that can do fine-tunes and are not for chats."""
        return sum(card.kept for card in self.live.values())

    def _leave(self, seq: int, gone: e.GpuLost | e.GpuLeft) -> None:
        card = self.cards.get((gone.gpu, gone.incarnation))
        if card is None or self.live.get(gone.gpu) is not card:
            return
        if card.kept:
            self._losses.append(seq)
        del self.live[gone.gpu]

    def _check_reserved(self, record: e.Recorded, told: e.GpuAssigned) -> None:
        """Whoever decided it could not know what was lost since."""
        lost = len(self._losses) - bisect_right(self._losses, told.decided_seq)
        known = self._reserved[bisect_right(self._reserved, (told.decided_seq, 1 << 62)) - 1][1]
        reserved = min(known, self._reserved[-1][1])
        if self.kept + lost < reserved:
            since = f"{lost} were lost since {told.decided_seq}"
            text = f"given to chats: {self.kept} are kept, {since}, {reserved} reserved"
            self._break("reserved", record, told.gpu, text)

    def _measure(self, at_ms: int) -> None:
        kept, reserved = self.kept, self._reserved[-1][1]
        self._reached |= reserved > 0 and kept >= reserved
        low = self._reached and kept < reserved
        now = self.below[-1] if self.below and self.below[-1].until_ms is None else None
        if now is not None:
            now.least = min(now.least, kept)
            if not low:
                now.until_ms = at_ms
        elif low:
            self.below.append(Below(since_ms=at_ms, least=kept))
