"""The process that queries run in: it gives up what it does not need, then answers what comes over its pipe.

A process of its own, since a query can take more memory than DuckDB counts, compute one value for ever where no
interrupt is heard, or end DuckDB altogether; then this one ends, and the API goes on.
"""

from __future__ import annotations

import os
import resource
import select
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from helix_es.analytics.questions import MIB, Failure, Limits, Question, Unanswered

HEAD = struct.Struct(">cI")
"""Before each message: what it is, and its length in bytes."""
ASKED, ANSWERED, FAILED = b"?", b"+", b"-"
OWN_BYTES = 512 * MIB  # the interpreter, DuckDB's code and threads, and an answer as Python's values
OVERDUE = 3
"""Exit code of one that could not be interrupted."""


def main() -> None:
    """Answer questions until the pipe ends, or nobody has asked for a while."""
    target, limits = sys.argv[1], msgspec.json.decode(sys.argv[2], type=Limits)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not spoil an answer
    give_up(limits)
    serve(sys.stdin.buffer, out, Path(target), limits)


def give_up(limits: Limits) -> None:
    """Let this process write no file, dump no core, and have only so much memory."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = limits.memory_bytes + OWN_BYTES
    with suppress(OSError, ValueError):  # not every Unix has this one
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    os.nice(5)  # whoever waits for an answer of a model goes first


def serve(asked: BinaryIO, out: BinaryIO, target: Path, limits: Limits) -> None:
    """Read questions from `asked` and write what comes of them to `out`; end where a new process would do better."""
    try:
        from helix_es.analytics.sandbox import Sandbox  # an API without DuckDB is told so, in an answer

        sandbox = Sandbox(target, limits, lambda: os._exit(OVERDUE))
    except ImportError:
        sandbox = None
    while (
        select.select([asked], [], [], limits.idle_s)[0] and len(head := asked.read(HEAD.size)) == HEAD.size
    ):
        question = msgspec.json.decode(asked.read(HEAD.unpack(head)[1]), type=Question)
        spent = False
        try:
            if sandbox is None:
                raise Unanswered(
                    "analytics_unavailable", "DuckDB is not installed: pip install 'helix-es[analytics]'"
                )
            kind, body = ANSWERED, sandbox.ask(question)
        except Unanswered as error:
            kind, body = FAILED, msgspec.json.encode(Failure(code=error.reason, message=str(error)))
            spent = error.reason == "sql_too_large"
        try:
            out.write(HEAD.pack(kind, len(body)) + body)
            out.flush()
        except BrokenPipeError:
            return
        if spent or bloated(limits):
            return


def bloated(limits: Limits) -> bool:
    """Return whether memory that was freed has not been given back, so that the next query would run short of it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, ValueError, IndexError):  # not Linux
        return False
    return pages * resource.getpagesize() > OWN_BYTES + limits.memory_bytes // 2


if __name__ == "__main__":
    main()
