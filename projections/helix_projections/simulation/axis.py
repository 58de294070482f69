"""What a sweep varies: a setting and its values, and what a scenario becomes under one of them."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from helix_es.core import events as e
from helix_projections.simulation.offer import Offer
from helix_projections.simulation.scenario import Scenario

Setting = Literal["gpus", "coefficient", "reserved", "idle_after", "slots_per_owner", "time_scale", "thin"]


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """One setting and the values that are tried; a single value is one that is given, not varied."""

    setting: Setting
    of: str = ""
    """Of `gpus`: their kind; of `coefficient`: `<kind>/<model>`, or `<model>` for every kind."""
    values: tuple[float, ...]
    """Seconds for `idle_after`, else counts or factors."""

    @property
    def name(self) -> str:
        """Its column's name."""
        unit = "_s" if self.setting == "idle_after" else ""
        return f"{self.setting}{unit}" + (f"_{self.of}" if self.of else "")

    @property
    def title(self) -> str:
        """What a person reads above its column or along its axis."""
        words: dict[Setting, str] = {
            "gpus": f"GPUs ({self.of})",
            "coefficient": f"coefficient of {self.of}",
            "reserved": "GPUs kept free",
            "idle_after": "idle after, s",
            "slots_per_owner": "slots per owner",
            "time_scale": "times of arrival ×",
            "thin": "one session in",
        }
        return words[self.setting]

    @property
    def heading(self) -> str:
        """What stands above its column."""
        words: dict[Setting, str] = {
            "gpus": f"GPUS {self.of.upper()}",
            "coefficient": self.of.upper(),
            "reserved": "KEPT FREE",
            "idle_after": "IDLE AFTER S",
            "slots_per_owner": "PER OWNER",
            "time_scale": "TIMES ×",
            "thin": "ONE IN",
        }
        return words[self.setting]

    def words(self, value: float) -> str:
        """Return what a person reads of one value."""
        words: dict[Setting, str] = {
            "gpus": f"{value:g} × {self.of}",
            "coefficient": f"{self.of} = {value:g} a GPU",
            "reserved": f"{value:g} {'GPU' if value == 1 else 'GPUs'} kept free",
            "idle_after": f"idle after {value:g} s",
            "slots_per_owner": f"{value:g} slots per owner" if value else "no limit per owner",
            "time_scale": f"times of arrival × {value:g}",
            "thin": f"one session in {value:g}" if value != 1 else "every session",
        }
        return words[self.setting]

    @property
    def varied(self) -> bool:
        return len(self.values) > 1


Point = dict[str, float]
"""The name of each axis -> the value there."""


def points(axes: tuple[Axis, ...]) -> list[Point]:
    """Return all combinations; the last axis changes fastest."""
    found: list[Point] = [{}]
    for axis in axes:
        found = [{**point, axis.name: value} for point in found for value in axis.values]
    return found


def altered(base: Scenario, axes: tuple[Axis, ...], point: Point, makes: dict[str, list[Offer]]) -> Scenario:
    """Return `base` with the point's rules and GPUs; of a point that says nothing, `base` as it is.

    `makes`: kind -> GPUs of it, for the kinds that are counted: they are copied in turn. Other kinds stay as they are.
    """
    if not point:
        return base
    policy = base.policy
    counted = {axis.of for axis in axes if axis.setting == "gpus"}
    offers = [offer for offer in base.offers if offer.kind not in counted]
    for axis in axes:
        value = point[axis.name]
        if axis.setting == "gpus":
            made = makes[axis.of]
            offers += [replace(made[n % len(made)], gpu=e.GpuId(f"{axis.of}-{n}")) for n in range(int(value))]
        elif axis.setting == "idle_after":
            policy = replace(policy, idle_after_ms=round(value * 1000))
        elif axis.setting == "reserved":
            policy = replace(policy, reserved=int(value))
        elif axis.setting == "slots_per_owner":
            policy = replace(policy, slots_per_owner=int(value))
    policy = replace(policy, coefficients=_coefficients(policy, axes, point, offers))
    return replace(base, policy=policy, offers=offers)


def _coefficients(
    policy: e.Policy, axes: tuple[Axis, ...], point: Point, offers: list[Offer]
) -> dict[str, int]:
    """Return the table; what is said of one kind goes before what is said of all."""
    table = dict(policy.coefficients)
    said = [axis for axis in axes if axis.setting == "coefficient"]
    for axis in sorted(said, key=lambda axis: "/" in axis.of):
        slots = int(point[axis.name])
        if "/" in axis.of:
            table[axis.of] = slots
        else:
            table |= {f"{kind}/{axis.of}": slots for kind in {offer.kind for offer in offers}}
    return table
