"""Whether a log's decisions follow from the log: each is made again from the state that it says it was made from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.decision import RULES, Decision
from helix_es.core.occupancy import Occupancy
from helix_es.core.placement import decide
from helix_es.core.subjects import fence_of, subject_of

KEPT = 100  # differences that a report holds; all are counted
SKEW_MS = 10_000  # clocks of two nodes of a cluster; LOG and BEATS may be stamped by different ones
RETRY_MS = 1_000  # an append that is repeated waited longer than this


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded decision that does not follow."""

    seq: int
    """Of the record."""
    decided_seq: int
    decided_at_ms: int
    what: str
    recorded: dict[str, Any]
    again: dict[str, Any] | None
    """What is decided about the same session, GPU or pool from there; None: nothing."""


class Report(msgspec.Struct, kw_only=True):
    """What came of it. The log is reproduced if there is no difference."""

    events: int = 0
    last_seq: int = 0
    plans: int = 0
    """Instants at which something was decided that is in the log."""
    reproduced: dict[str, int] = msgspec.field(default_factory=dict)
    """Type of fact -> decisions that were made again exactly, in their order."""
    overtaken: int = 0
    """Decisions of the same plans that are not in the log since somebody else's fact came first: their fence failed."""
    unwritten: int = 0
    """Those about which nothing more is in the log, or only the same again: whoever decided ended, or got no answer."""
    other_rules: int = 0
    """Decisions by rules of another version than this release's, which cannot be made again here."""
    late: int = 0
    """Admissions that stand after others that follow them: their append had to be repeated for more than a second."""
    differing: int = 0
    differences: list[Difference] = msgspec.field(default_factory=list)
    """The first ones, in log order."""

    @property
    def ok(self) -> bool:
        return self.differing == 0

    @property
    def admissions(self) -> int:
        return self.reproduced.get("turn.admitted", 0)


class _Plan:
    """What is decided again, and which of it has been met in the log."""

    def __init__(self, decisions: list[Decision], expected: int, *, ours: bool, folded_ms: int) -> None:
        self.decisions = decisions
        self.expected = expected
        """How many of the log's decisions are still to come."""
        self.ours = ours
        """Whether it was made by the rules of this release."""
        self.folded_ms = folded_ms
        """The newest timestamp of the log then."""
        self.place = {fence_of(subject_of(each.event)): n for n, each in enumerate(decisions)}
        self.met: set[int] = set()
        self.last: dict[e.Workload, tuple[int, e.Recorded]] = {}
        """Queue -> the last in the plan's order that was admitted."""


