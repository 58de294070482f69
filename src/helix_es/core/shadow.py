"""What other rules would have decided on the same floor: they follow the log, decide, and nothing of it is appended."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.floor import coefficient, serves
from helix_es.core.occupancy import Occupancy
from helix_es.core.placement import decide
from helix_es.core.verify import decided

BEAT_MS = 250  # a scheduler looks so often when nothing happens
SAME_MS = 2 * BEAT_MS  # within two looks is the same time
FORGET_MS = 600_000  # what the live rules have not done ten minutes later they did not do
MOST_LOOKS = 240  # of one silence: a minute of beats; after that nothing new comes of waiting
TOLD = 50  # differences that are kept in words

# These alone give nothing to decide.
UNDECIDED = frozenset({e.SessionCreated, e.TurnContinued, e.TurnStarted, e.TurnProgressed})

Key = tuple[Any, ...]


class Count(msgspec.Struct, kw_only=True):
    """Decisions of one kind."""

    live: int = 0
    """That the log has."""
    same: int = 0
    """Both made, within half a second."""
    sooner: int = 0
    """Both made; the shadow before."""
    only_live: int = 0
    """The shadow would not have, or not yet."""
    only_shadow: int = 0
    """The log does not have it, or only ten minutes later."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One difference."""

    at_ms: int
    seq: int
    what: str


class Report(msgspec.Struct, kw_only=True):
    """What the shadow would have done, beside what was done."""

    from_seq: int
    """Of the first record that was compared."""
    last_seq: int
    decisions: dict[str, Count]
    live_wait_ms: list[int]
    """Waits of first admissions that both made, in log order."""
    shadow_wait_ms: list[int]
    """The same ones' waits under the shadow's rules."""
    told: list[Told]
    """The last differences."""


