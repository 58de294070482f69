"""How long GPUs take in a what-if: as given, as fitted to a log, or by default; and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from helix_es.cli.archives import opened
from helix_es.cli.asked import LIVE, Asked
from helix_es.core.errors import Misconfigured
from helix_projections.simulation.heard import Heard
from helix_projections.simulation.listener import hear
from helix_projections.simulation.service import Service


class Timing(NamedTuple):
    """How long GPUs take."""

    service: Service
    """Of what `services` does not name."""
    services: dict[str, Service]
    """By `<gpu kind>/<model>`."""
    lines: tuple[str, ...]
    """What is said of it."""
    decide_ms: int = 0
    start_ms: int = 0


async def heard_in(name: str, options: dict[str, Any]) -> tuple[Heard, str]:
    """Return what is in the log `name` (a path, or `live`), and what to call it.

    Raises Misconfigured: it is not there; Unreadable, Unavailable.
    """
    path = None if name == LIVE else Path(name)
    if path is not None and not path.exists():
        raise Misconfigured(f"{name} is not there; give the folder of an export, a .jsonl file, or '{LIVE}'")
    async with opened({**options, "log_path": path, "and_live": False}) as source:
        return await hear(source.archive), source.archive.name


async def timing_of(options: dict[str, Any], asked: Asked, heard: Heard | None) -> Timing:
    """Return how long GPUs take: by --service, by --fit, by the log that is replayed, or by default."""
    if asked.services:
        return _given(asked.services)
    name = options["fit_name"]
    if name is not None:
        heard, _ = await heard_in(name, options)
    if heard is None:
        default = Service()
        return Timing(
            default,
            {},
            (f"default, not measured: {words(default)}", "an A100-80 with Mistral-7B, by memory bandwidth"),
        )
    from helix_projections.simulation.fit import fit_heard  # numpy takes 0.1 s to import

    fitted = fit_heard(heard, Service())
    lines = tuple(f"fitted to {name or options['log_name']}: {line}" for line in fitted.lines())
    return Timing(Service(), fitted.services, lines, fitted.decide_ms, fitted.start_ms)


def _given(services: dict[str, Service]) -> Timing:
    lines = tuple(
        f"given{f' for {key}' if key else ''}: {words(each)}" for key, each in sorted(services.items())
    )
    default = services.get("")
    if default is None:
        lines += (f"default for all others, not measured: {words(Service())}",)
    named = {key: each for key, each in services.items() if key}
    return Timing(default or Service(), named, lines)


def words(service: Service) -> str:
    """Return the numbers of a service model."""
    return (
        f"{service.prefill_tokens_per_s:,.0f} prompt tokens/s, step {service.weights_ms:g} ms + "
        f"{service.session_ms:g} ms a session, load {service.load_ms / 1000:g} s"
    )
