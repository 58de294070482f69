"""Bounded reads of what lies not far back: facts since an instant, and the last one of each subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import msgspec

from helix_es.core.codec import decode
from helix_es.core.errors import Unavailable, Unreadable
from helix_es.core.events import GpuHeartbeat, Recorded
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import Connection
from helix_es.jetstream.direct import Message, get
from helix_es.jetstream.headers import stamp_ms

BATCH = 500
MOST = 2_000  # facts of one kind that are looked at; of the rest only the number is told
MANY = 10_000  # heartbeats: a few seconds of a few thousand GPUs
TOGETHER = 400  # subjects in one request; the server answers at most 1,024
BEATEN_MS = 3_000  # three heartbeats


class Recent(msgspec.Struct, frozen=True):
    """Facts since an instant, the oldest first."""

    records: list[Recorded]
    more: int = 0
    """How many newer ones there are that were not read."""


async def recent(
    connection: Connection, stream: str, subject_filter: str, since_ms: int, most: int = MOST
) -> Recent:
    """Return what is stored under `subject_filter` since then. Raises Unavailable."""
    records: list[Recorded] = []
    take = into(records.append)
    start: dict[str, str | int] = {"start_time": rfc3339(since_ms)}
    while True:
        before = len(records)
        more = await get(connection, stream, {**start, "next_by_subj": subject_filter, "batch": BATCH}, take)
        if not more or len(records) == before or len(records) >= most:
            return Recent(records, more)
        start = {"seq": records[-1].seq + 1}


async def last(connection: Connection, stream: str, subjects: Sequence[str]) -> dict[str, Recorded]:
    """Return the last record of each of `subjects` that has one, by subject. Raises Unavailable."""
    found: dict[str, Recorded] = {}

    def note(record: Recorded) -> None:
        found[record.subject] = record

    for index in range(0, len(subjects), TOGETHER):
        body = {"multi_last": list(subjects[index : index + TOGETHER]), "batch": TOGETHER}
        await get(connection, stream, body, into(note))
    return found


async def heartbeats(connection: Connection, hand_ms: int) -> dict[str, Recorded]:
    """Return the last heartbeat of each GPU, by GPU; `hand_ms` is when the newest beat was stored.

    The server gives the last of at most 1,024 subjects: with more GPUs only those are found that are not silent.
    """
    try:
        return await Beats(connection).latest()
    except Unavailable:
        beaten = await recent(connection, "BEATS", "gpu.*.heartbeat", hand_ms - BEATEN_MS, MANY)
    return {each.event.gpu: each for each in beaten.records if isinstance(each.event, GpuHeartbeat)}


def into(note: Callable[[Recorded], None]) -> Message:
    """Return what takes a stored message and gives `note` the record."""

    def take(headers: dict[str, str], data: bytes) -> None:
        subject = headers["Nats-Subject"]
        try:
            event = decode(subject, data)
        except Unreadable:
            return  # 'unreadable' among the checks counts them
        note(Recorded(int(headers["Nats-Sequence"]), stamp_ms(headers["Nats-Time-Stamp"]), subject, event))

    return take


def rfc3339(ms: int) -> str:
    """Return Unix ms as the server takes an instant."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
