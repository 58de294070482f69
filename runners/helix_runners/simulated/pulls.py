"""Pulls for all GPUs of the process over one connection: on the shared queue where there is room, and on their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import structlog

from helix_es.core.errors import Unavailable, Unreadable
from helix_es.core.events import TurnContinued
from helix_es.core.subjects import continue_consumer, shared_consumer, task_subject
from helix_es.jetstream.client import Connection
from helix_es.jetstream.headers import parse
from helix_es.jetstream.streams import PRIORITY_GROUP
from helix_es.jetstream.tasks import Task
from helix_runners.simulated.gpu import SimulatedGpu

log = structlog.get_logger(__name__)

LEAST_EXPIRES_S = 2.0  # as a real runner's: after a reconnect a waiting pull is dead until it expires
MOST_EXPIRES_S = 10.0
RENEWALS_PER_S = 100  # of pulls that brought nothing; each costs the broker and us a message both ways
SLACK_S = 0.5
RETRY_S = 0.5
MOST_OWN = 8  # further turns that one pull may bring
EXPIRED = b"NATS/1.0 408"
OWN = "own"

OnTask = Callable[[SimulatedGpu, Task], None]
"""Takes what a pull brought; called in the connection's reader: it must not block or raise."""


@dataclass(eq=False)
class Line:
    """The pulls of one GPU. A time in the past: none is out."""

    gpu: SimulatedGpu
    inbox: str
    shared_until_s: float = 0.0
    own_until_s: float = 0.0
    own_left: int = 0
    """Tasks that the pull on its own queue may still bring."""
    life: int = 0
    """Counts the queues that it pulled from: answers to pulls of an earlier one say nothing."""
    wanted: bool = False
    """The pump will look at it."""

    @property
    def shared(self) -> str:
        """The last token of the inbox that answers to shared pulls come to."""
        return f"shared{self.life}"

    @property
    def queue(self) -> str:
        """The subject of what a shared pull brings now."""
        return "" if self.gpu.workload is None else task_subject(self.gpu.workload)


class Pulls:
    """A subscription for each GPU, since a delivery does not say which pull it answers; one pump for all."""

    def __init__(self, connection: Connection, on_task: OnTask, *, count: int) -> None:
        """`count`: GPUs of the process."""
        self._connection = connection
        self._on_task = on_task
        self._expires_s = max(LEAST_EXPIRES_S, min(MOST_EXPIRES_S, count / RENEWALS_PER_S))
        self._lines: dict[str, Line] = {}
        self._wanted: list[Line] = []
        self._work = asyncio.Event()
        self._now_s = asyncio.get_running_loop().time
        expires_ns = int(self._expires_s * 1e9)
        encode = msgspec.json.encode
        self._shared = [
            encode({"batch": 1, "expires": expires_ns, "group": PRIORITY_GROUP, "priority": load})
            for load in range(10)
        ]
        self._own = encode({"batch": MOST_OWN, "expires": expires_ns})

    async def open(self, gpu: SimulatedGpu) -> None:
        """Subscribe for a GPU; before it is ready."""
        line = self._lines[gpu.gpu] = Line(gpu, self._connection.nc.new_inbox())

        def sink(subject: str, reply: str, raw: bytes, data: bytes) -> None:
            if reply.startswith("$JS.ACK."):
                try:
                    self._delivered(line, Task(self._connection, subject, reply, parse(raw)[1], data))
                except Unreadable as error:  # the time limit of the pull finds what this one was
                    log.error("task_unreadable", subject=subject, error=str(error))
            else:
                self._answered(line, subject.rsplit(".", 1)[1], raw)

        await self._connection.sink(f"{line.inbox}.*", sink)

    def _delivered(self, line: Line, task: Task) -> None:
        if isinstance(task.event, TurnContinued):
            line.own_left -= 1
            if line.own_left <= 0:
                line.own_until_s = 0.0
        elif task.subject == line.queue:
            line.shared_until_s = 0.0
        self._on_task(line.gpu, task)
        self._want(line)

    def _answered(self, line: Line, pull: str, raw: bytes) -> None:
        """A pull is over without a task; one that was refused is not repeated at once."""
        until_s = 0.0 if raw.startswith(EXPIRED) else self._now_s() + RETRY_S
        if pull == OWN:
            line.own_until_s = until_s
        elif pull == line.shared:
            line.shared_until_s = until_s
        self._want(line)

    def restart(self, gpu: SimulatedGpu) -> None:
        """Pull from another queue from now on: `gpu` serves something else."""
        line = self._lines[gpu.gpu]
        line.life += 1
        line.shared_until_s = 0.0

    def want(self, gpu: SimulatedGpu) -> None:
        """Something changed: pull for `gpu` where it may."""
        self._want(self._lines[gpu.gpu])

    def check(self, gpu: SimulatedGpu, now_s: float) -> None:
        """Renew what got no answer; to be called once a second or so."""
        line = self._lines[gpu.gpu]
        if gpu.ready and (line.shared_until_s < now_s or line.own_until_s < now_s):
            self._want(line)

    def renew(self) -> None:
        """Every pull that was out is dead: the server is another one, or new."""
        for line in self._lines.values():
            line.shared_until_s = line.own_until_s = 0.0
            self._want(line)

    def _want(self, line: Line) -> None:
        if not line.wanted:
            line.wanted = True
            self._wanted.append(line)
            self._work.set()

    async def run(self) -> None:
        """Send the pulls that are wanted, for ever."""
        while True:
            await self._work.wait()
            self._work.clear()
            wanted, self._wanted = self._wanted, []
            for line in wanted:
                line.wanted = False
            try:
                for line in wanted:
                    await self._pull(line)
            except Unavailable as error:  # `check` comes again
                log.warning("pull_not_sent", error=str(error))

    async def _pull(self, line: Line) -> None:
        gpu, now_s = line.gpu, self._now_s()
        until_s = now_s + self._expires_s + SLACK_S
        # with one pull out and room for one, a task never comes in vain, unless slots are taken away meanwhile
        if gpu.room and gpu.workload is not None and line.shared_until_s < now_s:
            line.shared_until_s = until_s
            await self._publish(
                shared_consumer(gpu.workload), self._shared[gpu.load], f"{line.inbox}.{line.shared}"
            )
        # nobody can send further turns to a GPU that holds nobody
        if gpu.ready and gpu.seats and line.own_until_s < now_s:
            line.own_until_s, line.own_left = until_s, MOST_OWN
            await self._publish(continue_consumer(gpu.gpu), self._own, f"{line.inbox}.{OWN}")

    async def _publish(self, consumer: str, body: bytes, reply: str) -> None:
        await self._connection.publish(f"$JS.API.CONSUMER.MSG.NEXT.TASKS.{consumer}", body, reply=reply)
