"""The figures of a run, from its log, the schedulers' beats and what was done to the processes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from helix_es.core import events as e
from tests.chaos.failover import BOTH_MS, Failover, by_cause, failovers
from tests.chaos.lives import Lives, Requeued, TurnLife
from tests.chaos.proof import Proof
from tests.chaos.spread import Spread, spread
from tests.chaos.told import SIMULATED, Run, Strike

NEAR = 0.3
"""An estimate within 30 % of the wait was good; so was one within a second."""
NEAR_MS = 1000
NOTICED_MS = 6000
"""After a runner is back, so late its loss may still be noticed: three heartbeats, and a broker's election."""


class Figures(msgspec.Struct, kw_only=True):
    """All of them."""

    records: int
    sessions: int
    turns: int
    acknowledged: int
    ends: dict[str, int]
    failures: dict[str, int]
    seconds: float
    strikes: dict[str, int]
    postponed: int
    requeued: dict[str, int]
    attempts: dict[int, int]
    """Attempts that a turn took -> turns."""
    gpus_lost: dict[str, int]
    assignments: int
    stale_starts: int
    followed: int
    resumes: int
    resumed_streams: int
    silences: int
    unheard: list[str]
    refusals: dict[str, int]
    own_endings: dict[str, int]
    """Processes that ended and nobody had killed them."""
    waits_ms: dict[str, Spread]
    """At the door, by workload."""
    owners_ms: dict[str, Spread]
    """At the door, by owner, chats of the model that all want."""
    estimates_near: float | None
    """Share of the estimates that were good."""
    recovery_ms: dict[str, Spread]
    """From a strike at a runner to its running turns running again elsewhere, or over."""
    dispatch_ms: Spread
    """From admission (or the next thing said to the GPU that holds the session) to the start of that attempt."""
    failover_ms: dict[str, Spread]
    """From the last beat of the scheduler that acted to the first of the next, by what had been struck."""
    failovers: list[Failover]
    overlaps: int
    """Times that the beats of two schedulers that both acted followed one another: harmless, by the fences."""
    below_s: float
    """How long fewer GPUs than reserved were kept, in all."""
    below: int
    """Times that it happened."""
    most_held: int
    """Sessions that one GPU ever held."""


def figures(run: Run, records: Sequence[e.Recorded], beats: Sequence[e.Recorded], proof: Proof) -> Figures:
    """Return the figures."""
    lives, slots, told = proof.lives, proof.slots, run.told
    turns = [turn for life in lives.sessions.values() for turn in life.turns]
    end_ms = records[-1].at_ms if records else 0
    followed = [each for each in told.streams if each.followed]
    changes = failovers(beats, run.strikes)
    return Figures(
        records=len(records),
        sessions=len(lives.sessions),
        turns=len(turns),
        acknowledged=len({(ack.session, ack.turn) for ack in told.acks}),
        ends=_count(turn.end or "open" for turn in turns),
        failures=_count(turn.error for turn in turns if turn.error),
        seconds=round((run.ended_ms - run.began_ms) / 1000, 1),
        strikes=_count(f"{each.action} {each.kind}{each.role and f' ({each.role})'}" for each in run.strikes),
        postponed=run.postponed,
        requeued=_count(each.reason for turn in turns for each in turn.requeued),
        attempts=dict(sorted(Counter(turn.attempt for turn in turns).items())),
        gpus_lost=_count(r.event.reason for r in records if isinstance(r.event, e.GpuLost)),
        assignments=slots.assignments,
        stale_starts=slots.stale_starts,
        followed=len(followed),
        resumes=sum(each.resumes for each in followed),
        resumed_streams=sum(each.resumes > 0 for each in followed),
        silences=told.silences,
        unheard=told.unheard,
        refusals=dict(sorted(told.refusals.items())),
        own_endings=_count(each.process for each in run.endings),
        waits_ms=_waits(lives, turns),
        owners_ms=_owners(lives, turns),
        estimates_near=_near(turns),
        recovery_ms=_recoveries(run.strikes, turns),
        dispatch_ms=spread(each for turn in turns for each in turn.dispatch_ms),
        failover_ms=by_cause(changes),
        failovers=[each for each in changes if each.gap_ms >= BOTH_MS],
        overlaps=sum(each.gap_ms < BOTH_MS for each in changes),
        below_s=round(sum((each.until_ms or end_ms) - each.since_ms for each in slots.below) / 1000, 1),
        below=len(slots.below),
        most_held=max((card.most for card in slots.cards.values()), default=0),
    )


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


# -- waits


def _waited(turn: TurnLife) -> int | None:
    return turn.admitted[0].waited_ms if turn.admitted and not turn.continued else None


def _waits(lives: Lives, turns: Sequence[TurnLife]) -> dict[str, Spread]:
    found: dict[str, list[int]] = defaultdict(list)
    for turn in turns:
        created, waited = lives.sessions[turn.session].created, _waited(turn)
        if created is not None and waited is not None:
            found[f"{created.mode} {created.model}"].append(waited)
    return {name: spread(waits) for name, waits in sorted(found.items())}


def _owners(lives: Lives, turns: Sequence[TurnLife]) -> dict[str, Spread]:
    found: dict[str, list[int]] = defaultdict(list)
    for turn in turns:
        created, waited = lives.sessions[turn.session].created, _waited(turn)
        if created is not None and waited is not None and (created.mode, created.type) == ("create", "text"):
            found[created.owner].append(waited)
    return {name: spread(waits) for name, waits in sorted(found.items())}


def _near(turns: Sequence[TurnLife]) -> float | None:
    """Return the share of good estimates, among turns that waited, or were told that they would."""
    near = []
    for turn in turns:
        waited = _waited(turn)
        told = turn.admitted[0].estimated_ms if turn.admitted else None
        if waited is None or told is None or max(waited, told) < NEAR_MS:
            continue
        near.append(abs(told - waited) <= max(NEAR_MS, NEAR * waited))
    return round(sum(near) / len(near), 2) if near else None


# -- how long until it goes on


def _recoveries(strikes: Sequence[Strike], turns: Sequence[TurnLife]) -> dict[str, Spread]:
    found: dict[str, list[int]] = defaultdict(list)
    for turn in turns:
        for back in turn.requeued:
            strike = _guilty(strikes, back) if back.reason in ("lost", "restarted") else None
            again = next((each for each in turn.started if each.at_ms > back.at_ms), None)
            if strike is not None and again is not None:
                since_ms = max(
                    strike.at_ms, turn.queued_ms
                )  # it may have been said to a GPU that was dead already
                found[f"{strike.action} {strike.kind}"].append(again.at_ms - since_ms)
    return {name: spread(values) for name, values in sorted(found.items())}


def _guilty(strikes: Sequence[Strike], back: Requeued) -> Strike | None:
    """Return the last strike at the process of the GPU that a turn was taken from."""
    near = [
        each
        for each in strikes
        if each.at_ms <= back.at_ms <= (each.back_ms or back.at_ms) + NOTICED_MS
        and back.gpu.startswith(_gpus(each))
    ]
    return near[-1] if near else None


def _gpus(strike: Strike) -> str:
    """Return how the names of a process's GPUs begin; a space, where it has none."""
    if strike.kind == "simulated":
        return f"{SIMULATED}{strike.process[-1]}-"
    return strike.process if strike.kind == "real" else " "
