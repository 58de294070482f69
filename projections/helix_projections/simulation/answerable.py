"""What a what-if cannot answer, whatever is simulated: it is refused before."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from helix_es.core.errors import Misconfigured
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.offer import Offer
from helix_projections.simulation.sweep import Question
from helix_projections.simulation.target import Target


def kinds_of(question: Question) -> list[str]:
    """Return the kinds of GPUs that the fleet has at any point, by name."""
    counted = {axis.of for axis in question.axes if axis.setting == "gpus"}
    return sorted(counted | {offer.kind for offer in question.base.offers})


def check_reserved(question: Question) -> None:
    """Refuse to keep more GPUs free than can train. Raises Misconfigured with how many can be kept."""
    kept = max((max(axis.values) for axis in question.axes if axis.setting == "reserved"), default=0)
    most = _trainable(question, max)
    if kept > most:
        allowed = f"0 to {most}" if most else "only 0"
        raise Misconfigured(
            f"--reserved {kept:g}: the fleet has at most {most} GPUs that can train; {allowed} can be kept free"
        )


def reserved_note(question: Question) -> tuple[str, ...]:
    """Return what is to be said where some points of the ranges would keep more GPUs free than they have."""
    kept = max((max(axis.values) for axis in question.axes if axis.setting == "reserved"), default=0)
    if kept <= _trainable(question, min):
        return ()
    return ("where more GPUs are to be kept free than can train, all that can are kept free",)


def _trainable(question: Question, which: Callable[[tuple[float, ...]], float]) -> int:
    """Return how many GPUs can train where the fleet is largest (`which`: max) or smallest (min)."""
    counted = {axis.of: int(which(axis.values)) for axis in question.axes if axis.setting == "gpus"}
    found = sum(_trains(offer) for offer in question.base.offers if offer.kind not in counted)
    for kind, count in counted.items():
        made = question.makes[kind]
        found += sum(_trains(made[n % len(made)]) for n in range(count))
    return found


def _trains(offer: Offer) -> bool:
    return any(work.mode == "finetune" for work in offer.workloads)


def check_targets(question: Question, arrivals: Sequence[Arrival], name: str) -> None:
    """Refuse a target of which nothing arrives in `name`. Raises Misconfigured."""
    for target in question.targets:
        if not any(_concerns(target, each, question) for each in arrivals):
            raise Misconfigured(f"--target '{target.words()}': {name} has no {_missing(target)}")


def _concerns(target: Target, arrival: Arrival, question: Question) -> bool:
    workload = arrival.workload or question.base.workload
    if target.quantity == "finetune_start":
        return workload.mode == "finetune"
    if workload.mode != "create" or workload.type != "text":
        return False
    return target.turns == "all" or (arrival.turn > 1) == (target.turns == "continued")


def _missing(target: Target) -> str:
    if target.quantity == "finetune_start":
        return "fine-tunes; give a log that has some, or batch jobs beside a trace with --batch"
    some = "" if target.turns == "all" else f"{target.turns} "
    return f"{some}turns of chats; give another trace or log, or another target"
