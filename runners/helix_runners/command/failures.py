"""How a program fails, in words: exit codes, signals, limits."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from helix_es.core.errors import HelixError


class CommandError(HelixError):
    """The turn failed through its program; the text says how, the code is the failure's."""

    code = "command_failed"


def exit_words(code: int) -> str:
    """Return "exit code 3", or "killed by signal SIGKILL" for a negative code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by signal {signal.Signals(-code).name}"
    except ValueError:  # real-time signals have no name
        return f"killed by signal {-code}"


def failed(what: str, stderr: str) -> CommandError:
    """Return the failure of a program that ended, with the last it said on stderr."""
    return CommandError(f"{what}; stderr: {stderr or '(nothing)'}")


def too_large(most_bytes: int) -> CommandError:
    """Return the failure of an answer that does not end."""
    return CommandError(
        f"the program wrote more than {most_bytes} bytes and was stopped; ask for less, "
        "or have --most-output-bytes raised",
        code="output_too_large",
    )


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """Raise CommandError("time_limit") in the block when it takes longer."""
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        raise CommandError(
            f"the program was stopped after {seconds:g} s, its time limit; ask for less, "
            "or have --time-limit-s raised",
            code="time_limit",
        ) from None