class Shadow:
    """Rules beside the live ones. `take` every record in order; `look` whenever time passed.

    It stands on the live floor: sessions, GPUs and their failures are what the log has. Of its own decisions only two
    have a consequence for it: a GPU has as many slots as its coefficient says, and whom it admitted holds one of them.
    What GPUs would compute more slowly or where sessions would be otherwise, only the simulator can say.
    """

    def __init__(self, policy: e.Policy | None) -> None:
        """`policy` None: the log's own rules, which tells how much differs by the moment of looking alone."""
        self.policy = policy
        self.state = Occupancy()
        self.state.policy = policy or e.Policy()
        self._skipped = 0
        """Up to this sequence nothing is compared."""
        self._counts: dict[str, Count] = {}
        self._wanted: OrderedDict[Key, tuple[int, str]] = OrderedDict()
        self._judged: set[Key] = set()
        self._waits: list[tuple[int, int]] = []
        self._told: list[Told] = []
        self._looked_ms = 0
        self._changed = False

    def skip(self, record: e.Recorded) -> None:
        """Fold a record of the past that is not compared."""
        self.state.apply(self._seen(record))
        self._skipped = record.seq
        self._looked_ms = self.state.now_ms
        self._changed = True

    def take(self, record: e.Recorded) -> None:
        """Compare the record, if it is a decision, with what the shadow wants; then fold it."""
        self._pass_time(record.at_ms)
        event = record.event
        if event is not None and decided(event) is not None:
            if self._changed:
                self.look(record.at_ms)
            self._compare(record, event)
        self.state.apply(self._seen(record))
        if type(event) not in UNDECIDED:
            self._changed = True

    def look(self, now_ms: int) -> None:
        """Decide at `now_ms`; what is new is remembered, and whom it admits has a slot from now on."""
        state = self.state
        state.tick(now_ms)
        self._changed, self._looked_ms = False, max(now_ms, self._looked_ms)
        for decision in decide(state, state.now_ms):
            event = decision.event
            key = _key(event, decision.expected_seq)
            if key in self._judged or key in self._wanted:
                continue
            self._wanted[key] = (state.now_ms, _words(event))
            if isinstance(event, e.TurnAdmitted):
                state.apply(e.Recorded(state.seq, state.now_ms, "", event))
                self._changed = True
        self._forget(now_ms)

    def beat(self, at_ms: int) -> None:
        """The log's clock moved on without a fact."""
        self._pass_time(at_ms)
        if at_ms > self.state.now_ms:
            self.look(at_ms)

    def report(self) -> Report:
        """Return what there is to say so far. What the shadow wants since less than half a second is left out."""
        counts = {kind: msgspec.structs.replace(count) for kind, count in sorted(self._counts.items())}
        for key, (at_ms, _) in self._wanted.items():
            if self.state.now_ms - at_ms > SAME_MS:
                counts.setdefault(key[0], Count()).only_shadow += 1
        return Report(
            from_seq=self._skipped + 1,
            last_seq=self.state.seq,
            decisions=counts,
            live_wait_ms=[live for live, _ in self._waits],
            shadow_wait_ms=[shadow for _, shadow in self._waits],
            told=self._told[-TOLD:],
        )

    def _pass_time(self, until_ms: int) -> None:
        """Look at the beats of a silence, while anything can come of it."""
        looks = 0
        while self._looked_ms and until_ms - self._looked_ms > BEAT_MS and looks < MOST_LOOKS:
            waits = self.state.door.waiting or self.state.fleet.over or self.state.policy.pools
            if not (waits or self._changed):
                break
            self.look(self._looked_ms + BEAT_MS)
            looks += 1
        if self._changed and until_ms > self._looked_ms:
            self.look(self.state.now_ms)
        self._looked_ms = max(self._looked_ms, until_ms - until_ms % BEAT_MS)

    def _seen(self, record: e.Recorded) -> e.Recorded:
        """Return the record as it is under the shadow's rules: its policy, its slots."""
        event = record.event
        if self.policy is None and isinstance(event, e.PolicySet | e.GpuAssigned):
            return record
        if isinstance(event, e.PolicySet):
            event = e.PolicySet(policy=self.policy or event.policy)
        elif isinstance(event, e.GpuAssigned) and event.slots:
            gpu = self.state.gpus.get(event.gpu)
            if gpu is not None and gpu.incarnation == event.incarnation:
                mode: e.Mode = "finetune" if event.purpose == "batch" else "create"
                work = e.Workload(mode, event.type, event.model)
                slots = coefficient(self.state.policy, gpu, work)
                event = msgspec.structs.replace(event, slots=max(1, slots))
        else:
            return record
        return e.Recorded(record.seq, record.at_ms, record.subject, event)

    def _compare(self, record: e.Recorded, event: e.AnyEvent) -> None:
        if isinstance(event, e.GpuAssigned) and self._adjusts(event):
            return  # the shadow's GPUs have the shadow's slots all the time
        kind = type_of(event)
        count = self._counts.setdefault(kind, Count())
        count.live += 1
        key = next((each for each in self._keys(event) if each in self._wanted), None)
        if key is None:
            count.only_live += 1
            self._judge(_key(event, 0))
            self._tell(record.at_ms, f"{_words(event)}: the shadow would not have, or not yet")
            return
        at_ms, words = self._wanted.pop(key)
        self._judge(key)
        sooner_ms = record.at_ms - at_ms
        if sooner_ms <= SAME_MS:
            count.same += 1
        else:
            count.sooner += 1
            self._tell(record.at_ms, f"{words}: the shadow {sooner_ms / 1000:.1f} s sooner")
        if isinstance(event, e.TurnAdmitted) and event.attempt == 1:
            spared_ms = sooner_ms if sooner_ms > SAME_MS else 0
            self._waits.append((event.waited_ms, max(0, event.waited_ms - spared_ms)))

    def _keys(self, event: e.AnyEvent) -> list[Key]:
        """Return under which keys the shadow may have wanted this: it may have seen another fence."""
        exact = _key(event, 0)
        if isinstance(event, e.SessionReleased):
            seat = self.state.seats.get(event.session)
            return [exact] if seat is None else [exact, _key(event, seat.last_seq)]
        return [exact]

    def _adjusts(self, event: e.GpuAssigned) -> bool:
        gpu = self.state.gpus.get(event.gpu)
        if gpu is None or not event.slots or event.leaving:
            return False
        work = serves(gpu)
        return (
            work is not None and (work.model, gpu.purpose) == (event.model, event.purpose) and gpu.slots > 0
        )

    def _judge(self, key: Key) -> None:
        if key[0] == "turn.admitted":
            self._judged.add(key)

    def _forget(self, now_ms: int) -> None:
        while self._wanted:
            key, (at_ms, words) = next(iter(self._wanted.items()))
            if now_ms - at_ms < FORGET_MS:
                return
            del self._wanted[key]
            self._judge(key)
            self._counts.setdefault(key[0], Count()).only_shadow += 1
            self._tell(at_ms, f"{words}: only the shadow")

    def _tell(self, at_ms: int, what: str) -> None:
        self._told.append(Told(at_ms=at_ms, seq=self.state.seq, what=what))
        if len(self._told) > 2 * TOLD:
            del self._told[:-TOLD]


def _key(event: e.AnyEvent, fence: int) -> Key:
    """Return what makes two decisions the same one, whenever they are made; its first part is their kind."""
    kind = type_of(event)
    match event:
        case e.TurnAdmitted():
            return (kind, event.session, event.turn, event.attempt)
        case e.SessionReleased():
            return (kind, event.session, fence)
        case e.GpuAssigned():
            return (kind, event.gpu, event.incarnation, event.model, event.purpose, event.next, event.leaving)
        case e.FleetResized():
            return (kind, event.pool, event.size)
        case _:
            return (kind, getattr(event, "session", ""), getattr(event, "turn", 0))


def _words(event: e.AnyEvent) -> str:
    match event:
        case e.TurnAdmitted():
            return f"admit {event.session} turn {event.turn} to {event.model} ({event.reason})"
        case e.SessionReleased():
            return f"release {event.session} from {event.gpu} ({event.reason})"
        case e.GpuAssigned():
            what = "leave" if event.leaving else f"{event.purpose} {event.model}, {event.slots} slots"
            return f"assign {event.gpu}: {what} ({event.reason})"
        case e.FleetResized():
            return f"resize {event.pool} to {event.size} ({event.reason})"
        case _:
            return f"{type_of(event)} {getattr(event, 'session', '')}"
