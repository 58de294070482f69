"""Read a stream without a consumer: batched direct gets, each answered by whichever replica is near."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from helix_es.core.errors import Unavailable
from helix_es.jetstream.client import ApiError, Connection
from helix_es.jetstream.headers import parse

READ_S = 2.0
NO_MESSAGE = 10037
STALE_READS = 25
STALE_READ_S = 0.02

Found = TypeVar("Found")

Message = Callable[[dict[str, str], bytes], None]
"""Takes the headers (`Nats-Subject`, `Nats-Sequence`, `Nats-Time-Stamp`, …) and the data of one stored message."""


async def get(connection: Connection, stream: str, body: dict[str, Any], message: Message) -> int:
    """Send one batched direct get, give each answer to `message`; return how many more the server has.

    Raises Unavailable if the end of the batch does not come in time.
    """
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def sink(_subject: str, _reply: str, raw: bytes, data: bytes) -> None:
        if done.done():
            return
        status, headers = parse(raw)
        if not status:
            message(headers, data)
        elif status in (204, 404):  # the end of the batch; nothing there
            done.set_result(int(headers.get("Nats-Num-Pending", 0)))
        else:
            done.set_exception(Unavailable(f"a read of {stream} was answered with {status}"))

    with connection.mail(sink) as address:
        await connection.publish(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(body), reply=address)
        try:
            return await asyncio.wait_for(done, READ_S)
        except TimeoutError:
            raise Unavailable(f"no answer to a read of {stream}") from None


async def last(connection: Connection, stream: str, subject_filter: str) -> int:
    """Return the sequence of the newest message under `subject_filter` as the stream's leader has it, 0 if none."""
    try:
        found = await connection.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject_filter})
    except ApiError as error:
        if error.err_code == NO_MESSAGE:
            return 0
        raise
    return int(found["message"]["seq"])


async def fresh(
    connection: Connection, stream: str, subject_filter: str, read: Callable[[], Awaitable[tuple[int, Found]]]
) -> Found:
    """Return what `read` gives, again if that is older than what the leader has: a replica that answered lagged.

    Raises Unavailable if it goes on lagging.
    """
    newest, (seq, found) = await asyncio.gather(last(connection, stream, subject_filter), read())
    for _ in range(STALE_READS):
        if seq >= newest:
            return found
        await asyncio.sleep(STALE_READ_S)
        seq, found = await read()
    raise Unavailable(f"a replica of {stream} stays behind; try again")


async def page(
    connection: Connection, stream: str, subject_filter: str, start_seq: int, batch: int, message: Message
) -> int | None:
    """Read up to `batch` messages under `subject_filter` from `start_seq` on.

    Returns the sequence to go on from, or None at the end.
    """
    next_seq = start_seq

    def noted(headers: dict[str, str], data: bytes) -> None:
        nonlocal next_seq
        next_seq = int(headers["Nats-Sequence"]) + 1
        message(headers, data)

    body = {"seq": start_seq, "next_by_subj": subject_filter, "batch": batch}
    pending = await get(connection, stream, body, noted)
    return next_seq if pending and next_seq > start_seq else None
