"""The streams that the tables are made of: which log it is, where it begins and ends."""

from __future__ import annotations

import asyncio

import msgspec

from helix_es.core.errors import Unavailable
from helix_es.jetstream import direct
from helix_es.jetstream.client import BUSY, NO_STREAM, ApiError, Connection
from helix_es.jetstream.headers import stamp_ms

THERE_YET_S = 0.5
TRIES = 10  # of two seconds each: an election takes 5 to 9 s


class Source(msgspec.Struct, frozen=True):
    """A stream as the server describes it."""

    name: str
    created: str
    """When it was made: another log that is called the same has another."""
    first_seq: int
    last_seq: int


async def source(connection: Connection, stream: str) -> Source:
    """Return what the server says of `stream`; waits for one that is not made yet, and for a server that is away."""
    while True:
        try:
            info = await connection.api(f"STREAM.INFO.{stream}")
        except ApiError as error:
            if error.err_code != NO_STREAM and error.err_code not in BUSY:
                raise
            await asyncio.sleep(THERE_YET_S)
            continue
        except Unavailable:  # an election
            await asyncio.sleep(THERE_YET_S)
            continue
        state = info["state"]
        return Source(stream, info["created"], max(1, int(state["first_seq"])), int(state["last_seq"]))


async def stored_ms(connection: Connection, stream: str, seq: int) -> int | None:
    """Return the timestamp of the message `seq`, Unix ms; None if the stream has it no more.

    Raises Unavailable.
    """
    found: list[int] = []

    def take(headers: dict[str, str], _data: bytes) -> None:
        if int(headers["Nats-Sequence"]) == seq:
            found.append(stamp_ms(headers["Nats-Time-Stamp"]))

    for left in reversed(range(TRIES)):
        try:
            await direct.get(connection, stream, {"seq": seq, "next_by_subj": ">", "batch": 1}, take)
            break
        except Unavailable:
            if not left:
                raise
            await asyncio.sleep(THERE_YET_S)
    return found[0] if found else None
