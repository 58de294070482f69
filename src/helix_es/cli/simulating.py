"""How commands that simulate run: their progress on stderr, and how they end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from helix_es.cli.output import WRONG_USE, fail
from helix_es.core.errors import HelixError, Misconfigured

Found = TypeVar("Found")

SAID_EVERY_S = 0.1


class Progress:
    """Called with how many simulations are done, of how many: a line on stderr that is written over."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._said_s = 0.0
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        self._done = done
        now_s = time.monotonic()
        if sys.stderr.isatty() and (now_s - self._said_s > SAID_EVERY_S or done == total):
            self._said_s = now_s
            print(
                f"\r\x1b[Ksimulated {done} of {total}, {now_s - self._begun_s:.0f} s", end="", file=sys.stderr
            )
            sys.stderr.flush()

    def end(self) -> None:
        """Say once how many there were."""
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        spent_s = time.monotonic() - self._begun_s
        plural = "simulation" if self._done == 1 else "simulations"
        print(f"{clear}{self._done} {plural} in {spent_s:.1f} s", file=sys.stderr)


@contextmanager
def ended_well() -> Iterator[None]:
    """Turn errors of ours into one line and the exit code, and Ctrl-C into 130."""
    try:
        yield
    except Misconfigured as error:
        fail(str(error), WRONG_USE)
    except HelixError as error:
        fail(str(error))
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)
        raise SystemExit(130) from None


def waited(work: Coroutine[Any, Any, Found]) -> Found:
    """Return what `work` gives. Simulations run outside of it: within, a first Ctrl-C would wait for their end."""
    return asyncio.run(work)
