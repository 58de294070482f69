"""A program with everything it started, signalled together; and the guard that does it when the runner is gone.

Run as a program, this is the guard: it needs the standard library alone, and starts in a few milliseconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

POLL_S = 0.02
KILL_S = 5.0  # after SIGKILL: only a process that hangs inside the kernel takes longer


def members(leader: int) -> Iterator[int]:
    """Yield the living processes of the session that `leader` was started as.

    The session, not only the process group: `timeout`, and a shell with job control, make groups of their own.
    """
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == leader and _lives(pid):
                yield pid


def _lives(pid: int) -> bool:
    """Whether it is more than an entry that nobody has collected yet."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # pid (name, which may hold anything) state …
            return stat.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):  # it has just ended
        return False


def signal_all(leader: int, number: signal.Signals) -> None:
    """Send a signal to everything of the session that `leader` was started as."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)  # at once, so that none can fork past it
    for pid in members(leader):
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) != leader:
                os.kill(pid, number)


def guard(grace_s: float, folder: str) -> None:
    """Read `+PID` and `-PID` lines; when stdin ends, end what is left of them, and remove `folder`."""
    watched: set[int] = set()
    for line in sys.stdin.buffer:
        pid = int(line[1:])
        if line.startswith(b"+"):
            watched.add(pid)
        else:
            watched.discard(pid)
    for number, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, KILL_S)):
        deadline = time.monotonic() + seconds
        for leader in watched:
            signal_all(leader, number)
        while any(True for leader in watched for _ in members(leader)) and time.monotonic() < deadline:
            time.sleep(POLL_S)  # none of them is a child of this process: nobody tells it
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    guard(float(sys.argv[1]), sys.argv[2])
