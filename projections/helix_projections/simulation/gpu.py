"""A simulated GPU: it takes turns while it has room, and all that run on it share it."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import msgspec

from helix_es.core import events as e
from helix_projections.simulation.clock import Clock
from helix_projections.simulation.meter import Level
from helix_projections.simulation.offer import Offer
from helix_projections.simulation.service import Service


class Job(msgspec.Struct, kw_only=True):
    """A turn on a GPU."""

    session: e.SessionId
    turn: int
    attempt: int
    prompt_tokens: int = 0
    known_tokens: int = 0
    """Of the prompt: they need not be read."""
    output_tokens: int = 1
    work_ms: float = 0.0
    """Of what has no tokens: what is left to compute of it, at speed 1."""
    begun_ms: int = 0
    queue_ms: int = 0
    """Until its prompt was being read."""
    first_token_ms: int = 0
    end: float = 0.0
    """What each that shares the GPU must have got for this to be done."""


Done = Callable[["SimulatedGpu", Job], None]


class SimulatedGpu:
    """What one GPU holds and computes. `done` is called with it and each job that is done.

    All who decode get tokens at the same rate, and fine-tunes or pictures the same share of the GPU. So one number says
    how much each of them got since the GPU began, and a job ends when that number has grown by its length: a heap of
    ends, one timer a GPU.
    """

    def __init__(self, offer: Offer, clock: Clock, busy: Level, done: Done) -> None:
        """`busy`: counts the GPUs that compute."""
        self.offer = offer
        self.service = Service()
        """Of what it serves."""
        self.incarnation = f"{offer.gpu}-1"
        self.bound: dict[str, None] = {}
        self.slots = 0
        self.serving: e.Workload | None = None
        self.starting = 0
        """Turns that are bound to it, and whose start is on its way to the log."""
        self.settled: list[Callable[[], None]] = []
        """What is to happen when there is none of these any more."""
        self._clock = clock
        self._busy = busy
        self._done = done
        self._running: dict[str, Job] = {}
        self._reading_until_ms = 0.0
        self._sharing: list[tuple[float, int, Job]] = []
        self._got = 0.0  # by each of them until `_at_ms`
        self._rate = 1.0  # what each gets in a millisecond
        self._at_ms = 0
        self._jobs = 0
        self._timer = 0

    @property
    def room(self) -> int:
        return self.slots - len(self.bound)

    def begin(self, job: Job) -> None:
        """Take `job`: a prompt is read first, where prompts are read one by one after those before it."""
        now_ms = self._clock.now_ms
        job.begun_ms = now_ms
        if not self._running:
            self._busy.change(now_ms, +1)
        self._running[job.session] = job
        if job.work_ms > 0:
            self._share(job, job.work_ms)
            return
        unread = max(1, job.prompt_tokens - job.known_tokens)
        read_ms = self.service.prefill_ms(unread, len(self._running))
        begin_ms = float(now_ms)
        if self.service.serial:
            begin_ms = max(begin_ms, self._reading_until_ms)
            self._reading_until_ms = begin_ms + read_ms
        elif self._sharing:  # it is read in the steps of those who decode
            self._advance()
            self._wind()
        job.queue_ms = round(begin_ms) - now_ms
        self._clock.at(math.ceil(begin_ms + read_ms), lambda: self._read(job))

    def drop(self, session: str) -> None:
        """Compute nothing of `session` any more."""
        job = self._running.get(session)
        if job is not None:
            self._advance()
            self._sharing = [each for each in self._sharing if each[2] is not job]
            heapq.heapify(self._sharing)
            self._end(job)
            self._wind()

    def left_ms(self, session: str) -> float:
        """Return what is left of a job that has no tokens, at speed 1, ms."""
        self._advance()
        job = self._running.get(session)
        return 0.0 if job is None else max(0.0, job.end - self._got)

    def runs(self, session: str, attempt: int) -> bool:
        """Whether that attempt runs here."""
        job = self._running.get(session)
        return job is not None and job.attempt == attempt

    def _read(self, job: Job) -> None:
        """The prompt is read; that gives the first token."""
        if self._running.get(job.session) is not job:
            return
        job.first_token_ms = self._clock.now_ms - job.begun_ms
        self._share(job, job.output_tokens - 1)

    def _share(self, job: Job, length: float) -> None:
        """From now on it gets what the others get."""
        self._advance()
        self._jobs += 1
        job.end = self._got + length
        heapq.heappush(self._sharing, (job.end, self._jobs, job))
        self._wind()

    def _advance(self) -> None:
        """Count what each got since the last change of who shares."""
        now_ms = self._clock.now_ms
        if self._sharing:
            self._got += (now_ms - self._at_ms) * self._rate
        self._at_ms = now_ms

    def _wind(self) -> None:
        """Set the timer to the next end; an earlier timer finds that it is not the last one."""
        self._timer += 1
        if not self._sharing:
            return
        end, _, first = self._sharing[0]
        service = self.service
        sharing = len(self._sharing if service.serial else self._running)
        self._rate = service.work_per_ms(sharing) if first.work_ms > 0 else service.tokens_per_ms(sharing)
        timer = self._timer
        due_ms = self._at_ms + math.ceil(max(0.0, end - self._got) / self._rate)
        self._clock.at(due_ms, lambda: self._ring(timer))

    def _ring(self, timer: int) -> None:
        if timer != self._timer:
            return
        self._advance()
        ended = []
        while self._sharing and self._sharing[0][0] <= self._got + 1e-6:
            ended.append(heapq.heappop(self._sharing)[2])
            self._end(ended[-1])
        self._wind()
        for job in ended:
            self._done(self, job)

    def _end(self, job: Job) -> None:
        del self._running[job.session]
        if not self._running:
            self._busy.change(self._clock.now_ms, -1)
