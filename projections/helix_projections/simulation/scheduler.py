"""The scheduler in virtual time: it looks after every fact that can matter, and at each beat while somebody waits."""

from __future__ import annotations

from collections.abc import Callable

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_es.core.placement import decide
from helix_projections.simulation.clock import Clock

BEAT_MS = 250  # the scheduler's beat: how often it looks when nothing happens
QUIET = 64  # shares of a time without a single fact: after a quiet hour, a minute is as good as a beat
HOPELESS_MS = 3_600_000  # whoever still waits after an hour without a single fact will wait for ever

UNDECIDED = frozenset({e.SessionCreated, e.TurnAdmitted, e.TurnContinued, e.TurnStarted, e.TurnCompleted})
"""Facts that alone give nothing to decide."""


class Scheduler:
    """`look` whenever something happened."""

    def __init__(
        self, state: Occupancy, clock: Clock, append: Callable[[e.AnyEvent], int], delay_ms: int
    ) -> None:
        """`delay_ms`: from a fact to what is decided for it."""
        self._state = state
        self._clock = clock
        self._append = append
        self._delay_ms = delay_ms
        self._beat_ms = -1
        self._changed = self._stirred = True
        self._looked_ms = -1
        self._awaited_ms = -1

    def heard(self, event: e.AnyEvent) -> None:
        """A fact was appended."""
        self._stirred = True
        if type(event) not in UNDECIDED:
            self._changed = True

    def look(self) -> None:
        """Decide until nothing is to be decided, and look again at the next beat while somebody waits."""
        now_ms = self._clock.now_ms
        if not self._stirred and self._awaited_ms != now_ms:
            return  # something happened that nobody can know of: only facts and beats move the log's clock
        self._stirred = False
        while self._worth_a_look(now_ms):
            if self._delay_ms and self._awaited_ms != now_ms:
                self._wait(now_ms)
                break
            self._changed = False
            for decision in decide(self._state, now_ms):
                self._append(decision.event)
            self._awaited_ms = -1  # what follows from these facts is decided as much later
        beat_ms = self._next_ms(now_ms)
        if (
            beat_ms is not None and not now_ms < self._beat_ms <= beat_ms
        ):  # else one is set that comes as soon
            self._beat_ms = beat_ms
            self._clock.at(beat_ms, self._beat)

    def _next_ms(self, now_ms: int) -> int | None:
        """Return the next beat at which the clock alone may bring something to decide; None: there is no such."""
        state = self._state
        quiet_ms = now_ms - state.folded_ms
        if quiet_ms >= HOPELESS_MS or not (state.door.waiting or state.fleet.over):
            return None
        next_ms = now_ms - now_ms % BEAT_MS + max(BEAT_MS, quiet_ms // QUIET)
        if state.fleet.over or state.deadlines or any(self._movable(each) for each in state.door.waiting):
            return next_ms
        silent = [next(iter(idle)) for each in state.door.waiting if (idle := state.idle.get(each))]
        if not silent:
            return None
        due_ms = min(state.seats[each].active_ms for each in silent) + state.policy.idle_after_ms
        return max(next_ms, -(-due_ms // BEAT_MS) * BEAT_MS)

    def _movable(self, workload: e.Workload) -> bool:
        """Whether GPUs that serve something else could be given to it: some only after a while."""
        return any(
            other != workload and workload in make.workloads
            for other, makes in self._state.fleet.seated.items()
            for make in makes
        )

    def _wait(self, now_ms: int) -> None:
        """Decide a little later; what happens until then is decided together."""
        if self._awaited_ms < now_ms:
            self._awaited_ms = now_ms + self._delay_ms
            self._clock.at(self._awaited_ms, lambda: None)

    def _beat(self) -> None:
        """Nothing happened but that the clock moved on: a wait, or what a GPU does, may now be long enough."""
        self._changed = self._stirred = True

    def _worth_a_look(self, now_ms: int) -> bool:
        """Whether there can be anything to decide. It saves most of the looks and changes no decision.

        Somebody who starts or ends a turn, or goes on with a conversation, changes nothing for those who wait: only a
        silence does that has become long enough.
        """
        state = self._state
        if state.orphans:
            return True
        if not self._changed:
            return any(self._due(workload, now_ms) for workload in state.door.waiting)
        fleet = state.fleet
        return bool(
            state.door.waiting or fleet.unassigned or fleet.over or fleet.resizable or state.policy.reserved
        )

    def _due(self, workload: e.Workload, now_ms: int) -> bool:
        idle = self._state.idle.get(workload)
        if not idle or self._looked_ms == now_ms:
            return False
        longest = self._state.seats[next(iter(idle))]
        due = now_ms - longest.active_ms >= self._state.policy.idle_after_ms
        if due:
            self._looked_ms = now_ms
        return due
