"""What went wrong with GPUs and turns in the last hour, and what goes wrong with them right now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from helix_es.cli.checks import Check, clock, fails, ok, warn
from helix_es.cli.failover import HOUR_MS
from helix_es.cli.lately import Recent, heartbeats, last, recent
from helix_es.core import events as e
from helix_es.jetstream.client import Connection
from helix_es.settings import Sessions

SHOWN = 5
AT_ONCE_MS = 5_000  # GPUs of a node that were lost within so long went down with it
SILENT_MS = 10_000  # three heartbeats and a failover: by then somebody should have said that it is lost
STALLED_MS = 30_000  # longer than any usual step; at `stuck_s` the scheduler declares the GPU lost
STUCK_MS = int(Sessions().stuck_s * 1000)
SAID_CHARS = 160
STRAINED = 20  # GPUs whose lowered slots are looked up


class Loss(NamedTuple):
    """A GPU that was declared lost, and when it joined again, if it did."""

    gpu: str
    at_ms: int
    silent_ms: int
    back_ms: int | None

    @property
    def node(self) -> str:
        return self.gpu.rpartition("-")[0]


Beaten = Mapping[str, e.Recorded]
"""The last heartbeat of each GPU."""


# -- GPUs


async def gpus(connection: Connection, now_ms: int, hand_ms: int) -> list[Check]:
    """Return the findings about GPUs; `hand_ms` is when the newest beat was stored. Raises Unavailable."""
    lost = await recent(connection, "LOG", "gpu.*.lost", now_ms - HOUR_MS, now_ms)
    beaten = await heartbeats(connection, hand_ms)
    quiet = sorted(gpu for gpu, record in beaten.items() if hand_ms - record.at_ms > SILENT_MS)
    names = sorted({each.event.gpu for each in lost.records if isinstance(each.event, e.GpuLost)})
    wanted = {f"gpu.{gpu}.joined" for gpu in (*names, *quiet)}
    wanted |= {f"gpu.{gpu}.{end}" for gpu in quiet for end in ("left", "lost")}
    facts = await last(connection, "LOG", sorted(wanted))
    return [
        judge_lost(losses(lost, "silent", facts), beaten, lost.more),
        judge_stuck(losses(lost, "stuck", facts), beaten, hand_ms),
        judge_silent({gpu: beaten[gpu] for gpu in quiet}, facts, hand_ms),
    ]


def losses(lost: Recent, reason: e.LossReason, facts: Mapping[str, e.Recorded]) -> list[Loss]:
    """Return those of `lost` for that reason; `facts` tell by subject who joined last."""
    found = []
    for record in lost.records:
        if isinstance(record.event, e.GpuLost) and record.event.reason == reason:
            joined = facts.get(f"gpu.{record.event.gpu}.joined")
            back_ms = joined.at_ms if joined is not None and joined.seq > record.seq else None
            found.append(Loss(record.event.gpu, record.at_ms, record.event.silent_ms, back_ms))
    return found


def judge_lost(lost: Sequence[Loss], beaten: Beaten, more: int = 0) -> Check:
    """Name who was lost; GPUs of a node that went at once are the node, if none of its others went on."""
    if not lost:
        return ok("lost", "no GPU fell silent in the last hour")
    said = list(_together(lost, beaten))
    number = len({loss.gpu for loss in lost})
    found = f"{_count(number, 'GPU')} lost in the last hour: {_some(said)}{_unread(more)}"
    if all(loss.back_ms is not None for loss in lost):
        return warn(
            "lost", found, "all came back: nothing to do if they were restarted; else see their runners' logs"
        )
    return warn(
        "lost", found, "see the machine and the log of each runner that did not come back; start it again"
    )


def _together(lost: Sequence[Loss], beaten: Beaten) -> Iterator[str]:
    """Yield what to say of each node or GPU, the newest first."""
    groups: list[list[Loss]] = []
    open_groups: dict[str, list[Loss]] = {}
    for loss in lost:
        group = open_groups.get(loss.node)
        if group is None or loss.at_ms - group[0].at_ms > AT_ONCE_MS:
            group = open_groups[loss.node] = []
            groups.append(group)
        group.append(loss)
    for group in reversed(groups):
        if _whole_node(group, beaten):
            back = [loss.back_ms for loss in group if loss.back_ms is not None]
            came = f"; {len(back)} came back {clock(max(back))}" if back else ""
            yield f"node {group[0].node} ({len(group)} GPUs at once, {clock(group[0].at_ms)}{came})"
            continue
        for loss in group:
            came = f"; came back {clock(loss.back_ms)}" if loss.back_ms is not None else ""
            yield f"{loss.gpu} (silent {loss.silent_ms / 1000:.1f} s, {clock(loss.at_ms)}{came})"


def _whole_node(group: Sequence[Loss], beaten: Beaten) -> bool:
    gone = {loss.gpu for loss in group}
    others = (gpu for gpu in beaten if gpu.rpartition("-")[0] == group[0].node and gpu not in gone)
    return len(gone) > 1 and not any(beaten[gpu].at_ms > group[-1].at_ms for gpu in others)


def judge_stuck(past: Sequence[Loss], beaten: Beaten, hand_ms: int) -> Check:
    """Look for GPUs whose heartbeats go on while their turns do not: now by their own word, before by the log's."""
    stalled = []
    for gpu, record in sorted(beaten.items()):
        beat = record.event
        alive = hand_ms - record.at_ms <= SILENT_MS
        if isinstance(beat, e.GpuHeartbeat) and alive and beat.stalled_ms >= STALLED_MS:
            stalled.append((beat.stalled_ms, f"{gpu} (nothing moved for {beat.stalled_ms / 1000:.0f} s)"))
    if stalled:
        found = (
            f"{_count(len(stalled), 'GPU')} alive, but no turn moves: {_some([said for _, said in stalled])}"
        )
        if max(stalled)[0] >= STUCK_MS:
            return fails(
                "stuck", found, "restart that runner; see [sessions] stuck_s, after which it counts as lost"
            )
        return warn(
            "stuck",
            found,
            f"wait: after {STUCK_MS // 1000} s ([sessions] stuck_s) the turns go to another GPU",
        )
    if past:
        said = [
            f"{loss.gpu} (stood still for {loss.silent_ms / 1000:.0f} s, {clock(loss.at_ms)})"
            for loss in past
        ]
        advice = "its turns went to other GPUs; see the log of its runner from before that time"
        return warn("stuck", f"{_count(len(past), 'time')} in the last hour: {_some(said[::-1])}", advice)
    return ok("stuck", "the turns of all GPUs move")


