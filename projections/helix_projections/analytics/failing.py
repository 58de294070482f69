"""What went wrong with the database, in one line that says what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from helix_es.core.errors import Unavailable

# DuckDB puts the system's words into errors of its own, of whatever class.
_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def disk_full(error: Exception) -> bool:
    """Whether there was no room for what was to be written."""
    return any(words in str(error) for words in _FULL)


def unavailable(path: Path, error: Exception) -> Unavailable:
    """Return what to raise for an error of DuckDB or the system about the database at `path`."""
    said = (str(error).splitlines() or [type(error).__name__])[0]
    if disk_full(error):
        return Unavailable(f"{path}: the disk is full; make room and start again, nothing is lost ({said})")
    return Unavailable(f"{path}: {said}; make room or repair it, and start again")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Raise Unavailable for an error of DuckDB or the system about the database at `path`."""
    try:
        yield
    except (duckdb.Error, OSError) as error:
        raise unavailable(path, error) from error
