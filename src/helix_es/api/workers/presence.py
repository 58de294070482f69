"""A worker's life on the floor: joined, ready, alive, gone. Its facts are appended here, since it has no NATS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from helix_es.api.workers.offer import Offer
from helix_es.api.workers.recent import Recent
from helix_es.core import events as e
from helix_es.core.codec import type_of
from helix_es.core.errors import Conflict, HelixError, Rejected, Unavailable
from helix_es.core.floor import Gpu
from helix_es.jetstream.beats import Beats
from helix_es.log import Log
from helix_es.replica import Replica

log = structlog.get_logger(__name__)

MARK = (
    "http-"  # an incarnation that begins so is a worker's: a native runner's life is not ours to go on with
)
ATTEMPTS = 20  # at a fact about a worker, which only other replicas and the scheduler write about too
SEEN_S = 2.0  # how long our own append may take to come back to us
BEAT_S = 1.0
BEAT_APART_S = BEAT_S / 2  # a worker that says fifty words a second is not fifty times as alive
MOST_KNOWN = 10_000


def is_worker(gpu: Gpu) -> bool:
    """Whether `gpu` is one that speaks only HTTP."""
    return gpu.incarnation.startswith(MARK)


class _Beaten:
    """When the last sign of life of a worker was passed on."""

    at_s = float("-inf")


class Presence:
    """Keeps workers on the floor. Another replica may do the same at the same time: the fence decides."""

    def __init__(self, source: Log, replica: Replica, beats: Beats, *, new_secret: Callable[[], str]) -> None:
        self._log = source
        self._replica = replica
        self._beats = beats
        self._new_secret = new_secret
        self._beaten: Recent[str, _Beaten] = Recent(MOST_KNOWN, _Beaten)

    async def ready(self, offer: Offer) -> Gpu | None:
        """Return the worker's GPU if it may take work, None while the scheduler has not assigned it.

        Raises Rejected("worker_name_taken") if a GPU of another sort has that name.
        """
        for _ in range(ATTEMPTS):
            gpu = self._replica.state.gpus.get(offer.worker)
            if gpu is not None and not is_worker(gpu):
                raise Rejected("worker_name_taken", f"worker: {offer.worker!r} is the name of another GPU")
            if gpu is None or not _offers(gpu, offer):
                await self._append(self._joined(offer))
            elif gpu.state == "assigned":
                model = offer.workload.model
                await self._append(
                    e.GpuReady(gpu=gpu.gpu, incarnation=gpu.incarnation, model=model, load_ms=0)
                )
            else:
                return gpu if gpu.state == "ready" else None
        raise Unavailable(f"somebody keeps writing about {offer.worker}: does another worker use its name?")

    def _joined(self, offer: Offer) -> e.GpuJoined:
        incarnation = MARK + self._new_secret()
        log.info("worker_joined", worker=offer.worker, model=offer.workload.model, slots=offer.slots)
        return e.GpuJoined(
            gpu=offer.worker,
            incarnation=incarnation,
            kind=offer.kind,
            memory_total_bytes=0,
            workloads=[offer.workload],
            slots={offer.workload.model: offer.slots},
            silence_ms=offer.lease_ms,
        )

    async def leave(self, worker: e.GpuId) -> None:
        """Take the worker off the floor; harmless if it is not there. What it had in hand goes to another."""
        for _ in range(ATTEMPTS):
            gpu = self._replica.state.gpus.get(worker)
            if gpu is None:
                return
            if not is_worker(gpu):
                raise Rejected("worker_name_taken", f"{worker!r} is no worker of ours, but another GPU")
            await self._append(e.GpuLeft(gpu=worker, incarnation=gpu.incarnation))
        raise Unavailable(f"somebody keeps writing about {worker}")

    async def _append(self, event: e.GpuJoined | e.GpuReady | e.GpuLeft) -> None:
        """Append behind what our fold shows; if somebody else was first, wait until the fold shows that."""
        expected_seq = self._replica.state.fences.get(event.gpu, 0)
        key = f"{type_of(event)}:{event.gpu}:{event.incarnation}:{expected_seq}"
        try:
            seq = await self._log.append(event, expected_seq=expected_seq, key=key)
        except Conflict:
            said = await self._log.history(f"gpu.{event.gpu}.>", after_seq=expected_seq)
            seq = said[-1].seq if said else expected_seq
        await self._replica.reached(seq, SEEN_S)

    async def beat(self, worker: e.GpuId) -> None:
        """Pass on that the worker is alive; at most twice a second, and a lost one is made up for by the next."""
        gpu = self._replica.state.gpus.get(worker)
        beaten = self._beaten[worker]
        now_s = asyncio.get_running_loop().time()
        if gpu is None or not is_worker(gpu) or now_s - beaten.at_s < BEAT_APART_S:
            return
        beaten.at_s = now_s
        heartbeat = e.GpuHeartbeat(
            gpu=worker,
            incarnation=gpu.incarnation,
            memory_total_bytes=0,  # a worker tells nothing of what it runs on
            memory_used_bytes=0,
            utilisation=0.0,
            model=gpu.model,
            slots_used=len(gpu.sessions),
            detail={"over": "http"},
        )
        try:
            await self._beats.publish(heartbeat)
        except HelixError as error:
            log.warning("heartbeat_not_sent", worker=worker, error=str(error))


def _offers(gpu: Gpu, offer: Offer) -> bool:
    """Whether the GPU on the floor is what the worker offers now; if not, this is a new life of it."""
    return (gpu.workloads, gpu.offered, gpu.silence_ms, gpu.kind) == (
        [offer.workload],
        {offer.workload.model: offer.slots},
        offer.lease_ms,
        offer.kind,
    )
