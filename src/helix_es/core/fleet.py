"""The GPUs of the shop, and what decisions ask of them at once: who is vacant, who drains, who is to come."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from helix_es.core import events as e
from helix_es.core.floor import Capacity, Gpu, Make, coefficient, serves

BACKOFF_MS, MOST_BACKOFF_MS = 5_000, 600_000  # after a load that failed, as a supervisor's restarts
PRIOR_LOAD_MS = 10_000  # before any was measured: some GiB from a local disk

Index = dict[e.Workload, dict[Make, dict[str, None]]]
"""GPUs by what they serve and what they are, each in the order in which it came to be so."""


GpuFact = e.GpuAssigned | e.GpuReady | e.GpuLeft | e.GpuLost


class Pool(msgspec.Struct, kw_only=True):
    """GPUs that come and go together."""

    size: int = 0
    """How many there should be."""
    last_seq: int = 0
    """The fence of its facts."""
    resized_ms: int = 0
    reason: str = ""
    present: int = 0
    leaving: int = 0

    @property
    def staying(self) -> int:
        return self.present - self.leaving

    @property
    def starting(self) -> int:
        """GPUs that were asked for and have not come."""
        return max(0, self.size - self.staying)


class Fleet:
    """Kept by `Occupancy`. Every change of a GPU goes through `change`, so that no index can be forgotten."""

    def __init__(self, capacity: Callable[[e.Workload], Capacity]) -> None:
        self._capacity = capacity
        self.policy = e.Policy()
        self.gpus: dict[str, Gpu] = {}
        self.makes: dict[str, Make] = {}
        self.fences: dict[str, int] = {}
        """Last sequence of each GPU that ever was here."""
        self.pools: dict[str, Pool] = {}
        self.load_ms: dict[str, int] = {}
        """model -> how long it took to load, the last time that it had to be."""
        self.unassigned: dict[str, None] = {}
        """GPUs that serve nothing and could."""
        self.useless: dict[str, None] = {}
        """GPUs that the coefficients leave nothing to serve."""
        self.unsettled: dict[str, None] = {}
        """GPUs that have not answered an assignment, in the order of these."""
        self.failed: dict[str, dict[str, tuple[int, int]]] = {}
        """GPU -> `<mode>/<model>` that it could not load -> how often in a row, and when last."""
        self.vacant: Index = {}
        """Ready, and nobody is bound to them."""
        self.seated: Index = {}
        """All that serve something or will when it is loaded, and do not drain."""
        self.over: dict[str, None] = {}
        """GPUs that hold more sessions than they should: they drain, or their coefficient was lowered."""
        self.resizable: dict[str, None] = {}
        """GPUs whose slots are not what the coefficient says."""
        self.coming: dict[e.Workload, int] = {}
        """Slots that are being loaded or drained for."""
        self.batchable = 0
        """GPUs that can do batch work."""
        self.chatting = 0
        """Those of them that serve chats, or have not yet stopped to."""
        self.returning = 0
        """Those of these that drain for batch work."""
        self.lent = 0
        """GPUs of batch work that drain to serve chats, or to leave."""

    # -- the fold: what facts about GPUs and pools change

    def joined(self, record: e.Recorded, event: e.GpuJoined) -> None:
        """A runner brought a GPU that is not there (any more)."""
        self.fence(event.gpu, record.seq)
        self.join(
            Gpu(
                gpu=event.gpu,
                incarnation=event.incarnation,
                kind=event.kind,
                memory_total_bytes=event.memory_total_bytes,
                workloads=list(event.workloads),
                offered=dict(event.slots),
                pool=event.pool,
                last_seq=record.seq,
                joined_ms=record.at_ms,
                vacant_ms=record.at_ms,
                silence_ms=event.silence_ms,
            )
        )

    def fence(self, name: str, seq: int) -> None:
        """Something was stored about a GPU."""
        self.fences[name] = seq
        if name in self.gpus:
            self.gpus[name].last_seq = seq

    def live(self, record: e.Recorded, event: GpuFact) -> Gpu | None:
        """Return the GPU that `event` is about, or None if it speaks of an earlier incarnation."""
        self.fence(event.gpu, record.seq)
        gpu = self.gpus.get(event.gpu)
        return gpu if gpu is not None and gpu.incarnation == event.incarnation else None

    def assigned(self, record: e.Recorded, event: e.GpuAssigned) -> None:
        """The scheduler said what it is for; it holds when its runner has answered."""
        gpu = self.live(record, event)
        if gpu is None:
            return
        changes: dict[str, object] = {
            "purpose": event.purpose,
            "slots": event.slots,
            "settled": False,
            "next": event.next,
            "leaving": event.leaving,
            "assigned_seq": record.seq,
            "asked_ms": record.at_ms,
        }
        if (gpu.model, gpu.type, gpu.purpose) != (event.model, event.type, event.purpose):
            changes |= {"state": "assigned", "model": event.model, "type": event.type}
        elif gpu.slots == 0:
            changes |= {"vacant_ms": record.at_ms, "ready_ms": record.at_ms}
        if event.slots == 0 and not gpu.draining:
            changes["drained_ms"] = record.at_ms
        self.change(gpu, changes)

    def ready(self, record: e.Recorded, event: e.GpuReady) -> None:
        """Its runner answered an assignment; one that is not the last answers nothing."""
        gpu = self.live(record, event)
        if gpu is None or gpu.state == "joined" or gpu.model != event.model:
            return
        if event.assigned_seq not in (0, gpu.assigned_seq):
            return
        changes: dict[str, object] = {"settled": True}
        if gpu.state == "assigned":
            changes |= {"state": "ready", "load_ms": event.load_ms or gpu.load_ms}
            changes |= {"vacant_ms": record.at_ms, "ready_ms": record.at_ms}
            self.failed.get(gpu.gpu, {}).pop(_name(gpu), None)
            if event.load_ms:
                self.load_ms[event.model] = event.load_ms
        self.change(gpu, changes)

    def could_not_load(self, record: e.Recorded, event: e.GpuLeft) -> None:
        """Remember what it left for, beyond this life of it."""
        if event.failed is not None:
            key = f"{event.failed.mode}/{event.failed.model}"
            times, _ = self.failed.get(event.gpu, {}).get(key, (0, 0))
            self.failed.setdefault(event.gpu, {})[key] = (min(times + 1, 20), record.at_ms)

    def strain(self, name: str, incarnation: str, workload: e.Workload, held: int) -> None:
        """Memory ran out on a GPU that held so many sessions: one fewer fits."""
        gpu = self.gpus.get(name)
        if gpu is None or gpu.incarnation != incarnation:
            return
        most = max(1, max(held, len(gpu.sessions)) - 1)
        self.change(gpu, {"strained": {**gpu.strained, f"{workload.mode}/{workload.model}": most}})

    def resized(self, record: e.Recorded, event: e.FleetResized) -> None:
        """A pool should have another size."""
        pool = self.pool(event.pool)
        pool.size, pool.last_seq, pool.resized_ms = event.size, record.seq, record.at_ms
        pool.reason = event.reason

    # -- GPUs come, change and go

    def join(self, gpu: Gpu) -> None:
        """Take in a GPU that is not there."""
        make = gpu.make
        self.gpus[gpu.gpu] = gpu
        self.makes[gpu.gpu] = make
        self._account(gpu, +1)

    def drop(self, name: str) -> Gpu | None:
        """Take out a GPU and return it, with the sessions that it held; None if it is not there."""
        gpu = self.gpus.get(name)
        if gpu is None:
            return None
        self._account(gpu, -1)
        del self.gpus[name], self.makes[name]
        return gpu

    def change(self, gpu: Gpu, changes: dict[str, object]) -> None:
        """Set fields of `gpu` and bring every index in line."""
        self._account(gpu, -1)
        for field, value in changes.items():
            setattr(gpu, field, value)
        self._account(gpu, +1)

    def bind(self, gpu: Gpu, session: str) -> None:
        """`session` holds a slot of `gpu`."""
        workload, held = serves(gpu), len(gpu.sessions)
        if workload is None or gpu.draining:
            self._account(gpu, -1)
            gpu.sessions[session] = None
            self._account(gpu, +1)
            return
        gpu.sessions[session] = None  # from here on what _account would do, without looking at everything
        if gpu.state == "ready" and held < gpu.slots:
            self._capacity(workload).room -= 1
        if not held:
            self._unlist(self.vacant, workload, gpu)
        if held == gpu.slots:
            self.over[gpu.gpu] = None

    def unbind(self, gpu: Gpu, session: str, at_ms: int) -> None:
        """`session` holds no slot of `gpu` any more."""
        workload, held = serves(gpu), len(gpu.sessions) - 1
        if not held:
            gpu.vacant_ms = at_ms
        if workload is None or gpu.draining:
            self._account(gpu, -1)
            del gpu.sessions[session]
            self._account(gpu, +1)
            return
        del gpu.sessions[session]
        if gpu.state == "ready" and held < gpu.slots:
            self._capacity(workload).room += 1
        if held == gpu.slots:
            self.over.pop(gpu.gpu, None)
        if not held:
            self._list_vacant(gpu, workload)

    def judge(self, policy: e.Policy) -> None:
        """Go by `policy` from here on."""
        for name in sorted(self.gpus):
            self._account(self.gpus[name], -1)
        self.policy = policy
        for name in sorted(self.gpus):
            self._account(self.gpus[name], +1)

    def pool(self, name: str) -> Pool:
        """Return the pool called `name`."""
        pool = self.pools.get(name)
        if pool is None:
            pool = self.pools[name] = Pool()
        return pool

    @property
    def kept(self) -> int:
        """GPUs that can do batch work, serve no chats, and are not about to."""
        return self.batchable - self.chatting - self.lent

    def fails(self, gpu: Gpu, workload: e.Workload, now_ms: int) -> bool:
        """Whether `gpu` could not load `workload` a short while ago; each failure doubles the while."""
        times, at_ms = self.failed.get(gpu.gpu, {}).get(f"{workload.mode}/{workload.model}", (0, 0))
        return times > 0 and now_ms - at_ms < min(MOST_BACKOFF_MS, BACKOFF_MS * 2**times)

    def load(self, model: str) -> int:
        """Return how long loading `model` is expected to take, ms."""
        return self.load_ms.get(model, PRIOR_LOAD_MS)

    # -- indexes: what is added with +1 is taken back with -1

    def _account(self, gpu: Gpu, sign: int) -> None:
        make = self.makes[gpu.gpu]
        pool = self.pool(gpu.pool)
        pool.present += sign
        pool.leaving += sign * gpu.leaving
        if make.batch is not None:
            self.batchable += sign
            if gpu.purpose == "chat":
                self.chatting += sign
                self.returning += sign * (gpu.next is not None and gpu.next.mode == "finetune")
            self.lent += sign * gpu.lent
        workload = serves(gpu)
        if workload is not None:
            self._account_slots(gpu, workload, sign)
        if sign > 0:
            self._list(gpu, workload)
        else:
            self._forget(gpu, workload)

    def _account_slots(self, gpu: Gpu, workload: e.Workload, sign: int) -> None:
        if gpu.state == "ready":
            capacity = self._capacity(workload)
            capacity.slots += sign * gpu.slots
            capacity.room += sign * max(0, gpu.slots - len(gpu.sessions))
        else:
            self.coming[workload] = self.coming.get(workload, 0) + sign * gpu.slots
        if gpu.draining and gpu.next is not None and not gpu.drained:
            slots = coefficient(self.policy, gpu, gpu.next)
            self.coming[gpu.next] = self.coming.get(gpu.next, 0) + sign * slots

    def _list(self, gpu: Gpu, workload: e.Workload | None) -> None:
        name, make = gpu.gpu, self.makes[gpu.gpu]
        if not gpu.settled:
            self.unsettled[name] = None
        if workload is None:
            self._list_unassigned(gpu)
            return
        if len(gpu.sessions) > gpu.slots:
            self.over[name] = None
        if not gpu.sessions:
            self._list_vacant(gpu, workload)
        if gpu.draining:
            return
        self.seated.setdefault(workload, {}).setdefault(make, {})[name] = None
        if not make.fixed and coefficient(self.policy, gpu, workload) != gpu.slots:
            self.resizable[name] = None

    def _list_vacant(self, gpu: Gpu, workload: e.Workload) -> None:
        if gpu.state != "ready":
            return
        if gpu.drained and not gpu.leaving:
            self._list_unassigned(gpu)
        if gpu.draining:
            return
        self.vacant.setdefault(workload, {}).setdefault(self.makes[gpu.gpu], {})[gpu.gpu] = None

    def _list_unassigned(self, gpu: Gpu) -> None:
        if any(coefficient(self.policy, gpu, each) > 0 for each in gpu.workloads):
            self.unassigned[gpu.gpu] = None
        else:
            self.useless[gpu.gpu] = None

    def _forget(self, gpu: Gpu, workload: e.Workload | None) -> None:
        name = gpu.gpu
        for each in (self.unassigned, self.useless, self.unsettled, self.over, self.resizable):
            each.pop(name, None)
        if workload is not None:
            self._unlist(self.vacant, workload, gpu)
            self._unlist(self.seated, workload, gpu)

    def _unlist(self, index: Index, workload: e.Workload, gpu: Gpu) -> None:
        by_make = index.get(workload)
        if by_make is None:
            return
        make = self.makes[gpu.gpu]
        names = by_make.get(make)
        if names is None or gpu.gpu not in names:
            return
        del names[gpu.gpu]
        if not names:
            del by_make[make]
            if not by_make:
                del index[workload]


def _name(gpu: Gpu) -> str:
    return f"{'finetune' if gpu.purpose == 'batch' else 'create'}/{gpu.model}"
