"""What a what-if asks on the command line: its options, and the axes that they say."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import rich_click as click

from helix_es.cli.serve import NATS_OPTIONS
from helix_es.core.errors import Misconfigured
from helix_projections.simulation.axis import Axis, Setting
from helix_projections.simulation.ranges import counts, duration_ms, durations_ms, factors
from helix_projections.simulation.service import Service

LIVE = "live"  # instead of a path: the log of the server that the options name
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_COUNTED = re.compile(r"([\d.:]+)x([a-z0-9][a-z0-9-]*)")
_OPTIONS = (
    click.option("--trace", type=FILE, help="A public trace: Mooncake (CSV, JSONL), Azure LLM, Philly."),
    click.option(
        "--log", "log_name", metavar="PATH|live", help="A recorded log: 'helix export', .jsonl, or 'live'."
    ),
    click.option("--batch", type=FILE, help="A trace of batch jobs that run beside (Philly)."),
    click.option("--gpus", metavar="FLEET", help="8xa100-80,4xl4-24 or a range of --kind: 4..32."),
    click.option("--kind", default="a100-80", show_default=True, help="GPU kind of --gpus without one."),
    click.option("--model", default="mistral", show_default=True, help="Of the trace's turns."),
    click.option(
        "--coefficient",
        "coefficients",
        multiple=True,
        metavar="[KIND/]MODEL=RANGE",
        help="Sessions a GPU holds: mistral=1..16.",
    ),
    click.option("--reserved", metavar="RANGE", help="GPUs kept free of chats: 0..2."),
    click.option("--idle-after", metavar="RANGE", help="A silent session gives way after: 5s,10s."),
    click.option("--slots-per-owner", metavar="RANGE", help="Slots of one owner at most; 0: no limit."),
    click.option(
        "--owners",
        type=click.IntRange(0),
        default=0,
        help="Deal sessions out among so many; 0: its own each.",
    ),
    click.option(
        "--time-scale",
        metavar="RANGE",
        help="Times of arrival multiplied: 2 is half the load, longer pauses.",
    ),
    click.option("--thin", metavar="RANGE", help="One session in so many, with its pauses as they are."),
    click.option(
        "--samples",
        type=click.IntRange(1, 1000),
        default=4,
        show_default=True,
        help="With --thin: so many such parts, each on its own, pooled.",
    ),
    click.option("--until", metavar="DURATION", help="Only the trace's first 20min."),
    click.option("--config", type=click.Path(), help="Rules and models from this TOML configuration."),
    click.option("--fit", "fit_name", metavar="PATH|live", help="Fit the service model to this log."),
    click.option(
        "--service",
        "services",
        multiple=True,
        metavar="[KIND/MODEL:]KEY=VALUE,…",
        help="prefill=8000 (tokens/s), decode=7.1+0.53 (ms a step + a session), load=15s.",
    ),
    click.option(
        "--within", default="1.5s", show_default=True, help="A first token within it counts as good."
    ),
    click.option("--processes", type=click.IntRange(1, 1024), help="At once; by default one a core."),
    click.option("--csv", "as_csv", is_flag=True, help="Everything that was measured, as CSV."),
    click.option(
        "--parquet", type=click.Path(dir_okay=False, path_type=Path), help="The same as a Parquet file."
    ),
    click.option(
        "--plot", "plots", multiple=True, metavar="FILE|-", help=".png, .svg, or - for the terminal."
    ),
)


def asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every what-if has."""
    for option in (*reversed(_OPTIONS), *NATS_OPTIONS[:4]):
        command = option(command)
    return command


class Asked(NamedTuple):
    """The options, as far as they can be understood without reading a trace."""

    axes: tuple[Axis, ...]
    within_ms: int
    until_ms: int | None
    services: dict[str, Service]
    """`<kind>/<model>` -> what was given; the empty key: for all."""
    processes: int
    samples: int


def understood(options: dict[str, Any]) -> Asked:
    """Return what the options ask. Raises UsageError, Misconfigured."""
    if (options["trace"] is None) == (options["log_name"] is None):
        raise click.UsageError("give either --trace FILE or --log PATH")
    if options["trace"] is not None and options["gpus"] is None:
        raise click.UsageError("--gpus says on which fleet: 8xa100-80, or a range such as 4..32")
    if options["fit_name"] is not None and options["services"]:
        raise click.UsageError("--fit and --service exclude each other")
    if options["as_csv"] and options["as_json"]:
        raise click.UsageError("--csv and --json exclude each other")
    return Asked(
        axes=tuple(_axes(options)),
        within_ms=_duration("--within", options["within"]),
        until_ms=None if options["until"] is None else _duration("--until", options["until"]),
        services=dict(_service(words) for words in options["services"]),
        processes=options["processes"] or len(os.sched_getaffinity(0)),
        samples=options["samples"],
    )


