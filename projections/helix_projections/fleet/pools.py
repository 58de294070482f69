"""From the configuration to the providers; what cannot work is refused at start."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from helix_es.core.errors import Misconfigured, Rejected
from helix_es.core.subjects import token
from helix_es.settings import Pool, Settings
from helix_projections.fleet.command import Command
from helix_projections.fleet.local import Local, Staff, Times
from helix_projections.fleet.provider import Provider

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")  # RFC 1123, as Kubernetes wants names
URL = "HELIX_NATS_URL"


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """This machine, and how its runners reach the log."""

    node: str
    folder: Path
    config: Path
    env: Mapping[str, str]
    """For runners and commands; HELIX_NATS_URL is among it."""
    drain_s: float = 5.0


def check(settings: Settings) -> None:
    """Raise Misconfigured, with the key, if a pool cannot be kept."""
    if not settings.pool:
        raise Misconfigured("configuration: there is no [pool.<name>], so that there is nothing to keep")
    for name, pool in settings.pool.items():
        key = f"configuration key pool.{name}"
        if pool.provider == "command" and not pool.command.strip():
            raise Misconfigured(f"{key}.command: is empty; provider command needs the command that it runs")
        if pool.provider == "kubernetes":
            _check_kubernetes(key, pool)


def _check_kubernetes(key: str, pool: Pool) -> None:
    for field in ("deployment", "namespace"):
        value = getattr(pool, field)
        if not LABEL.match(value):
            raise Misconfigured(
                f"{key}.{field}: found {value!r}; provider kubernetes needs a name of 1 to 63 characters of "
                "a-z, 0-9 and '-'"
            )
    if importlib.util.find_spec("kubernetes") is None:
        raise Misconfigured(
            f"{key}: provider kubernetes needs its library: pip install 'helix-es[kubernetes]'"
        )


async def provider_of(name: str, settings: Settings, here: Here, wake: Callable[[], None]) -> Provider:
    """Return the provider of the pool called `name`. Raises Misconfigured."""
    pool = settings.pool[name]
    folder = here.folder / name
    match pool.provider:
        case "local":
            folder.mkdir(parents=True, exist_ok=True)
            return Local(_staff(name, settings, here), wake, Times(drain_s=here.drain_s))
        case "command":
            folder.mkdir(parents=True, exist_ok=True)
            return Command(pool.command, folder, {**here.env, "HELIX_POOL": name})
        case "kubernetes":
            return await _deployment(pool)


async def _deployment(pool: Pool) -> Provider:
    # Imported only here: its library is an extra, and takes a third of a second.
    deployment = importlib.import_module("helix_projections.fleet.deployment")
    where = deployment.Where(
        namespace=pool.namespace,
        deployment=pool.deployment,
        kubeconfig=pool.kubeconfig,
        most=pool.max,
    )
    opened: Provider = await deployment.open_deployment(where)
    return opened


def _staff(name: str, settings: Settings, here: Here) -> Staff:
    pool = settings.pool[name]
    try:
        token(f"{here.node}-{name}-{2 * pool.max}", "GPU")
    except Rejected as error:
        raise Misconfigured(f"configuration key pool.{name}: its name is too long: {error}") from error
    alone = all(each.startswith("text:") for each in pool.serves)
    return Staff(
        folder=here.folder / name,
        name=lambda index: f"{here.node}-{name}-{index}",
        command=lambda gpu: runner_command(name, settings, here, gpu),
        # A guest's threads must not spin while they wait: those of the chats need the cores.
        env={**here.env, **({} if alone else {"OMP_WAIT_POLICY": "PASSIVE"})},
        most=pool.max,
    )


def runner_command(name: str, settings: Settings, here: Here, gpu: str) -> list[str]:
    """Return the command of one runner. Where the log is stands in its environment: a URL may bear a password."""
    pool = settings.pool[name]
    words = [sys.executable, "-m", "helix_es.cli.__main__", "runner", "any"]
    for each in pool.serves:
        words += ["--serve", each]
    words += ["--gpu", gpu, "--pool", name, "--drain-s", f"{here.drain_s:g}", "--config", str(here.config)]
    if pool.device is not None:
        words += ["--device", pool.device]
    if _computes_here(pool):
        sharing = sum(each.max for each in settings.pool.values() if _computes_here(each))
        words += ["--threads", str(max(1, (os.cpu_count() or 1) // sharing))]
    return words


def _computes_here(pool: Pool) -> bool:
    """Whether its runners share this machine's cores."""
    return pool.provider == "local" and pool.device in (None, "cpu") and pool.kind == "cpu"
