"""What each GPU held from when to when, and what it loaded: the rows of `gpu_occupancy` and `cold_starts`."""

from __future__ import annotations

import msgspec

from helix_es.core import events as e
from helix_es.core.fleet import Fleet
from helix_es.core.floor import Gpu
from helix_es.core.subjects import about
from helix_projections.analytics.lines import Asked, Interval
from helix_projections.analytics.rows import Rows

GpuFact = e.GpuJoined | e.GpuAssigned | e.GpuReady | e.GpuLeft | e.GpuLost


class GpuStates(msgspec.Struct):
    """What is kept of it."""

    intervals: dict[str, Interval]
    asked: dict[str, Asked]


class Gpus:
    """Beside the fold: told after each fact about a GPU, it writes down what changed."""

    def __init__(self, rows: Rows, state: GpuStates | None = None) -> None:
        self._rows = rows
        self._state = state or GpuStates({}, {})
        self._fresh: dict[str, Interval] = {}
        """Intervals that no table has yet."""

    @property
    def state(self) -> GpuStates:
        return self._state

    def took(self, rows: Rows) -> None:
        """All there is goes to the tables now; what follows goes into `rows`."""
        for interval in self._fresh.values():
            self._rows.add("gpu_occupancy", msgspec.structs.astuple(interval))
        self._fresh.clear()
        self._rows = rows

    def held(self, record: e.Recorded, name: str, gpu: Gpu | None) -> None:
        """`gpu` may hold another number of sessions, or serve something else, since `record`; None: it is gone."""
        open_ = self._state.intervals.get(name)
        if gpu is None:
            if open_ is not None:
                self._close(open_, record.at_ms)
                del self._state.intervals[name]
            return
        sessions, state = len(gpu.sessions), "draining" if gpu.draining else gpu.state
        if open_ is not None:
            same = open_.sessions == sessions and open_.slots == gpu.slots and open_.state == state
            if same and (open_.model, open_.purpose, open_.incarnation) == (
                gpu.model,
                gpu.purpose,
                gpu.incarnation,
            ):
                return
            self._close(open_, record.at_ms)
        self._state.intervals[name] = self._fresh[name] = Interval(
            seq=record.seq,
            gpu=name,
            incarnation=gpu.incarnation,
            kind=gpu.kind,
            pool=gpu.pool,
            state=state,
            purpose=gpu.purpose,
            model=gpu.model,
            slots=gpu.slots,
            sessions=sessions,
            from_at=record.at_ms,
        )

    def _close(self, interval: Interval, at_ms: int) -> None:
        interval.to_at = at_ms
        row = msgspec.structs.astuple(interval)
        if self._fresh.get(interval.gpu) is interval:
            del self._fresh[interval.gpu]
            self._rows.add("gpu_occupancy", row)
        else:
            self._rows.change("gpu_occupancy", row)

    def assigned(self, record: e.Recorded, reason: str) -> None:
        """A GPU was given another model to load."""
        name = about(record.subject)[1]
        self._state.asked[name] = Asked(at_ms=record.at_ms, reason=reason)

    def loaded(self, record: e.Recorded, gpu: Gpu, load_ms: int | None) -> None:
        """It has the model in memory, after so long, 0: all the time; None: it left, or was lost, before it had."""
        asked = self._state.asked.pop(gpu.gpu, None)
        if asked is None or load_ms == 0:
            return
        ready_at = None if load_ms is None else record.at_ms
        about = (record.seq, gpu.gpu, gpu.incarnation, gpu.kind, gpu.pool, gpu.purpose, gpu.model)
        self._rows.add("cold_starts", (*about, asked.reason, asked.at_ms, ready_at, load_ms))


def applies(fleet: Fleet, event: GpuFact) -> bool:
    """Whether the fold will take `event` in, or pass over it as one of an earlier life or of a late answer."""
    if isinstance(event, e.GpuJoined):
        return True
    gpu = fleet.gpus.get(event.gpu)
    if gpu is None or gpu.incarnation != event.incarnation:
        return False
    if isinstance(event, e.GpuReady):
        answers = event.assigned_seq in (0, gpu.assigned_seq)
        return gpu.state != "joined" and gpu.model == event.model and answers
    return True