def judge_silent(quiet: Beaten, facts: Mapping[str, e.Recorded], hand_ms: int) -> Check:
    """Look for GPUs that are silent now and that nobody has declared lost."""
    said = []
    for gpu, record in quiet.items():
        joined = facts.get(f"gpu.{gpu}.joined")
        ends = [facts[subject].seq for end in ("left", "lost") if (subject := f"gpu.{gpu}.{end}") in facts]
        if joined is None or not isinstance(joined.event, e.GpuJoined) or max(ends, default=0) > joined.seq:
            continue
        silent_ms = hand_ms - max(record.at_ms, joined.at_ms)
        if silent_ms > max(SILENT_MS, joined.event.silence_ms):
            said.append(f"{gpu} ({silent_ms / 1000:.0f} s)")
    if said:
        return fails(
            "silent",
            f"silent, and not declared lost: {_some(said)}",
            "a scheduler must act to do that; see its log",
        )
    return ok("silent", "no GPU is silent unnoticed")


# -- turns


async def turns(connection: Connection, now_ms: int) -> list[Check]:
    """Return the findings about turns that were given back or given up. Raises Unavailable."""
    since_ms = now_ms - HOUR_MS
    returned = await recent(connection, "LOG", "session.*.turn.returned.*", since_ms, now_ms)
    failed = await recent(connection, "LOG", "session.*.turn.failed.none", since_ms, now_ms)
    strained = list(dict.fromkeys(event.gpu for _, event in _returned(returned) if _is_memory(event)))
    assigned: list[e.Recorded] = []
    for gpu in strained[-STRAINED:]:
        assigned += (await recent(connection, "LOG", f"gpu.{gpu}.assigned", since_ms, now_ms)).records
    return [
        judge_memory(returned, assigned),
        judge_returned(returned),
        judge_poison(failed),
        judge_deadlines(failed),
    ]


