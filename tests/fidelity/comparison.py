"""What a recorded shop did beside what the simulator says that it does."""

from __future__ import annotations

import msgspec

from helix_projections.simulation.fit import fit_heard
from helix_projections.simulation.fitted import Fitted
from helix_projections.simulation.heard import Heard
from helix_projections.simulation.outcome import Outcome, percentile
from helix_projections.simulation.recorded import Recording, recording_of
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.service import Service
from helix_projections.simulation.shop import simulate

ALLOWED = 0.15
JUDGED = ("queued wait p50", "queued wait p95")


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """A number as it was and as it was foretold."""

    name: str
    real: float
    foretold: float

    @property
    def error(self) -> float:
        """Of what was foretold, as a share of what was."""
        return (self.foretold - self.real) / self.real if self.real else float(self.foretold != 0)

    @property
    def judged(self) -> bool:
        return self.name in JUDGED

    @property
    def good(self) -> bool:
        return abs(self.error) <= ALLOWED


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A run, judged."""

    figures: list[Figure]
    fitted: Fitted
    recording: Recording

    @property
    def good(self) -> bool:
        """Whether every figure that is judged is within the promise."""
        return all(figure.good for figure in self.figures if figure.judged)


def compared(heard: Heard) -> Comparison:
    """Simulate what was heard after the service model that it shows, and set both side by side."""
    recording = recording_of(heard, "the run's log")
    fitted = fit_heard(heard, Service())
    scenario = Scenario(
        policy=recording.policy,
        offers=recording.offers,
        services=fitted.services,
        decide_ms=fitted.decide_ms,
        start_ms=fitted.start_ms,
    )
    real, foretold = _figures(recording.outcome), _figures(simulate(scenario, recording.arrivals))
    figures = [Figure(name=name, real=real[name], foretold=foretold[name]) for name in real]
    return Comparison(figures=figures, fitted=fitted, recording=recording)


def _figures(outcome: Outcome) -> dict[str, float]:
    """Waits of those who went through the door: whoever holds a slot does not wait, and would make every median 0."""
    found: dict[str, float] = {}
    queued = sorted(
        float(ms) for turn in outcome.turns if not turn.straight and (ms := turn.took_ms("wait")) is not None
    )
    for percent in (50, 90, 95, 99):
        found[f"queued wait p{percent}"] = percentile(queued, percent) or 0.0
    found["queued wait mean"] = sum(queued) / max(1, len(queued))
    found["queued turns"] = float(len(queued))
    measures = outcome.measures()
    for name in ("first_token_p50_ms", "first_token_p95_ms", "continued_first_token_p95_ms"):
        found[name] = measures[name] or 0.0
    for name in ("utilisation", "busy", "requeued", "released", "tokens_per_s", "unfinished"):
        found[name] = measures[name] or 0.0
    return found
