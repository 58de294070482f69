"""The log on JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
import nats.errors
import nats.js.errors
import structlog

from helix_es.core.codec import decode, encode, type_of
from helix_es.core.errors import Conflict, Unavailable, Unreadable
from helix_es.core.events import AnyEvent, Recorded
from helix_es.core.subjects import fence_of, subject_of
from helix_es.jetstream import direct
from helix_es.jetstream.client import NO_STREAM, ApiError, Connection, translate
from helix_es.jetstream.follow import follow
from helix_es.jetstream.headers import stamp_ms
from helix_es.jetstream.streams import FILES_BUCKET
from helix_es.log import Batch, Snapshot

log = structlog.get_logger(__name__)

TRY_S = 2.0  # one attempt at an append
DEADLINE_S = 15.0  # all of them: a leader election takes 5 to 9 s
HISTORY_BATCH = 500


class _Ack(msgspec.Struct):
    seq: int = 0
    error: dict[str, int | str] | None = None


class JetStreamLog:
    """A `Log` on the streams that `provision` makes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._acks = msgspec.json.Decoder(_Ack)

    async def append(
        self, event: AnyEvent, *, expected_seq: int, key: str, headers: Mapping[str, str] | None = None
    ) -> int:
        """Store `event` behind its fence; see `Log.append`. Repeats itself while the server does not answer."""
        subject = subject_of(event)
        fence = fence_of(subject)
        envelope = {
            **(headers or {}),
            "Nats-Msg-Id": key,
            "Nats-Expected-Stream": "LOG",
            "Nats-Expected-Last-Subject-Sequence": str(expected_seq),
            "Nats-Expected-Last-Subject-Sequence-Subject": fence,
            "Helix-Event": f"{type_of(event)};v=1",
        }
        data = encode(event)
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while True:
            try:
                return await self._publish(subject, data, envelope)
            except Conflict:
                return await self._mine(fence, expected_seq, key, subject)
            except Unavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def _publish(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        answer = await self._connection.request(subject, data, headers, timeout=TRY_S)
        try:
            ack = self._acks.decode(answer)
        except msgspec.DecodeError as error:
            raise Unavailable(f"{subject}: an answer that is no acknowledgement") from error
        if ack.error is not None:
            raise translate(ApiError(dict(ack.error)), subject)
        return ack.seq

    async def _mine(self, fence: str, expected_seq: int, key: str, subject: str) -> int:
        """The fence has moved. If the first message past it is our own, an acknowledgement was lost.

        The server answers a repeated append with "conflict" on one node and with "duplicate" on a cluster.
        """
        for _ in range(direct.STALE_READS):
            since = await self.history(fence, after_seq=expected_seq)
            if since:
                if since[0].headers.get("Nats-Msg-Id") == key:
                    return since[0].seq
                break
            if expected_seq and await self._behind(fence, expected_seq):
                break
            await asyncio.sleep(direct.STALE_READ_S)
        raise Conflict(f"{subject}: sequence {expected_seq} is not the last any more")

    async def _behind(self, fence: str, expected_seq: int) -> bool:
        """Whether `expected_seq` never was the fence: then there is nothing to wait for."""
        upto = await self.history(fence, after_seq=expected_seq - 1)
        return not upto

    async def history(
        self, subject_filter: str, *, after_seq: int = 0, fresh: bool = False
    ) -> list[Recorded]:
        """Return all records under `subject_filter` by batched direct gets; see `Log.history`."""
        if not fresh:
            return await self._history(subject_filter, after_seq)

        async def read() -> tuple[int, list[Recorded]]:
            records = await self._history(subject_filter, after_seq)
            return (records[-1].seq if records else after_seq), records

        return await direct.fresh(self._connection, "LOG", subject_filter, read)

    async def _history(self, subject_filter: str, after_seq: int) -> list[Recorded]:
        records: list[Recorded] = []

        def take(headers: dict[str, str], data: bytes) -> None:
            records.append(_recorded(headers, data))

        start_seq: int | None = after_seq + 1
        while start_seq is not None:
            start_seq = await direct.page(
                self._connection, "LOG", subject_filter, start_seq, HISTORY_BATCH, take
            )
        return records

    async def last_seq(self) -> int:
        """Return the newest sequence of the log. Raises Unavailable, also where no scheduler has made it yet."""
        try:
            info = await self._connection.api("STREAM.INFO.LOG")
        except ApiError as error:
            if error.err_code == NO_STREAM:
                raise Unavailable("the log is not there yet: it is made by the first scheduler") from error
            raise
        return int(info["state"]["last_seq"])

    def follow(self, after_seq: int, *, filters: Sequence[str] = ()) -> AsyncIterator[Batch]:
        """Follow the log; see `Log.follow`."""
        return follow(self._connection, "LOG", after_seq, filters)

    async def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        """Put the snapshot into the object store."""
        body = str(snapshot.seq).encode() + b"\n" + snapshot.data
        try:
            store = await self._connection.nc.jetstream().object_store(FILES_BUCKET)
            await store.put(f"snapshots/{name}", body)
        except (TimeoutError, nats.errors.Error, nats.js.errors.Error) as error:
            raise Unavailable(f"snapshot {name} was not saved: {error}") from error

    async def load_snapshot(self, name: str) -> Snapshot | None:
        """Read the snapshot from the object store; a damaged one is as good as none."""
        try:
            store = await self._connection.nc.jetstream().object_store(FILES_BUCKET)
            found = (await store.get(f"snapshots/{name}")).data or b""
        except nats.js.errors.NotFoundError:
            return None
        except (TimeoutError, nats.errors.Error, nats.js.errors.Error) as error:
            log.warning("snapshot_not_read", name=name, error=str(error))
            return None
        seq, newline, data = found.partition(b"\n")
        if not newline or not seq.isdigit():
            return None
        return Snapshot(int(seq), data)


def _recorded(headers: dict[str, str], data: bytes) -> Recorded:
    subject = headers["Nats-Subject"]
    try:
        event: AnyEvent | None = decode(subject, data)
    except Unreadable:
        event = None
    return Recorded(
        int(headers["Nats-Sequence"]), stamp_ms(headers["Nats-Time-Stamp"]), subject, event, headers
    )
