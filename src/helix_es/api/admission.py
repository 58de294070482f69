"""What is refused at the door at once, because waiting would be in vain or too much."""

from __future__ import annotations

from helix_es.core.capacity import unfit
from helix_es.core.errors import Rejected
from helix_es.core.events import Workload
from helix_es.core.occupancy import Occupancy
from helix_es.settings import Settings


def check_room(state: Occupancy, settings: Settings, workload: Workload, owner: str) -> None:
    """Raise Rejected("does_not_fit") where no GPU ever could, or what `check_waiting` raises."""
    why = unfit(
        settings.models[workload.model], workload.model, state.gpus.values(), state.policy, workload.mode
    )
    if why is not None:
        raise Rejected("does_not_fit", why)
    check_waiting(state, settings, owner)


def check_waiting(state: Occupancy, settings: Settings, owner: str) -> None:
    """Raise Rejected("too_many_waiting") if `owner` has as many turns in the queue as one may."""
    most = settings.limits.waiting_per_owner
    if most and state.waiting.get(owner, 0) >= most:
        raise Rejected(
            "too_many_waiting", f"{most} turns of yours wait already; come back when some were served"
        )
