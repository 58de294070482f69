"""What stands above a what-if's table: times, fleet and rules, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from helix_es.cli.asked import Asked
from helix_es.core.events import Policy
from helix_projections.simulation.axis import Axis
from helix_projections.simulation.offer import Offer


def times(asked: Asked, *, closed: bool) -> str:
    """Return by how much times of arrival are scaled and sessions thinned."""
    said = {axis.setting: axis for axis in asked.axes}
    scale, thin = said.get("time_scale"), said.get("thin")
    words = _span(scale) if scale else "times of arrival × 1"
    if scale and scale.values != (1.0,):
        words += (
            " (pauses after an answer as they were)" if closed else " (and with them the pauses of a session)"
        )
    if not thin:
        return words
    samples = int(min(asked.samples, max(thin.values)))
    parts = f" ({'up to ' if thin.varied else ''}{samples} such parts, each simulated on its own, pooled)"
    return f"{words}; {_span(thin)}{parts if samples > 1 else ''}"


def fleet(axes: Sequence[Axis], offers: Sequence[Offer]) -> str:
    """Return which GPUs there are."""
    counted = [axis for axis in axes if axis.setting == "gpus"]
    kinds = Counter(offer.kind for offer in offers if offer.kind not in {axis.of for axis in counted})
    own = " and ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items()))
    parts = [_span(axis) for axis in counted] + ([f"the log's own {own}"] if own else [])
    return " and ".join(parts)


def rules(policy: Policy, axes: Sequence[Axis], makes: dict[str, list[Offer]], owners: int | None) -> str:
    """Return the rules that hold beside or in place of those that are varied. `owners` None: the log says whose."""
    said = {axis.setting: _span(axis) for axis in axes}
    parts = [_span(axis) for axis in axes if axis.setting == "coefficient"]
    if not parts:
        table = {
            f"{kind}/{model}": slots for kind, made in makes.items() for model, slots in made[0].slots.items()
        }
        table |= policy.coefficients
        parts = [f"{key} = {slots} a GPU" for key, slots in sorted(table.items())] or [
            "coefficients as offered"
        ]
    parts.append(said.get("reserved", f"{policy.reserved} GPUs kept free"))
    parts.append(said.get("idle_after", f"idle after {policy.idle_after_ms / 1000:g} s"))
    limit = f"{policy.slots_per_owner} slots per owner" if policy.slots_per_owner else "no limit per owner"
    parts.append(said.get("slots_per_owner", limit))
    if owners is not None:
        parts.append(f"{owners} owners" if owners else "each session its own owner")
    return ", ".join(parts)


def _span(axis: Axis) -> str:
    """Return what is tried on an axis; of many values the ends."""
    first = axis.words(axis.values[0])
    if not axis.varied:
        return first
    low, high = min(axis.values), max(axis.values)
    return f"{axis.title} {low:g} to {high:g}"
