"""The measurements, one after the other: each side is a process of its own, and all that it started is ended."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import psutil

from tests.bench.peers.found import Found, Version, read
from tests.bench.peers.loopback import confined
from tests.conftest import NatsServer

PEERS = Path(".venv-peers")
STEP_S = 150.0  # the longest, Ray's, takes about 90 s on 2 cores
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
ERROR = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Refused|Misconfigured)\b.*")


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one side."""

    system: str
    module: str
    part: str = ""
    ack_wait_s: int = 30
    """taskiq's; a task that is not acknowledged by then is delivered again."""


HELIX, RAY, TASKIQ = "Helix", "Ray Serve", "taskiq-nats"
OURS = tuple(
    Step(system=HELIX, module="helix_client", part=part)
    for part in ("dispatch", "in-core", "one-of-two", "only-one")
)
THEIRS = (
    Step(system=RAY, module="ray_serve"),
    Step(system=TASKIQ, module="taskiq_client", part="defaults"),
    Step(system=TASKIQ, module="taskiq_client", part="dispatch"),
    Step(system=TASKIQ, module="taskiq_client", part="one-of-two"),
    Step(system=TASKIQ, module="taskiq_client", part="one-of-two", ack_wait_s=5),
    Step(system=TASKIQ, module="taskiq_client", part="only-one", ack_wait_s=5),
)
IMPORTS = {RAY: "ray.serve", TASKIQ: "taskiq_nats"}


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a step."""

    system: str
    found: list[Found] = msgspec.field(default_factory=list)
    wrong: str = ""
    """Why it did not come to its end."""
    absent: bool = False
    """The peer is not installed or does not start here: no fault of the measurement."""


def absence(system: str) -> str:
    """Return why a peer cannot be measured here, or nothing if it can."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        return f"not installed: there is no {PEERS}; make bench-peers makes it"
    try:
        found = subprocess.run(
            [python, "-c", f"import {IMPORTS[system]}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if found.returncode:
            return f"not installed: {_reason(found.stderr)}{_installing()}"
        if system == RAY:
            wall = subprocess.run(confined(["true"]), capture_output=True, text=True, timeout=10, check=False)
            if wall.returncode:
                return f"not started: it would listen on every interface, and {wall.stderr.strip()}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not started: {error}"
    return ""


def _installing() -> str:
    """Return what pip said was wrong, if anything."""
    log = PEERS / "install.log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((f"; pip: {line[:200]}" for line in reversed(lines) if line.startswith("ERROR:")), "")


def _reason(said: str) -> str:
    """Return the line that names the error, else the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if ERROR.match(line)]
    return (named or lines or ["it said nothing"])[-1][:200]


def run(step: Step) -> Ran:
    """Run a step to its end, on a broker of its own if it needs one; nothing that it started is left."""
    theirs = step.system != HELIX
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with tempfile.TemporaryDirectory(prefix="peers-", dir="/tmp") as name:  # Ray's sockets need a short path
        folder = Path(name)
        server = NatsServer(folder / "nats") if step.system != RAY else None
        try:
            if server is not None:
                server.start()
            return _run(step, folder, server.url if server else "", theirs)
        finally:
            if server is not None:
                server.close()
            end_all_but(before)


def _run(step: Step, folder: Path, url: str, theirs: bool) -> Ran:
    python = str(PEERS / "bin" / "python") if theirs else sys.executable
    command = [python, "-m", f"tests.bench.peers.{step.module}"]
    command += [word for word in (step.part, url if not theirs else "") if word]
    command += [str(folder)] if step.system != TASKIQ else []
    settings = {"PEERS_NATS_URL": url, "PEERS_MARKS": str(folder / "marks")}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            confined(command) if step.system == RAY else command,
            stdout=out,  # a file, since a pipe would stay open as long as any daemon of the peer lives
            stderr=err,
            env={**os.environ, **settings, "PEERS_ACK_WAIT_S": str(step.ack_wait_s)},
            start_new_session=True,
        )
        try:
            wrong = "" if process.wait(STEP_S) == 0 else f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            wrong = f"did not end within {STEP_S:.0f} s"
    found = read((folder / "out").read_text(errors="replace"))
    if wrong:
        wrong = f"{wrong}: {_reason((folder / 'err').read_text(errors='replace'))}"
    absent = theirs and not any(not isinstance(each, Version) for each in found)
    return Ran(system=step.system, found=found, wrong=wrong, absent=bool(wrong) and absent)


def adopt_orphans() -> None:
    """Have this process become the parent of what its children leave behind, so that it can be ended."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_all_but(before: set[int]) -> None:
    """Kill every descendant that was not there `before`; in a loop, since managers start their workers again."""
    while left := [p for p in psutil.Process().children(recursive=True) if p.pid not in before]:
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=5)


def measure(steps: tuple[Step, ...]) -> list[Ran]:
    """Run all of them, never two at once; a peer that is not there is said to be, once."""
    adopt_orphans()
    why = {system: absence(system) for system in {step.system for step in steps} - {HELIX}}
    ran = [Ran(system=system, wrong=wrong, absent=True) for system, wrong in why.items() if wrong]
    for step in steps:
        if not why.get(step.system):
            print(f"measuring {step.system} {step.part}".rstrip(), file=sys.stderr, flush=True)
            ran.append(run(step))
    return ran
