"""How a turn stands at the door: who is ahead and why, and why each GPU cannot take it now."""

from __future__ import annotations

from itertools import islice

from helix_es.core import events as e
from helix_es.core.fairqueue import Place
from helix_es.core.floor import Gpu, Seat, coefficient, serves
from helix_es.core.occupancy import Occupancy
from helix_es.core.story import Ahead, AheadWhy, Beside, Obstacle, ObstacleWhy


def ahead_of(state: Occupancy, seat: Seat) -> list[Seat]:
    """Return who stands ahead of `seat`, which waits, the next to be served first."""
    position = state.position(seat)
    if position is None:
        return []
    places = state.door.queue(seat.workload).first(position - 1)
    return [state.seats[place.session] for place in places]


def named_ahead(seats: list[Seat], place: Place, most: int) -> list[Ahead]:
    """Return the first `most` of `seats`, each with why it is ahead of `place`."""
    return [
        Ahead(
            session=seat.session,
            owner=seat.owner,
            turn=seat.turn,
            priority=seat.priority,
            queued_ms=seat.queued_ms,
            why=why_ahead(seat, place),
        )
        for seat in islice(seats, most)
    ]


def why_ahead(seat: Seat, place: Place) -> AheadWhy:
    """Return why `seat`, which waits, is served before `place`."""
    if seat.place is not None and seat.place.rank < place.rank:
        return "priority"
    if seat.attempt:
        return "came_back"  # it was served before and stands where it stood then
    if seat.place is not None and seat.place.seq < place.seq:
        return "earlier"
    return "fair_share"


def obstacles(state: Occupancy, seat: Seat) -> list[Obstacle]:
    """Return every GPU with why it does not take `seat`, which waits, at once."""
    unpromised = _unpromised(state, seat)
    return [_obstacle(state, state.gpus[name], seat, unpromised) for name in sorted(state.gpus)]


def _unpromised(state: Occupancy, seat: Seat) -> frozenset[str]:
    """Return the GPUs with room for `seat`: as few as have the slots that no admitted turn is promised.

    Where an admitted turn starts is for the runners to find out, so any of the GPUs with room could be meant. Named are
    the fullest: what is free on these is as near as can be to the slots that are free.
    """
    position, free = state.position(seat), state.door.capacity(seat.workload).free
    if position is None or position > free:
        return frozenset()
    ready = (gpu for gpu in state.gpus.values() if gpu.state == "ready" and serves(gpu) == seat.workload)
    rooms = sorted((gpu.slots - len(gpu.sessions), gpu.gpu) for gpu in ready if gpu.slots > len(gpu.sessions))
    found = set()
    for room, name in rooms:
        if free <= 0:
            break
        found.add(name)
        free -= room
    return frozenset(found)


def _obstacle(state: Occupancy, gpu: Gpu, seat: Seat, unpromised: frozenset[str]) -> Obstacle:
    why = _why_not(state, gpu, seat, unpromised)
    since_ms = None
    if why in ("draining", "draining_for_it", "leaving"):
        since_ms = gpu.drained_ms
    elif why == "loading":
        since_ms = gpu.asked_ms
    model = gpu.next.model if gpu.draining and gpu.next is not None else gpu.model
    held = len(gpu.sessions)
    return Obstacle(gpu=gpu.gpu, why=why, model=model, slots=gpu.slots, held=held, since_ms=since_ms)


def _why_not(state: Occupancy, gpu: Gpu, seat: Seat, unpromised: frozenset[str]) -> ObstacleWhy:
    workload = seat.workload
    if workload not in gpu.workloads:
        return "unfit"
    if coefficient(state.policy, gpu, workload) <= 0:
        return "no_slots"
    if state.fleet.fails(gpu, workload, state.now_ms):
        return "failed_to_load"
    if gpu.draining:
        if gpu.leaving:
            return "leaving"
        return "draining_for_it" if gpu.next == workload else "draining"
    serving = serves(gpu)
    if serving is None:
        return "unassigned"
    if serving == workload:
        return _no_room(gpu, unpromised)
    if serving.mode == "finetune" and workload.mode == "create":
        return "reserved" if state.fleet.kept <= state.policy.reserved else "batch"
    return "other_work"


def _no_room(gpu: Gpu, unpromised: frozenset[str]) -> ObstacleWhy:
    if gpu.state != "ready":
        return "loading"
    if len(gpu.sessions) >= gpu.slots:
        return "full"
    return "free" if gpu.gpu in unpromised else "promised"


def beside(state: Occupancy, gpu_id: e.GpuId, session: str) -> list[Beside]:
    """Return who is on the GPU with `session`."""
    gpu = state.gpus.get(gpu_id)
    names = [] if gpu is None else [name for name in gpu.sessions if name != session]
    seats = [state.seats[name] for name in names]
    return [Beside(session=seat.session, owner=seat.owner, state=seat.phase) for seat in seats]
