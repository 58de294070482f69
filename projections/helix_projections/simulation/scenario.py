"""What is simulated: rules, GPUs, and how long these take."""

from __future__ import annotations

import msgspec

from helix_es.core import events as e
from helix_projections.simulation.offer import Offer
from helix_projections.simulation.service import Service


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an outcome follows from, beside the arrivals. Nothing in it is drawn: there is no seed."""

    policy: e.Policy = e.Policy()
    offers: list[Offer]
    service: Service = Service()
    """Of what `services` does not name."""
    services: dict[str, Service] = msgspec.field(default_factory=dict)
    """`<gpu kind>/<model>` -> how long such a GPU takes for it."""
    workload: e.Workload = e.Workload("create", "text", "mistral")
    """Of arrivals that name none."""
    owners: int = 0
    """Among how many the sessions are dealt out that name none; 0: each has its own."""
    open_ms: int = 0
    """When the trace begins: later than 0, and the GPUs may be ready by then."""
    decide_ms: int = 0
    """From a fact in the log to what the scheduler decides for it."""
    start_ms: int = 0
    """From a task to `started` in the log."""

    def service_of(self, kind: str, model: str) -> Service:
        """Return how long a GPU of that kind takes for that model."""
        return self.services.get(f"{kind}/{model}", self.service)
