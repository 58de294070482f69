"""Who acted as the scheduler in the last hour, from the beats: read whole for a minute, sampled before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from helix_es.cli.checks import Check, clock, ok, warn
from helix_es.cli.lately import into, recent, rfc3339
from helix_es.core.events import Recorded, SchedulerBeat
from helix_es.core.subjects import SCHEDULER_BEAT
from helix_es.jetstream.client import Connection
from helix_es.jetstream.direct import get

HOUR_MS = 3_600_000
STEP_MS = 60_000  # between two samples; a change and its reverse within one minute may go unseen
SAMPLE = 32  # beats: an active one is among them, unless none acts or there are more schedulers than that
RECENT = 2_000  # beats at most of the last minute: eight schedulers
FINE_MS = 500  # a change is known this exactly: two beats
GAP_MS = 2_000  # longer without an active scheduler than a failover may take
NARROWED = 10  # the newest changes are timed exactly


class Beat(NamedTuple):
    """A stored beat of a scheduler."""

    at_ms: int
    scheduler: str
    active: bool


class Change(msgspec.Struct, frozen=True):
    """One scheduler stopped acting, and the same or another one went on."""

    was: str
    now: str
    last_ms: int
    """When the former was last heard to act."""
    first_ms: int
    """When the latter was first heard to."""


class Watch(msgspec.Struct, frozen=True):
    """What the beats of the last hour say."""

    schedulers: list[str]
    """Those that beat in the last minute."""
    changes: list[Change]


async def watch(connection: Connection, now_ms: int) -> Watch:
    """Return who acted until `now_ms`, the server's time, from some 60 small reads. Raises Unavailable."""
    start_ms = now_ms - STEP_MS
    newest = await _beats(connection, start_ms, RECENT)
    moments = range(now_ms - HOUR_MS, start_ms, STEP_MS)
    sampled = list(
        zip(moments, await asyncio.gather(*(_acting(connection, each) for each in moments)), strict=True)
    )
    sampled.append((start_ms, next((beat for beat in newest if beat.active), None)))
    narrowed = [await _narrowed(connection, lo, hi) for lo, hi in list(breaks(sampled))[-NARROWED:]]
    return Watch(sorted({beat.scheduler for beat in newest}), narrowed + changes(newest))


async def _beats(connection: Connection, start_ms: int, most: int) -> list[Beat]:
    found: list[Beat] = []

    def note(record: Recorded) -> None:
        if isinstance(record.event, SchedulerBeat):
            found.append(Beat(record.at_ms, record.event.scheduler, record.event.active))

    body = {"start_time": rfc3339(start_ms), "next_by_subj": SCHEDULER_BEAT, "batch": most}
    await get(connection, "BEATS", body, into(note))
    return found


async def acting(connection: Connection, start_ms: int, now_ms: int) -> SchedulerBeat | None:
    """Return the newest active beat since then, None if there is none. Raises Unavailable."""
    found = await recent(connection, "BEATS", SCHEDULER_BEAT, start_ms, now_ms)
    beats = [each.event for each in found.records if isinstance(each.event, SchedulerBeat)]
    return next((beat for beat in reversed(beats) if beat.active), None)


async def _acting(connection: Connection, moment_ms: int) -> Beat | None:
    """Return the first active beat from `moment_ms` on; None if there is none for a while."""
    return next((beat for beat in await _beats(connection, moment_ms, SAMPLE) if beat.active), None)


async def _narrowed(connection: Connection, lo: Beat, hi: Beat) -> Change:
    """Find, by halving, when the one of `lo` stopped acting and when that of `hi` began."""
    left_ms, right_ms = lo.at_ms, hi.at_ms
    while right_ms - left_ms > FINE_MS:
        middle_ms = (left_ms + right_ms) // 2
        beat = await _acting(connection, middle_ms)
        if beat is not None and beat.at_ms < hi.at_ms and beat.scheduler == lo.scheduler:
            left_ms = beat.at_ms
        else:
            right_ms = middle_ms
            hi = beat if beat is not None and beat.at_ms < hi.at_ms else hi
    return Change(lo.scheduler, hi.scheduler, left_ms, hi.at_ms)


def breaks(sampled: Sequence[tuple[int, Beat | None]]) -> Iterator[tuple[Beat, Beat]]:
    """Yield each pair of neighbouring samples between which somebody else began to act, or nobody did for a while.

    `sampled`: the moment asked for, and the first active beat from there on.
    """
    last: Beat | None = None
    silent = False
    for moment_ms, beat in sampled:
        if beat is None:
            silent = True
            continue
        late = silent or beat.at_ms - moment_ms > GAP_MS
        if last is not None and beat.at_ms > last.at_ms and (late or beat.scheduler != last.scheduler):
            yield last, beat
        last, silent = beat, False


def changes(recent: Sequence[Beat]) -> list[Change]:
    """Return the changes in beats that were read without a gap."""
    acting = [beat for beat in recent if beat.active]
    return [
        Change(before.scheduler, after.scheduler, before.at_ms, after.at_ms)
        for before, after in pairwise(acting)
        if before.scheduler != after.scheduler or after.at_ms - before.at_ms > GAP_MS
    ]


def failover(seen: Watch, replicas: int) -> Check:
    """Judge it. With one broker one scheduler is enough; a broker of several nodes deserves a second one."""
    standing = len(seen.schedulers) - 1
    if standing > 0:
        said = f"{standing} standing by"
    else:
        said = "no standby" + (": enough with one broker" if replicas <= 1 else "")
    if seen.changes:
        told = ", ".join(_told(change) for change in seen.changes[-3:])
        count = f"{len(seen.changes)} times, lastly " if len(seen.changes) > 3 else ""
        advice = "see the log of the one that stopped acting; nothing to do if it was restarted"
        return warn("failover", f"in the last hour {count}{told}; {said}", advice)
    if standing <= 0 and replicas > 1:
        return warn("failover", said, "start a second one: 'helix scheduler' on another machine")
    return ok("failover", f"none in the last hour; {said}")


def _told(change: Change) -> str:
    away = f"{(change.first_ms - change.last_ms) / 1000:.1f} s without"
    if change.was == change.now:
        return f"{change.was} paused until {clock(change.first_ms)} ({away})"
    return f"{change.was} -> {change.now} at {clock(change.first_ms)} ({away})"
