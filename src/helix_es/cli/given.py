"""What a what-if stands on: the arrivals of a trace or a log, the fleet and the rules, and how long GPUs take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from msgspec.structs import replace

from helix_es.cli.asked import Asked
from helix_es.cli.headings import fleet, rules, times
from helix_es.cli.timing import Timing, heard_in, timing_of
from helix_es.core import events as e
from helix_es.core.capacity import known_slots
from helix_es.core.errors import Misconfigured, Unreadable
from helix_es.core.hardware import KNOWN_GPUS
from helix_es.settings import Settings, read
from helix_projections.simulation.answerable import check_reserved, check_targets, reserved_note
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.axis import Axis
from helix_projections.simulation.offer import Offer
from helix_projections.simulation.recorded import Recording, recording_of
from helix_projections.simulation.scenario import Scenario
from helix_projections.simulation.sweep import Question
from helix_projections.simulation.table import About, short_ms
from helix_projections.simulation.target import Measures, Target
from helix_projections.simulation.traces import merged, read_trace

BATCH_NOTE = "batch jobs were trainings of any kind: each of their GPUs is one fine-tune of its duration here"
SETTLE_MS = 5_000  # after the weights are loaded: the floor is ready when a trace begins


class Case(NamedTuple):
    """Everything that is needed to answer, and what is said above the answers."""

    question: Question
    arrivals: list[Arrival]
    about: About
    was: Measures | None


async def case_of(options: dict[str, Any], asked: Asked, targets: tuple[Target, ...]) -> Case:
    """Return the case that the options describe. Raises Misconfigured, Unreadable, Unavailable."""
    settings = read(options["config"])
    _check_coefficients(asked.axes, settings)
    if options["trace"] is not None:
        return _of_trace(options, asked, settings, (targets, await timing_of(options, asked, None)))
    heard, name = await heard_in(options["log_name"], options)
    return _of_log(
        recording_of(heard, name), asked, options, (targets, await timing_of(options, asked, heard))
    )


def _check_coefficients(axes: Sequence[Axis], settings: Settings) -> None:
    for axis in axes:
        model = axis.of.rpartition("/")[2]
        if axis.setting == "coefficient" and model not in settings.models:
            raise Misconfigured(
                f"--coefficient {axis.of}: the models are {', '.join(sorted(settings.models))}"
            )


# -- a trace


def _of_trace(
    options: dict[str, Any], asked: Asked, settings: Settings, stands: tuple[tuple[Target, ...], Timing]
) -> Case:
    targets, timing = stands
    workload = _workload(options["model"], settings)
    training = e.Workload("finetune", workload.type, workload.model)
    arrivals = list(read_trace(options["trace"], until_ms=asked.until_ms, batch=training))
    source = _source(options["trace"].name, arrivals)
    batch = options["batch"] is not None
    if batch:
        last_ms = max((each.at_ms for each in arrivals), default=0)
        jobs = list(read_trace(options["batch"], until_ms=last_ms + 1, batch=training))
        source += f"; beside it {_source(options['batch'].name, jobs)}"
        arrivals = list(merged(arrivals, jobs))
    trains = batch or any(axis.setting == "reserved" and max(axis.values) > 0 for axis in asked.axes)
    trains = trains or any(
        each.workload is not None and each.workload.mode == "finetune" for each in arrivals
    )
    kinds = [axis.of for axis in asked.axes if axis.setting == "gpus"]
    makes = {kind: [_make(kind, workload, (settings, asked.axes), trains)] for kind in kinds}
    service_ms = max([timing.service.load_ms, *(each.load_ms for each in timing.services.values())])
    base = Scenario(
        policy=replace(settings.policy, pools={}),
        offers=[],
        service=timing.service,
        services=timing.services,
        workload=workload,
        owners=options["owners"],
        open_ms=service_ms + SETTLE_MS,
        decide_ms=timing.decide_ms,
        start_ms=timing.start_ms,
    )
    about = About(
        source=source,
        times=times(asked, closed=False),
        fleet=fleet(asked.axes, []) + (", all of which can train" if trains else ""),
        rules=rules(base.policy, asked.axes, makes, options["owners"]),
        service=timing.lines,
        notes=(BATCH_NOTE,) if batch else (),
    )
    return _checked(
        Case(_question(base, asked, makes, targets), arrivals, about, None), options["trace"].name
    )


def _workload(model: str, settings: Settings) -> e.Workload:
    if model not in settings.models or settings.models[model].type != "text":
        there = ", ".join(sorted(slug for slug, each in settings.models.items() if each.type == "text"))
        raise Misconfigured(f"--model {model}: must be one of {there}")
    return e.Workload("create", "text", model)


def _make(kind: str, workload: e.Workload, given: tuple[Settings, Sequence[Axis]], trains: bool) -> Offer:
    """Return one GPU of `kind`, with the coefficient that follows from its memory where nothing else says one."""
    settings, axes = given
    model = workload.model
    slots = known_slots(settings.models[model], kind)
    said = f"{kind}/{model}" in settings.coefficients
    said = said or any(
        axis.setting == "coefficient" and axis.of in (model, f"{kind}/{model}") for axis in axes
    )
    if not slots and not said:
        why = "does not fit" if slots == 0 else f"known are {', '.join(sorted(KNOWN_GPUS))}"
        raise Misconfigured(f"{model} on {kind}: {why}; say its coefficient, --coefficient {kind}/{model}=N")
    known = KNOWN_GPUS.get(kind)
    workloads = [workload, e.Workload("finetune", workload.type, model)] if trains else [workload]
    return Offer(
        gpu=e.GpuId(f"{kind}-0"),
        kind=kind,
        workloads=workloads,
        slots={model: slots or 1},
        memory_total_bytes=known.memory_bytes if known else 80 << 30,
    )


def _source(name: str, arrivals: Sequence[Arrival]) -> str:
    if not arrivals:
        raise Unreadable(f"{name}: nothing arrives in it; give another trace, or a longer --until")
    jobs = sum(each.workload is not None and each.workload.mode == "finetune" for each in arrivals)
    turns = len(arrivals) - jobs
    sessions = len({each.session for each in arrivals})
    lasts = short_ms(arrivals[-1].at_ms - arrivals[0].at_ms)
    parts = [f"{turns:,} turns of {sessions - jobs:,} sessions"] if turns else []
    parts += [f"{jobs:,} batch jobs"] if jobs else []
    return f"{name}: {' and '.join(parts)} in {lasts}"


# -- a log


def _of_log(
    recording: Recording, asked: Asked, options: dict[str, Any], stands: tuple[tuple[Target, ...], Timing]
) -> Case:
    targets, timing = stands
    for option in ("batch", "until", "owners"):
        if options[option]:
            raise Misconfigured(f"--{option} goes with --trace; a log says that itself")
    arrivals = recording.arrivals
    makes: dict[str, list[Offer]] = {}
    for offer in recording.offers:
        makes.setdefault(offer.kind, []).append(replace(offer, join_ms=0))
    for axis in asked.axes:
        if axis.setting == "gpus" and axis.of not in makes:
            raise Misconfigured(
                f"--gpus {axis.of}: the log has no such GPU; it has {', '.join(sorted(makes))}"
            )
    base = Scenario(
        policy=replace(recording.policy, pools={}),
        offers=recording.offers,
        service=timing.service,
        services=timing.services,
        decide_ms=timing.decide_ms,
        start_ms=timing.start_ms,
    )
    about = About(
        source=_source(options["log_name"], arrivals),
        times=times(asked, closed=True),
        fleet=fleet(asked.axes, recording.offers),
        rules=rules(recording.policy, asked.axes, {}, None),
        service=timing.lines,
        notes=tuple(_reservations(recording)),
    )
    was = recording.outcome.measures(asked.within_ms)
    return _checked(Case(_question(base, asked, makes, targets), arrivals, about, was), options["log_name"])


def _reservations(recording: Recording) -> list[str]:
    """Return what of the log the simulation does not have."""
    found = []
    if recording.losses:
        found.append(f"{recording.losses} GPUs were lost or left in the log: here they stay")
    if recording.policies > 1:
        found.append(
            f"the rules were set {recording.policies} times: here the last ones hold from the beginning"
        )
    if recording.left_out:
        gave_up = f" ({recording.gave_up} of them gave up waiting)" if recording.gave_up else ""
        found.append(
            f"{recording.left_out} turns were cancelled, closed or failed before their first token{gave_up}: left out "
            "of all rows, though GPUs were busy with some of them as it was"
        )
    if recording.guessed:
        found.append(
            f"{recording.guessed} turns were open when the log ended: as it was they are unfinished, simulated they "
            "have the median length of those that ended"
        )
    if recording.policy.pools:
        found.append("its pools neither grow nor shrink here")
    return found


def _checked(case: Case, name: str) -> Case:
    """Refuse what no simulation of the case could answer, and note what is only part of it. Raises Misconfigured."""
    check_reserved(case.question)
    check_targets(case.question, case.arrivals, name)
    notes = case.about.notes + reserved_note(case.question)
    return case._replace(about=replace(case.about, notes=notes))


def _question(
    base: Scenario, asked: Asked, makes: dict[str, list[Offer]], targets: tuple[Target, ...]
) -> Question:
    return Question(
        base=base,
        axes=asked.axes,
        makes=makes,
        within_ms=asked.within_ms,
        targets=targets,
        samples=asked.samples,
    )