def _axes(options: dict[str, Any]) -> list[Axis]:
    """Return an axis for each setting that is said, the ones that matter most first."""
    found = _fleet(options["gpus"], options["kind"]) if options["gpus"] else []
    for words in options["coefficients"]:
        of, equals, text = words.partition("=")
        if not equals or not of:
            raise Misconfigured(f"--coefficient {words}: give MODEL=RANGE, as in mistral=1..16")
        found.append(_axis("coefficient", of, counts(text, f"--coefficient {of}", least=1, most=10_000)))
    for setting, option in (
        ("reserved", "reserved"),
        ("slots_per_owner", "slots_per_owner"),
        ("thin", "thin"),
    ):
        if options[option] is not None:
            least = 1 if setting == "thin" else 0
            found.append(
                _axis(setting, "", counts(options[option], f"--{option.replace('_', '-')}", least=least))
            )
    if options["idle_after"] is not None:
        seconds = tuple(ms / 1000 for ms in durations_ms(options["idle_after"], "--idle-after"))
        found.append(_axis("idle_after", "", seconds))
    if options["time_scale"] is not None:
        found.append(_axis("time_scale", "", factors(options["time_scale"], "--time-scale")))
    names = [axis.name for axis in found]
    for name in names:
        if names.count(name) > 1:
            raise Misconfigured(f"{name.replace('_', ' ')} is said twice")
    return found


def _axis(setting: Any, of: str, values: tuple[float, ...]) -> Axis:
    named: Setting = setting
    return Axis(setting=named, of=of, values=tuple(float(value) for value in values))


def _fleet(text: str, kind: str) -> list[Axis]:
    """Return the numbers of each kind: `8xa100-80,4xl4-24`, `4..8xa100-80`, or a range of `kind`."""
    parts = [_COUNTED.fullmatch(part.strip()) for part in text.split(",")]
    if not any(parts):
        return [_axis("gpus", kind, counts(text, "--gpus", least=1, most=10_000))]
    found = []
    for part, said in zip(parts, text.split(","), strict=True):
        if part is None:
            raise Misconfigured(f"--gpus {said}: give a number of each kind, as in 8xa100-80,4xl4-24")
        least = 1 if len(parts) == 1 else 0  # of several kinds one may be left out
        found.append(_axis("gpus", part[2], counts(part[1], f"--gpus {said}", least=least, most=10_000)))
    if not any(max(axis.values) for axis in found):
        raise Misconfigured(f"--gpus {text}: 0 GPUs in all are not allowed; 1 or more of a kind are")
    return found


def _duration(option: str, text: str) -> int:
    try:
        found_ms = duration_ms(text)
    except ValueError as error:
        raise Misconfigured(f"{option} {text}: give a duration such as 300ms, 1.5s or 20min") from error
    if found_ms <= 0:
        raise Misconfigured(f"{option} {text}: must be above 0")
    return found_ms


def _service(words: str) -> tuple[str, Service]:
    """Return for what `words` speak ('' : for everything), and the default with what they change."""
    key, colon, given = words.rpartition(":")
    if colon and "/" not in key:
        raise Misconfigured(f"--service {words}: before the colon stands KIND/MODEL, as in l4-24/mistral")
    changed: dict[str, Any] = {}
    for part in given.split(","):
        name, _, value = part.partition("=")
        try:
            changed |= _READ[name.strip()](value.strip())
        except (KeyError, ValueError) as error:
            raise Misconfigured(
                f"--service {part!r}: give prefill=8000 (tokens/s), decode=7.1+0.53 (ms a step + ms a session), "
                "load=15s, speed=1"
            ) from error
    return key, Service(**changed)


def _above_0(text: str) -> float:
    found = float(text)
    if not 0 < found < 1e9:
        raise ValueError(text)
    return found


def _decode(text: str) -> dict[str, float]:
    weights, plus, session = text.partition("+")
    return {"weights_ms": _above_0(weights), "session_ms": _above_0(session) if plus else 0.0}


_READ: dict[str, Callable[[str], dict[str, Any]]] = {
    "prefill": lambda text: {"prefill_tokens_per_s": _above_0(text)},
    "decode": _decode,
    "load": lambda text: {"load_ms": duration_ms(text)},
    "speed": lambda text: {"speed": _above_0(text)},
}