def _returned(found: Recent) -> Iterator[tuple[e.Recorded, e.TurnReturned]]:
    for record in found.records:
        if isinstance(record.event, e.TurnReturned):
            yield record, record.event


def _failed(found: Recent) -> Iterator[tuple[e.Recorded, e.TurnFailed]]:
    for record in found.records:
        if isinstance(record.event, e.TurnFailed):
            yield record, record.event


def _is_memory(event: e.TurnReturned) -> bool:
    return event.error.code == "out_of_memory"


def judge_memory(found: Recent, assigned: Iterable[e.Recorded]) -> Check:
    """Name the GPUs whose memory ran out, and how far their slots were lowered for it."""
    short = [(record, event) for record, event in _returned(found) if _is_memory(event)]
    if not short:
        return ok("memory", "no turn ran out of memory in the last hour")
    lowered: dict[str, list[str]] = {}
    since = {event.gpu: record.seq for record, event in reversed(short)}
    for record in assigned:
        event = record.event
        if (
            isinstance(event, e.GpuAssigned)
            and event.reason.startswith("coefficient ")
            and record.seq > since[event.gpu]
        ):
            lowered.setdefault(event.gpu, []).append(
                f"{event.model} {event.reason.removeprefix('coefficient ')}"
            )
    times = Counter(event.gpu for _, event in short)
    newest = {event.gpu: record.at_ms for record, event in short}
    said = [
        f"{gpu} ({_count(count, 'turn')}, lastly {clock(newest[gpu])}"
        + (f"; slots of {', '.join(lowered[gpu])}" if gpu in lowered else "")
        + ")"
        for gpu, count in times.most_common()
    ]
    found_ = f"out of memory in the last hour: {_some(said)}{_unread(found.more)}"
    advice = "the turns went on elsewhere; lower that kind and model in [coefficients], see 'helix models --explain'"
    return warn("memory", found_, advice)


def judge_returned(found: Recent) -> Check:
    """Name the GPUs that gave turns back for other reasons."""
    times: Counter[tuple[str, str]] = Counter()
    for _, event in _returned(found):
        if not _is_memory(event):
            times[event.gpu, event.error.code] += 1
    if not times:
        return ok("returned", "no GPU gave a turn back in the last hour")
    said = [f"{gpu} ({_count(count, 'turn')}, {code})" for (gpu, code), count in times.most_common()]
    found_ = f"given back in the last hour: {_some(said)}{_unread(found.more)}"
    return warn("returned", found_, "the turns went to other GPUs; see the logs of these runners")


def judge_poison(found: Recent) -> Check:
    """Name the turns that were given up after too many GPUs."""
    said = [
        f"{event.session} turn {event.turn} ({clock(record.at_ms)}, {event.error.code}: {_short(event.error.message)})"
        for record, event in _failed(found)
        if event.error.code != "wait_exceeded"
    ]
    if not said:
        return ok("poison", "no turn was given up in the last hour")
    advice = "look at what these turns ask for, and at the logs of the GPUs named; [scheduling] attempts is the limit"
    return warn(
        "poison", f"{_count(len(said), 'turn')} given up: {_some(said[::-1])}{_unread(found.more)}", advice
    )


def judge_deadlines(found: Recent) -> Check:
    """Count the turns that would not wait any longer."""
    late = [record for record, event in _failed(found) if event.error.code == "wait_exceeded"]
    if not late:
        return ok("deadlines", "no turn waited longer than it would in the last hour")
    found_ = (
        f"{_count(len(late), 'turn')} waited in vain, lastly {clock(late[-1].at_ms)}{_unread(found.more)}"
    )
    return warn("deadlines", found_, "more GPUs for that model or a longer max_wait_s; see 'helix queue'")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _some(said: Sequence[str]) -> str:
    left = len(said) - SHOWN
    return ", ".join(said[:SHOWN]) + (f" and {left} more" if left > 0 else "")


def _unread(more: int) -> str:
    return f"; {more} older ones were not read" if more else ""


def _short(text: str) -> str:
    return text if len(text) <= SAID_CHARS else text[: SAID_CHARS - 1] + "…"
