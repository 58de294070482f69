"""A recorded log as arrivals, GPUs and rules to simulate, and as the outcome that it had."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import msgspec

from helix_es.archive import Archive
from helix_es.core import events as e
from helix_es.core.errors import Unreadable
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.heard import Heard, Said
from helix_projections.simulation.listener import hear
from helix_projections.simulation.offer import Offer
from helix_projections.simulation.outcome import Outcome, Turn

PRIOR_TOKENS = 100  # of an answer, where the log has none to take the median of


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """What a log says of a shop. Times in it count from the log's first record, ms."""

    arrivals: list[Arrival]
    """By time. Each turn after a session's first is said as long after the answer before it as it was (closed loop)."""
    offers: list[Offer]
    """Every GPU that ever joined, as it joined first; it stays."""
    policy: e.Policy
    """The last that was set."""
    policies: int
    """How many were set: where it is more than one, the log went by others for a while."""
    losses: int
    """GPUs that were lost or left in the log: they are not simulated."""
    left_out: int
    """Turns that somebody cancelled, closed or saw fail before the first token: neither among the arrivals nor in the
    outcome, since the log does not say how long they would have been. Fine-tunes: before they were started."""
    gave_up: int
    """Of these: turns that would rather fail than wait on."""
    guessed: int
    """Turns that were open when the log ended: they are as long as the median of those of their workload that ended."""
    begun_ms: int
    """Timestamp of the log's first record, Unix ms."""
    outcome: Outcome
    """As it was."""


async def recorded(archive: Archive) -> Recording:
    """Return what `archive` has. Raises Unreadable, also for a log without a single turn; Unavailable."""
    return recording_of(await hear(archive), archive.name)


def recording_of(heard: Heard, name: str) -> Recording:
    """Return what was heard. Raises Unreadable for a log without a single turn that can be simulated."""
    if not heard.turns or heard.begun_ms is None:
        raise Unreadable(
            f"{name}: nobody said anything in it; give the log of a shop that has served somebody"
        )
    kept, left_out = _kept(heard.turns)
    if not kept:
        raise Unreadable(
            f"{name}: every turn in it was cancelled or failed before its first token; "
            "give the log of a shop that has served somebody"
        )
    sizes = Sizes(kept)
    return Recording(
        arrivals=_arrivals(heard, kept, sizes),
        offers=list(heard.offers.values()),
        policy=heard.policies[-1] if heard.policies else e.Policy(),
        policies=len(heard.policies),
        losses=heard.losses,
        left_out=len(left_out),
        gave_up=sum(
            isinstance(said.end, e.TurnFailed) and said.end.error.code == "wait_exceeded" for said in left_out
        ),
        guessed=sum(said.ended_ms is None for _, said in kept),
        begun_ms=heard.begun_ms,
        outcome=_outcome(heard, kept, sizes),
    )


Kept = list[tuple[int, Said]]
"""Turns in the order in which they were said, each with its number among those of its session that are kept."""


def _kept(turns: Iterable[Said]) -> tuple[Kept, list[Said]]:
    """Return the turns that both can tell, the log and a simulation, and those that are left out of both.

    A turn that ended before its first token has no time to the first token in the log, and would have one if it were
    simulated. A fine-tune has no tokens: of one that was cancelled while it ran the log tells how much was computed.
    """
    numbers: dict[str, int] = {}
    kept: Kept = []
    left_out = []
    for said in turns:
        if said.ended_ms is not None and not isinstance(said.end, e.TurnCompleted) and not _stopped(said):
            left_out.append(said)
        else:
            number = numbers[said.session] = numbers.get(said.session, 0) + 1
            kept.append((number, said))
    return kept, left_out


class Sizes:
    """How long turns are: as the log says, or like the others of their workload."""

    def __init__(self, turns: Kept) -> None:
        usages: dict[e.Workload, list[e.Usage]] = {}
        works: dict[e.Workload, list[float]] = {}
        for _, said in turns:
            if isinstance(said.end, e.TurnCompleted):
                usages.setdefault(said.workload, []).append(said.end.usage)
                works.setdefault(said.workload, []).append(said.work_ms)
        self._tokens = {
            work: e.Usage(
                prompt_tokens=round(statistics.median(each.prompt_tokens for each in found)),
                completion_tokens=round(statistics.median(each.completion_tokens for each in found)),
            )
            for work, found in usages.items()
        }
        self._work_ms = {work: statistics.median(found) for work, found in works.items()}

    def usage(self, said: Said) -> e.Usage:
        """Return its tokens."""
        if isinstance(said.end, e.TurnCompleted) or _stopped(said):
            return said.end.usage  # type: ignore[union-attr]
        return self._tokens.get(said.workload, e.Usage(completion_tokens=PRIOR_TOKENS))

    def work_ms(self, said: Said) -> int:
        """Return the work of a fine-tune or picture; 0 for what has tokens."""
        if said.workload.mode == "create" and said.workload.type == "text":
            return 0
        known = isinstance(said.end, e.TurnCompleted) or _stopped(said)
        work_ms = said.work_ms if known else self._work_ms.get(said.workload, said.work_ms)
        return max(1, round(work_ms))


