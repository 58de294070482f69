"""How many sessions of a model a GPU may hold, where that number comes from, and why a model fits nowhere."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

from helix_es.core import events as e
from helix_es.core.catalogue import Model, footprint, precision
from helix_es.core.floor import Gpu
from helix_es.core.footprint import MOST_SLOTS, RESERVE_BYTES, USABLE_PERCENT, Footprint
from helix_es.core.hardware import GIB, KNOWN_GPUS, Card

MIB = 2**20

Source = Literal["table", "offer", "memory"]
"""The table of the policy, the offer of the runner, or the formula."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """A coefficient and how it came about. The terms of the formula are there whatever the source is."""

    model: str
    kind: str
    coefficient: int
    source: Source
    dtype: str
    quantisation: str | None
    memory_bytes: int
    """0: not known."""
    usable_bytes: int
    weights_bytes: int
    reserve_bytes: int = RESERVE_BYTES
    room_bytes: int
    """What is left for sessions; negative if not even the weights fit."""
    kv_bytes_per_token: int
    context_tokens: int
    session_bytes: int
    """Of a session, beside keys and values."""
    per_session_bytes: int
    least_bytes: int
    """The memory that a GPU needs to hold one session."""
    quotient: int | None
    """Sessions by memory alone; None: what a session takes is not known, or the memory is not."""
    most: int = MOST_SLOTS
    """Until calibrated."""
    line: str
    """The same in words."""
    reason: str | None
    """Why the coefficient is 0."""


def explain(model: Model, slug: str, card: Card, policy: e.Policy) -> Explanation:
    """Return how many conversations with `model` such a GPU may hold: by the table, by its offer, else by memory."""
    need, memory = footprint(model, card.kind), card.total_bytes
    source, slots = _coefficient(need, f"{card.kind}/{slug}", card, policy)
    words = _derivation(need, memory)
    said = {
        "table": f"[coefficients] says {slots} for {card.kind}/{slug}; by memory: {words}",
        "offer": f"the runner offers {slots}; by memory: {words}",
        "memory": words,
    }[source]
    return Explanation(
        model=slug,
        kind=card.kind,
        coefficient=slots,
        source=source,
        dtype=precision(model, card.kind),
        quantisation=model.quantisation,
        memory_bytes=memory,
        usable_bytes=memory * USABLE_PERCENT // 100,
        weights_bytes=need.weights_bytes,
        room_bytes=need.room_bytes(memory),
        kv_bytes_per_token=need.kv_bytes_per_token,
        context_tokens=need.context_tokens,
        session_bytes=need.session_bytes,
        per_session_bytes=need.per_session_bytes,
        least_bytes=need.least_bytes,
        quotient=need.quotient(memory) if memory else None,
        line=said,
        reason=None if slots else _reason(source, need, card),
    )


def known_slots(model: Model, kind: str) -> int | None:
    """Return the coefficient on a kind that is known by name, 0 if the model does not fit; None for other kinds."""
    known = KNOWN_GPUS.get(kind)
    return None if known is None else footprint(model, kind).slots(known.memory_bytes)


def unfit(
    model: Model, slug: str, gpus: Collection[Gpu], policy: e.Policy, mode: e.Mode = "create"
) -> str | None:
    """Return why `model` can run on no GPU of this shop, or None if it can, or if nobody knows yet.

    A GPU that has the memory counts even while it serves another model: whoever waits for it does not wait in vain.
    A processor counts with the model in 4 bits: there it is programs and HTTP workers that run large models, and those
    bring a quantisation of their own.
    An empty floor without pools says nothing about what will come.
    """
    workload = e.Workload(mode, model.type, slug)
    if not gpus and not policy.pools:
        return None
    if any(_pooled(rule, workload) for rule in policy.pools.values()):
        return None
    needs: dict[str, Footprint] = {}
    for gpu in gpus:
        need = needs.get(gpu.kind)
        if need is None:
            need = needs[gpu.kind] = _least(footprint(_smallest(model, gpu.kind), gpu.kind), mode)
        if _could(need, gpu, workload, policy):
            return None
    if not gpus:
        return f"{slug} can run nowhere: no GPU is here, and no pool serves it (pool.<name>.serves)"
    largest = max(gpus, key=lambda gpu: (card_of(gpu, workload).total_bytes, gpu.gpu))
    return _refusal(model, largest, workload, needs[largest.kind])


def card_of(gpu: Gpu, workload: e.Workload) -> Card:
    """Return `gpu` as far as the coefficient of `workload` depends on it."""
    offered = gpu.offered.get(workload.model, 1) if workload in gpu.workloads else None
    return Card(kind=gpu.kind, memory_bytes=gpu.memory_total_bytes, offered=offered)


def _coefficient(need: Footprint, key: str, card: Card, policy: e.Policy) -> tuple[Source, int]:
    if key in policy.coefficients:
        return "table", policy.coefficients[key]
    if card.offered is not None:
        return "offer", card.offered
    return "memory", need.slots(card.total_bytes)


def _pooled(rule: e.PoolRule, workload: e.Workload) -> bool:
    return rule.max > 0 and workload in rule.workloads and rule.slots.get(workload.model, 1) > 0


def _smallest(model: Model, kind: str) -> Model:
    """Return `model` as small as whoever offers it on `kind` may hold it."""
    if kind != "cpu" or model.type != "text" or model.quantisation is not None:
        return model
    return msgspec.structs.replace(model, quantisation="nf4")


def _least(need: Footprint, mode: e.Mode) -> Footprint:
    """What certainly is needed: what a training takes beside the weights depends on its parameters."""
    if mode == "create":
        return need
    return msgspec.structs.replace(need, kv_bytes_per_token=0, session_bytes=0)


def _could(need: Footprint, gpu: Gpu, workload: e.Workload, policy: e.Policy) -> bool:
    """Whether `gpu` could hold one session. The table is about conversations, not about trainings."""
    card = card_of(gpu, workload)
    if workload.mode == "finetune":
        return bool(need.slots(card.total_bytes) if card.offered is None else card.offered)
    return _coefficient(need, f"{gpu.kind}/{workload.model}", card, policy)[1] > 0


def _reason(source: Source, need: Footprint, card: Card) -> str:
    if source == "table":
        return "[coefficients] says 0"
    if source == "offer":
        return "the runner offers 0"
    if not card.total_bytes:
        return "its memory is not known, and it does not offer this model"
    return f"does not fit: it needs at least {_at_least(need)}, and there are {_size(card.total_bytes)}"


def _refusal(model: Model, largest: Gpu, workload: e.Workload, need: Footprint) -> str:
    """Say what is missing on the largest GPU, and what to do."""
    slug, memory = workload.model, card_of(largest, workload).total_bytes
    start = f"{slug} fits no GPU here: it needs at least {_at_least(need)} of GPU memory ({_parts(need)})"
    if not memory:
        return f"{start}, and no GPU here says how much it has, or offers {slug}: start a runner or a worker that does"
    where = f"the largest GPU here, {largest.gpu} ({largest.kind}), has {_size(memory)}"
    if need.slots(memory):
        key = f"{largest.kind}/{slug}"
        return f"{slug} fits no GPU here: {where}, but [coefficients] or its runner allows 0 for {key}; raise that"
    advice = [*_advice(model, largest.kind, workload, memory), "add a larger GPU"]
    return f"{start}, and {where}: {', or '.join(advice)}"


def _advice(model: Model, kind: str, workload: e.Workload, memory: int) -> list[str]:
    """What would make `model` fit the memory that is there; only what really does."""
    slug, found = workload.model, []
    quantised = msgspec.structs.replace(model, quantisation="nf4")
    less = _least(footprint(quantised, kind), workload.mode)
    if model.type == "text" and model.quantisation is None and less.slots(memory):
        found.append(f'set quantisation = "nf4" in [models.{slug}], with which {_at_least(less)} are enough')
    need = footprint(model, kind)
    if workload.mode == "create" and need.kv_bytes_per_token:
        tokens = (need.room_bytes(memory) - need.session_bytes) // need.kv_bytes_per_token
        if tokens > 0:
            found.append(f"lower context_tokens to {tokens} or less")
    return found


def _parts(need: Footprint) -> str:
    one = f", {_size(need.per_session_bytes)} one session" if need.per_session_bytes else ""
    spare = 100 - USABLE_PERCENT
    return f"{_size(need.weights_bytes)} weights{one}, {_size(RESERVE_BYTES)} reserve, {spare} % unusable"


def _derivation(need: Footprint, memory: int) -> str:
    """The formula with its numbers, in one line."""
    if not memory:
        return "its memory is not known"
    line = (
        f"{USABLE_PERCENT / 100:.2f} × {_size(memory)} − {_size(need.weights_bytes)} weights"
        f" − {_size(RESERVE_BYTES)} reserve = {_size(need.room_bytes(memory))}"
    )
    quotient = need.quotient(memory)
    if need.room_bytes(memory) <= 0:
        return f"{line}: no room for a session → 0"
    if quotient is None:
        return (
            f"{line}; what a session takes is not known, at most {MOST_SLOTS} until calibrated → {MOST_SLOTS}"
        )
    line = f"{line}; ÷ {_size(need.per_session_bytes, 2)} a session{_session(need)} = {quotient}"
    return f"{line}{f', at most {MOST_SLOTS} until calibrated' if quotient > MOST_SLOTS else ''} → {need.slots(memory)}"


def _session(need: Footprint) -> str:
    if not need.kv_bytes_per_token:
        return ""
    more = f" + {_size(need.session_bytes)}" if need.session_bytes else ""
    return f" ({need.context_tokens} tokens × {need.kv_bytes_per_token / 1024:.4g} KiB{more})"


def _at_least(need: Footprint) -> str:
    """What a GPU must have, rounded up: it must not look as if a GPU that is too small had it."""
    tenth = GIB // 10
    return _size(-(-need.least_bytes // tenth) * tenth)


def _size(of_bytes: int, digits: int = 1) -> str:
    sign, size = "−" if of_bytes < 0 else "", abs(of_bytes)
    if size >= GIB // 10 or not size:
        return f"{sign}{size / GIB:.{digits}f} GiB"
    return f"{sign}{size / MIB:.{digits}f} MiB"
