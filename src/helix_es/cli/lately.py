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
LEAST_MS = 1_000  # the narrowest window that is tried
BEATEN_MS = 3_000  # three heartbeats


class Recent(msgspec.Struct, frozen=True):
    """Facts since an instant, the oldest first."""

    records: list[Recorded]
    more: int = 0
    """How many there are beside these: the older ones, if there were too many."""


async def recent(
    connection: Connection, stream: str, subject_filter: str, since_ms: int, now_ms: int, most: int = MOST
) -> Recent:
    """Return what is stored under `subject_filter` since then, the newest if it is more than `most`.

    `now_ms` is the server's time. Raises Unavailable.
    """
    records: list[Recorded] = []

    async def ask(start: dict[str, str | int]) -> int:
        before = len(records)
        body = {**start, "next_by_subj": subject_filter, "batch": BATCH}
        left = await get(connection, stream, body, into(records.append))
        return left if len(records) > before else 0

    left = await ask({"start_time": rfc3339(since_ms)})
    total = len(records) + left
    while left > most and now_ms - since_ms > LEAST_MS:
        since_ms = (since_ms + now_ms) // 2
        records.clear()
        left = await ask({"start_time": rfc3339(since_ms)})
    while left and len(records) < most:
        left = await ask({"seq": records[-1].seq + 1})
    return Recent(records, max(0, total - len(records)))


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
        beaten = await recent(connection, "BEATS", "gpu.*.heartbeat", hand_ms - BEATEN_MS, hand_ms, MANY)
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
    return datetime.fromtimestamp(max(0, ms) / 1000, UTC).isoformat(timespec="milliseconds")
