"""A sweep: one set of arrivals under every combination of rules and fleets, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.axis import Axis, Point, altered
from helix_projections.simulation.crew import Crew, Told
from helix_projections.simulation.offer import Offer
from helix_projections.simulation.outcome import Outcome, percentile
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.shop import simulate
from helix_projections.simulation.target import Target

Simulate = Callable[[Scenario, Iterable[Arrival]], Outcome]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: what stays the same, what is varied, and what is to be measured."""

    base: Scenario
    axes: tuple[Axis, ...] = ()
    makes: dict[str, list[Offer]] = {}
    """GPU kind -> such GPUs, for the kinds whose number is on an axis."""
    within_ms: int = 1_500
    """The first token within it counts as good."""
    targets: tuple[Target, ...] = ()
    samples: int = 1
    """Of a thinned trace: how many of its parts are simulated, each on its own, and pooled."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One point and what was measured there."""

    point: Point
    measures: dict[str, float | None]


def crew(question: Question, arrivals: Sequence[Arrival], processes: int) -> Crew[Point, Answer]:
    """Return processes that answer points of `question`; the arrivals are sent to each once."""
    packed = msgspec.msgpack.encode(arrivals)
    return Crew(partial(_opened, question, packed), processes)


def sweep(
    question: Question, arrivals: Sequence[Arrival], at: Sequence[Point], *, processes: int, told: Told
) -> list[Answer]:
    """Return an answer for each point, in their order. Raises SimulationFailed."""
    with crew(question, arrivals, processes) as hired:
        return hired.run(at, told)


def _opened(question: Question, packed: bytes) -> Callable[[Point], Answer]:
    """Return what answers a point; called once in each process."""
    return partial(answer, question, msgspec.msgpack.decode(packed, type=list[Arrival]))


def answer(question: Question, arrivals: Sequence[Arrival], point: Point, run: Simulate = simulate) -> Answer:
    """Return what is measured at `point`."""
    scenario = altered(question.base, question.axes, point, question.makes)
    time_scale, thin = point.get("time_scale", 1.0), int(point.get("thin", 1))
    outcome = pooled(
        [
            run(scenario, spaced(arrivals, time_scale, thin, part))
            for part in range(min(question.samples, thin))
        ]
    )
    found = outcome.measures(question.within_ms)
    for target in question.targets:
        if target.measure not in found:
            found[target.measure] = measured(outcome, target)
    return Answer(point=point, measures=found)


def measured(outcome: Outcome, target: Target) -> float | None:
    """Return what `target` speaks of, where it is not among the usual measures: a share, or a rarer percentile."""
    if target.within_ms is not None:
        return outcome.share(target.turns, target.quantity, target.within_ms)
    mode = "finetune" if target.quantity == "finetune_start" else "create"
    measure = "start" if target.quantity == "finetune_start" else target.quantity
    some = [
        each.took_ms(measure)
        for each in outcome.turns
        if each.workload.mode == mode
        and each.workload.type == "text"
        and (target.turns == "all" or (each.turn > 1) == (target.turns == "continued"))
    ]
    ordered = sorted(float("inf") if ms is None else float(ms) for ms in some)
    found = percentile(ordered, float(target.statistic.removeprefix("p")))
    return None if found == float("inf") else found


def pooled(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcomes of shops that know nothing of each other as one: their turns, and the sums of the rest."""
    first = outcomes[0]
    if len(outcomes) == 1:
        return first

    def total(name: str) -> int:
        return sum(getattr(each, name) for each in outcomes)

    return Outcome(
        turns=[turn for each in outcomes for turn in each.turns],
        begun_ms=0,
        ended_ms=sum(each.ended_ms - each.begun_ms for each in outcomes),
        **{
            name: total(name)
            for name in first.__struct_fields__
            if name not in ("turns", "begun_ms", "ended_ms")
        },
    )


def spaced(arrivals: Sequence[Arrival], time_scale: float, thin: int, part: int = 0) -> Iterable[Arrival]:
    """Return one session in `thin` of them, with the times of arrival multiplied; `part`: beginning with which.

    Thinning leaves the pauses within a conversation as they were; stretching time makes them longer. Jobs of batch work
    are left as they are by both: they have a load of their own.
    """
    if thin > 1:
        numbers: dict[str, int] = {}
        kept = []
        for each in arrivals:
            if _batch(each) or numbers.setdefault(each.session, len(numbers)) % thin == part:
                kept.append(each)
        arrivals = kept
    if time_scale != 1.0:
        arrivals = [
            each if _batch(each) else replace(each, at_ms=round(each.at_ms * time_scale)) for each in arrivals
        ]
        arrivals.sort(key=lambda each: each.at_ms)
    return arrivals


def _batch(arrival: Arrival) -> bool:
    return arrival.workload is not None and arrival.workload.mode == "finetune"