class Verification:
    """Read the log twice: `note` every record, then `take` every record. Afterwards `report` is complete.

    The first reading finds from where decisions were made, since a decision stands later in the log than the state
    that it follows from. Between the two only these places are kept.
    """

    def __init__(self) -> None:
        self.report = Report()
        self._state = Occupancy()
        self._points: dict[int, Counter[int]] = {}
        self._plans: dict[tuple[int, int], _Plan] = {}
        self._fences: dict[str, int] = {}
        self._missing: dict[str, tuple[int, e.AnyEvent]] = {}

    def note(self, record: e.Recorded) -> None:
        """Take in from where the record's decision was made, if it is one."""
        if (point := decided(record.event)) is not None:
            seq, at_ms = point
            self._points.setdefault(seq, Counter())[at_ms] += 1

    def take(self, record: e.Recorded) -> None:
        """Compare the record with what is decided again, fold it, and decide wherever a decision was made."""
        self.report.events += 1
        self.report.last_seq = record.seq
        fence = fence_of(record.subject)
        if (point := decided(record.event)) is not None and record.event is not None:
            self._compare(record, record.event, fence, point)
        if record.subject.count(".") >= 2:  # else it is a stranger's, under no fence
            self._explain(fence, record)
            self._fences[fence] = record.seq
        if isinstance(record.event, e.SessionClosed):
            self._missing.pop(fence, None)
        self._state.apply(record)
        self._decide(self._points.pop(record.seq, None))

    def _decide(self, counts: Counter[int] | None) -> None:
        """Decide here again, at each clock at which that was done."""
        state = self._state
        for at_ms, expected in sorted((counts or {}).items()):
            ours = max(1, state.policy.rules) == RULES  # 0: from before it was recorded
            plan = decide(state, at_ms) if ours and at_ms >= state.folded_ms else []
            self._plans[state.seq, at_ms] = _Plan(plan, expected, ours=ours, folded_ms=state.folded_ms)
            self.report.plans += ours

    def end(self) -> Report:
        """Return the report, once everything was taken."""
        for seq, at_ms in [*self._plans]:
            self._settle((seq, at_ms))
        self.report.unwritten += len(self._missing)
        self._missing.clear()
        return self.report

    def _compare(self, record: e.Recorded, event: e.AnyEvent, fence: str, point: tuple[int, int]) -> None:
        plan = self._plans.get(point)
        if plan is None:  # made from a state that comes later in the log, or from before its beginning
            self._differ(record, event, point, "was decided from a sequence that is not before it", None)
            return
        plan.expected -= 1
        if plan.ours:
            self._judge(record, event, fence, plan)
        else:
            self.report.other_rules += 1
        if plan.expected == 0:
            self._settle(point)

    def _judge(self, record: e.Recorded, event: e.AnyEvent, fence: str, plan: _Plan) -> None:
        point = decided(event) or (0, 0)
        place = plan.place.get(fence)
        decision = None if place is None else plan.decisions[place]
        if not plan.folded_ms <= point[1] <= record.at_ms + SKEW_MS:
            self._differ(
                record, event, point, "was decided at a time that the log's clock did not show", None
            )
        elif place is None or decision is None:
            self._differ(record, event, point, "is not decided again", None)
        elif decision.event != event:
            self._differ(record, event, point, "is decided otherwise", decision.event)
        elif decision.expected_seq != self._fences.get(fence, 0):
            self._differ(record, event, point, "was stored past its fence", decision.event)
        else:
            self._met(record, event, point, plan, place)

    def _met(
        self, record: e.Recorded, event: e.AnyEvent, point: tuple[int, int], plan: _Plan, place: int
    ) -> None:
        """Count it; admissions to one queue must also stand in the log in the order of their plan."""
        plan.met.add(place)
        if isinstance(event, e.TurnAdmitted):
            queue = _queue(event)
            last = plan.last.get(queue)
            if last is None or place > last[0]:
                plan.last[queue] = (place, record)
            elif record.at_ms - point[1] < RETRY_MS:
                self._differ(record, event, point, "was admitted after others that follow it", event)
                return
            else:
                self.report.late += 1
        kind = type_of(event)
        self.report.reproduced[kind] = self.report.reproduced.get(kind, 0) + 1

    def _settle(self, point: tuple[int, int]) -> None:
        """What the plan has beyond the log was overtaken, or waits for what the log says next about it."""
        plan = self._plans.pop(point)
        for place, decision in enumerate(plan.decisions):
            if place in plan.met:
                continue
            fence = fence_of(subject_of(decision.event))
            if self._fences.get(fence, 0) == decision.expected_seq and self._passed(plan, place, point):
                continue
            if self._fences.get(fence, 0) > decision.expected_seq:
                self.report.overtaken += 1
            elif fence in self._missing:
                self.report.unwritten += 1
            else:
                self._missing[fence] = (decision.expected_seq, decision.event)

    def _passed(self, plan: _Plan, place: int, point: tuple[int, int]) -> bool:
        """Say so if others of the plan were admitted that follow this one, which could have been and was not."""
        event = plan.decisions[place].event
        last = plan.last.get(_queue(event)) if isinstance(event, e.TurnAdmitted) else None
        if last is None or last[0] < place or last[1].event is None:
            return False
        what = f"was admitted, and session {getattr(event, 'session', '')}, which goes before it, was not"
        self._differ(last[1], last[1].event, point, what, event)
        return True

    def _explain(self, fence: str, record: e.Recorded) -> None:
        missing = self._missing.pop(fence, None)
        if missing is None:
            return
        if type(record.event) is type(missing[1]):
            self.report.unwritten += 1  # decided once more, and written then
        else:
            self.report.overtaken += 1

    def _differ(
        self,
        record: e.Recorded,
        event: e.AnyEvent,
        point: tuple[int, int],
        what: str,
        again: e.AnyEvent | None,
    ) -> None:
        self.report.differing += 1
        if len(self.report.differences) == KEPT:
            return
        self.report.differences.append(
            Difference(
                seq=record.seq,
                decided_seq=point[0],
                decided_at_ms=point[1],
                what=f"{type_of(event)} {what}",
                recorded=msgspec.to_builtins(event),
                again=None if again is None else msgspec.to_builtins(again),
            )
        )


def _queue(event: e.TurnAdmitted) -> e.Workload:
    return e.Workload(event.mode, event.type, event.model)


def decided(event: e.AnyEvent | None) -> tuple[int, int] | None:
    """Return the sequence and the clock that `event` was decided at, or None if it is no decision of the scheduler.

    That a GPU is lost and which policy holds are no decisions in this sense: they are facts that come from outside.
    """
    seq: int | None = getattr(event, "decided_seq", None)
    return None if seq is None else (seq, getattr(event, "decided_at_ms", None) or 0)
