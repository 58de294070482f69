"""Pull work from the queue that the broker derives from the log."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog

from helix_es.core.codec import encode
from helix_es.core.errors import Unavailable, Unreadable
from helix_es.core.events import TurnAdmitted, TurnContinued
from helix_es.core.subjects import subject_of
from helix_es.jetstream.client import ApiError, Connection
from helix_es.jetstream.headers import parse
from helix_es.jetstream.streams import PRIORITY_GROUP

log = structlog.get_logger(__name__)

EXPIRES_S = 2.0  # after a reconnect a waiting pull is dead until it expires, so keep it short
SLACK_S = 0.5

TaskEvent = TurnAdmitted | TurnContinued


class Task:
    """A turn to be done: the fact that made it, where that stands in the log, and how to answer the broker."""

    def __init__(
        self, connection: Connection, subject: str, reply: str, headers: dict[str, str], data: bytes
    ) -> None:
        self.subject = subject
        self.headers = headers
        self.event: TaskEvent = _decode(subject, data)
        self.log_seq = _source_seq(headers)
        """The fence that `started` must be appended behind."""
        self._connection = connection
        self._reply = reply

    async def ack(self) -> None:
        """Done with it: the broker forgets it."""
        await self._connection.publish(self._reply, b"+ACK")

    async def nak(self) -> None:
        """Not for us: give it to another at once."""
        await self._connection.publish(self._reply, b"-NAK")

    async def in_progress(self) -> None:
        """Still at it: do not give it to another yet."""
        await self._connection.publish(self._reply, b"+WPI")


_decoder: msgspec.json.Decoder[TaskEvent] = msgspec.json.Decoder(TaskEvent)


def _decode(subject: str, data: bytes) -> TaskEvent:
    try:
        event = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Unreadable(f"task under {subject}: {error}") from error
    # task.create.text.mistral is what session.<sid>.turn.admitted.create.text.mistral was routed to
    stored = subject_of(event).split(".")
    verb = "continue." if isinstance(event, TurnContinued) else ""
    if subject != f"task.{verb}{'.'.join(stored[4:])}":
        raise Unreadable(f"{encode(event)[:80]!r} does not belong under {subject}")
    return event


def _source_seq(headers: dict[str, str]) -> int:
    source = headers.get("Nats-Stream-Source", "").split(" ")
    if len(source) < 2 or not source[0].startswith("LOG") or not source[1].isdigit():
        raise Unreadable("a task that was not sourced from LOG")
    return int(source[1])


class TaskPuller:
    """Pulls one task at a time from one consumer of TASKS, with one subscription for all pulls."""

    def __init__(self, connection: Connection, consumer: str, *, prioritized: bool) -> None:
        self._connection = connection
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.TASKS.{consumer}"
        self._prioritized = prioritized
        self._arrived: asyncio.Queue[Task] = asyncio.Queue()
        self._news = asyncio.Event()
        self._waits = False
        """Whether the broker has a pull of ours that it has not answered."""
        self._expires_at = 0.0
        """When it forgets that pull, on the loop's clock."""
        self._sub: Any = None
        self._inbox = ""
        self.retired = False
        """No more is pulled."""

    async def open(self) -> None:
        """Subscribe; before the first pull."""
        self._inbox = self._connection.nc.new_inbox()
        self._sub = await self._connection.sink(self._inbox, self._sink)

    def _sink(self, subject: str, reply: str, raw: bytes, data: bytes) -> None:
        self._waits = False
        status, headers = parse(raw)
        if not status:
            try:
                self._arrived.put_nowait(Task(self._connection, subject, reply, headers, data))
            except Unreadable as error:
                log.error("task_unreadable", subject=subject, error=str(error))
        self._news.set()

    async def pull(self, *, load: int = 0, expires_s: float = EXPIRES_S) -> Task | None:
        """Return the next task, or None if none came in time or this is retired.

        `load` is 0 for an idle GPU to 9 for a nearly full one: of the GPUs that wait, the broker serves the
        emptiest. A task that arrives after its pull was given up is kept for the next call.
        """
        if not self._arrived.empty():
            return self._arrived.get_nowait()
        if self.retired:
            return None
        body: dict[str, Any] = {"batch": 1, "expires": int(expires_s * 1e9)}
        if self._prioritized:
            body |= {"group": PRIORITY_GROUP, "priority": max(0, min(9, load))}
        self._news.clear()
        self._expires_at = asyncio.get_running_loop().time() + expires_s + SLACK_S
        self._waits = True
        await self._connection.publish(self._subject, msgspec.json.encode(body), reply=self._inbox)
        try:
            async with asyncio.timeout_at(self._expires_at):
                await self._news.wait()
        except TimeoutError:
            return None
        return None if self._arrived.empty() else self._arrived.get_nowait()

    def retire(self) -> None:
        """Pull no more; a `pull` that waits returns. `drain` ends what is left."""
        self.retired = True
        self._news.set()

    async def drain(self) -> None:
        """Wait until the last pull was answered or has expired, then close: nobody waits for what came too late."""
        while self._waits:
            self._news.clear()
            try:
                async with asyncio.timeout_at(self._expires_at):
                    await self._news.wait()
            except TimeoutError:
                break
        await self.close()

    async def close(self) -> None:
        """Give back what has arrived and unsubscribe; what is on its way comes to another GPU after `ack_wait`."""
        try:
            while not self._arrived.empty():
                await self._arrived.get_nowait().nak()
        except Unavailable as error:
            log.warning("task_not_given_back", error=str(error))
        if self._sub is not None:
            await self._connection.unsink(self._sub)
            self._sub = None


async def purge_continued(connection: Connection, gpu: str) -> None:
    """Drop the tasks for a GPU that is gone: their sessions were released and queue again."""
    try:
        await connection.api("STREAM.PURGE.TASKS", {"filter": f"task.continue.*.*.{gpu}"})
    except ApiError as error:
        log.warning("purge_failed", gpu=gpu, error=str(error))
