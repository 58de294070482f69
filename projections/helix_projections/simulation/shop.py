"""The whole shop in virtual time: the real fold and decisions over a log in memory, everybody else simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from helix_es.core import events as e
from helix_es.core.occupancy import Occupancy
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.clients import Clients
from helix_projections.simulation.clock import Clock
from helix_projections.simulation.floor import Floor
from helix_projections.simulation.outcome import Outcome
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.scheduler import Scheduler


def simulate(scenario: Scenario, arrivals: Iterable[Arrival]) -> Outcome:
    """Return what comes of it. The same scenario and arrivals give the same outcome in any process.

    `arrivals`: in order of their time. Losses of GPUs are not simulated, and pools neither:
    the fleet is what is offered.
    """
    shop = Shop(scenario, arrivals)
    shop.run()
    return shop.outcome()


class Shop:
    """Run it once; then `records` is the log and `state` its fold."""

    def __init__(self, scenario: Scenario, arrivals: Iterable[Arrival]) -> None:
        self.records: list[e.Recorded] = []
        self.state = Occupancy()
        self.clock = Clock()
        self._scenario = scenario
        self._arrivals = arrivals
        self._scheduler = Scheduler(self.state, self.clock, self.append, scenario.decide_ms)
        self._clients = Clients(scenario, self.state, self.clock, self.append)
        self._floor = Floor(scenario, self.state, self.clock, self.append, self._clients)
        self._reactions: dict[type[e.Event], Callable[[Any, int], None]] = {
            e.TurnAdmitted: self._floor.admitted,
            e.TurnContinued: self._floor.continued,
            e.TurnYielding: self._floor.yielding,
            e.TurnFailed: self._failed,
            e.SessionReleased: self._floor.released_by,
            e.GpuAssigned: self._floor.assigned,
        }

    def run(self) -> None:
        """Let everything happen, until nothing is left to happen."""
        fixed = msgspec.structs.replace(self._scenario.policy, pools={})  # nobody would start or end GPUs
        self.append(e.PolicySet(policy=fixed))
        self._floor.open()
        self.clock.at(self._scenario.open_ms, lambda: self._floor.meter.open(self._scenario.open_ms))
        self._clients.expect(self._arrivals)
        while self.clock.step():
            self._scheduler.look()

    def append(self, event: e.AnyEvent) -> int:
        """Store and fold a fact, and let whom it concerns react; return its sequence.

        Nothing else is under way, so no fence can fail. Subjects are left out: `subject_of` gives them.
        """
        record = e.Recorded(len(self.records) + 1, self.clock.now_ms, "", event)
        self.records.append(record)
        self.state.apply(record)
        self._scheduler.heard(event)
        reaction = self._reactions.get(type(event))
        if reaction is not None:
            reaction(event, record.seq)
        return record.seq

    def outcome(self) -> Outcome:
        """Return what came of it, once it has run."""
        floor = self._floor
        totals = floor.meter.totals()
        return Outcome(
            turns=[*self._clients.turns, *self._clients.unanswered()],
            begun_ms=self._scenario.open_ms,
            ended_ms=floor.meter.marked_ms,
            present_ms=totals.present,
            busy_ms=totals.busy,
            offered_ms=totals.offered,
            held_ms=totals.held,
            preempted=floor.preempted,
            released=floor.released,
        )

    def _failed(self, event: e.TurnFailed, seq: int) -> None:
        """The scheduler gave a turn up that would rather fail than wait on."""
        self._clients.answered(event.session, first_token_ms=None, failed=True)