def _stopped(said: Said) -> bool:
    """Whether it was cancelled while it ran: it was as long as that."""
    if not isinstance(said.end, e.TurnCancelled):
        return False
    return bool(said.runs) if said.workload.mode == "finetune" else said.end.first_token_ms is not None


def _arrivals(heard: Heard, kept: Kept, sizes: Sizes) -> list[Arrival]:
    before: dict[str, Said] = {}
    found = []
    last = {said.session: said for _, said in kept}
    for number, said in kept:
        prior = before.get(said.session)
        before[said.session] = said
        usage = sizes.usage(said)
        think_ms = None
        if prior is not None:
            think_ms = max(0, said.said_ms - (said.said_ms if prior.ended_ms is None else prior.ended_ms))
        found.append(
            Arrival(
                at_ms=said.said_ms - (heard.begun_ms or 0),
                session=said.session,
                turn=number,
                prompt_tokens=usage.prompt_tokens,
                output_tokens=max(1, usage.completion_tokens),
                known_tokens=_known(sizes, prior, usage),
                work_ms=sizes.work_ms(said),
                workload=said.workload,
                owner=said.owner,
                priority=said.priority,
                max_wait_ms=said.max_wait_ms,
                think_ms=think_ms,
                closes_ms=_closes_ms(heard, said) if last[said.session] is said else None,
            )
        )
    return found


def _known(sizes: Sizes, prior: Said | None, usage: e.Usage) -> int:
    """Return what of the prompt the GPU that answered the turn before still has."""
    if prior is None:
        return 0
    held = sizes.usage(prior)
    return min(usage.prompt_tokens, max(usage.cached_tokens, held.prompt_tokens + held.completion_tokens))


def _closes_ms(heard: Heard, said: Said) -> int | None:
    closed_ms = heard.closed_ms.get(said.session)
    return None if closed_ms is None or said.ended_ms is None else max(0, closed_ms - said.ended_ms)


def _outcome(heard: Heard, kept: Kept, sizes: Sizes) -> Outcome:
    begun_ms = heard.begun_ms or 0
    totals = heard.meter.totals()
    ended = sorted(
        (each for each in kept if each[1].ended_ms is not None), key=lambda each: each[1].ended_ms or 0
    )
    unended = [each for each in kept if each[1].ended_ms is None]
    return Outcome(
        turns=[_turn(number, said, sizes, begun_ms) for number, said in [*ended, *unended]],
        begun_ms=0,
        ended_ms=max(0, heard.meter.marked_ms - begun_ms),
        present_ms=totals.present,
        busy_ms=totals.busy,
        offered_ms=totals.offered,
        held_ms=totals.held,
        preempted=heard.preempted,
        released=heard.released,
    )


def _turn(number: int, said: Said, sizes: Sizes, begun_ms: int) -> Turn:
    """Return the turn as the simulation would tell it."""
    first_token_ms = None
    end = said.end
    if isinstance(end, e.TurnCompleted | e.TurnCancelled) and said.ended_ms is not None and said.runs:
        if said.workload.mode == "finetune" or end.first_token_ms is None:
            first_token_ms = said.ended_ms if isinstance(end, e.TurnCompleted) else None
        elif isinstance(end, e.TurnCompleted):
            first_token_ms = max(said.said_ms, said.ended_ms - end.total_ms + end.first_token_ms)
        else:  # its whole length is not told
            first_token_ms = min(said.ended_ms, said.runs[-1].started_ms + end.first_token_ms)
    usage = sizes.usage(said)
    return Turn(
        session=said.session,
        turn=number,
        owner=said.owner,
        workload=said.workload,
        straight=said.straight,
        said_ms=said.said_ms - begun_ms,
        admitted_ms=None if said.admitted_ms is None else said.admitted_ms - begun_ms,
        started_ms=said.runs[0].started_ms - begun_ms if said.runs else None,
        first_token_ms=None if first_token_ms is None else first_token_ms - begun_ms,
        ended_ms=None if said.ended_ms is None else said.ended_ms - begun_ms,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=max(1, usage.completion_tokens),
        attempts=len(said.runs),
    )
