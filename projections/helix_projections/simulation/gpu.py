"""A simulated GPU: it takes turns while it has room, reads prompts one by one and lets all others decode together."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import msgspec

from helix_es.core import events as e
from helix_projections.simulation.clock import Clock
from helix_projections.simulation.service import Service


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU as its runner presents it."""

    gpu: e.GpuId
    kind: str
    workloads: list[e.Workload]
    slots: dict[str, int]
    join_ms: int = 0
    pool: str = "default"
    memory_total_bytes: int = 80 << 30


def uniform(count: int, workload: e.Workload, *, slots: int, kind: str = "a100-80") -> list[Offer]:
    """Return offers of `count` GPUs that are all alike and there from the beginning."""
    return [
        Offer(gpu=e.GpuId(f"{kind}-{n}"), kind=kind, workloads=[workload], slots={workload.model: slots})
        for n in range(count)
    ]


class Job(msgspec.Struct, kw_only=True):
    """A turn on a GPU."""

    session: e.SessionId
    turn: int
    attempt: int
    prompt_tokens: int
    known_tokens: int
    """Of the prompt: they need not be read."""
    output_tokens: int
    begun_ms: int = 0
    queue_ms: int = 0
    """Until its prompt was being read."""
    first_token_ms: int = 0


Done = Callable[["SimulatedGpu", Job], None]


class SimulatedGpu:
    """What one GPU holds and computes. `done` is called with it and each job that has its last token.

    All who decode get tokens at the same rate. So one number says how many tokens each of them got since the GPU began,
    and a job ends when that number has grown by its length: a heap of ends, one timer a GPU.
    """

    def __init__(self, offer: Offer, service: Service, clock: Clock, done: Done) -> None:
        self.offer = offer
        self.service = service
        self.incarnation = f"{offer.gpu}-1"
        self.bound: dict[str, None] = {}
        self.slots = 0
        self.serving: e.Workload | None = None
        self.leaving = False
        self._clock = clock
        self._done = done
        self._reading_until_ms = 0.0
        self._decoding: list[tuple[float, int, Job]] = []
        self._tokens = 0.0  # that each of them got by `_at_ms`
        self._at_ms = 0
        self._jobs = 0
        self._timer = 0

    @property
    def room(self) -> int:
        return self.slots - len(self.bound)

    def begin(self, job: Job) -> None:
        """Take `job`: its prompt is read when those before it are."""
        now_ms = self._clock.now_ms
        job.begun_ms = now_ms
        begin_ms = max(float(now_ms), self._reading_until_ms)
        unread = max(1, job.prompt_tokens - job.known_tokens)
        self._reading_until_ms = begin_ms + self.service.prefill_ms(unread)
        job.queue_ms = round(begin_ms) - now_ms
        self._clock.at(math.ceil(self._reading_until_ms), lambda: self._read(job))

    def _read(self, job: Job) -> None:
        """The prompt is read; that gives the first token."""
        job.first_token_ms = self._clock.now_ms - job.begun_ms
        self._advance()
        self._jobs += 1
        heapq.heappush(self._decoding, (self._tokens + job.output_tokens - 1, self._jobs, job))
        self._wind()

    def _advance(self) -> None:
        """Count the tokens since the last change of who decodes."""
        now_ms = self._clock.now_ms
        if self._decoding:
            self._tokens += (now_ms - self._at_ms) * self.service.tokens_per_ms(len(self._decoding))
        self._at_ms = now_ms

    def _wind(self) -> None:
        """Set the timer to the next end; an earlier timer finds that it is not the last one."""
        self._timer += 1
        if not self._decoding:
            return
        timer = self._timer
        left = max(0.0, self._decoding[0][0] - self._tokens)
        due_ms = self._at_ms + math.ceil(left / self.service.tokens_per_ms(len(self._decoding)))
        self._clock.at(due_ms, lambda: self._ring(timer))

    def _ring(self, timer: int) -> None:
        if timer != self._timer:
            return
        self._advance()
        ended = []
        while self._decoding and self._decoding[0][0] <= self._tokens + 1e-6:
            ended.append(heapq.heappop(self._decoding)[2])
        self._wind()
        for job in ended:
            self._done(self, job)
