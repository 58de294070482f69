"""Signs of life, published without waiting; and the log's clock, which they move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from helix_es.core.codec import decode, encode, type_of
from helix_es.core.errors import Unreadable
from helix_es.core.events import GpuHeartbeat, Recorded, SchedulerBeat
from helix_es.core.subjects import subject_of
from helix_es.jetstream.client import Connection
from helix_es.jetstream.direct import get
from helix_es.jetstream.follow import follow
from helix_es.jetstream.headers import stamp_ms
from helix_es.log import Batch

TOGETHER = 400  # heartbeats of one read; 1,024 are the server's limit


class Beats:
    """The stream BEATS."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def publish(self, beat: GpuHeartbeat | SchedulerBeat) -> None:
        """Send a beat and do not wait; a lost one is made up for by the next."""
        await self._connection.publish(
            subject_of(beat), encode(beat), headers={"Helix-Event": f"{type_of(beat)};v=1"}
        )

    async def last_seq(self) -> int:
        """Return the newest sequence of the stream."""
        info = await self._connection.api("STREAM.INFO.BEATS")
        return int(info["state"]["last_seq"])

    def follow(self, after_seq: int) -> AsyncIterator[Batch]:
        """Yield every beat after `after_seq`, in order, for ever."""
        return follow(self._connection, "BEATS", after_seq)

    async def latest(self, gpus: Sequence[str] = ()) -> dict[str, Recorded]:
        """Return the last heartbeat of each of `gpus`, by GPU; of all there are, if none is named.

        Raises Unavailable for more than 1,024 that are not named: the server looks at no more subjects at once.
        """
        found: dict[str, Recorded] = {}

        def take(headers: dict[str, str], data: bytes) -> None:
            subject = headers["Nats-Subject"]
            try:
                event = decode(subject, data)
            except Unreadable:
                return
            seq, at_ms = int(headers["Nats-Sequence"]), stamp_ms(headers["Nats-Time-Stamp"])
            if isinstance(event, GpuHeartbeat):
                found[event.gpu] = Recorded(seq, at_ms, subject, event)

        subjects = [f"gpu.{gpu}.heartbeat" for gpu in gpus] or ["gpu.*.heartbeat"]
        for start in range(0, len(subjects), TOGETHER):
            some = subjects[start : start + TOGETHER]
            await get(self._connection, "BEATS", {"multi_last": some, "batch": 1024}, take)
        return found
