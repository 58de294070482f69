"""Tables that are not of the log, as Parquet files: what a simulation found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helix_es.core.errors import Misconfigured

Cell = float | str | None


def write_parquet(path: Path, columns: Mapping[str, Sequence[Cell]], about: Mapping[str, str]) -> None:
    """Write `columns`, all of one length, with `about` as the file's own notes; an earlier file is replaced at once.

    A column is text if a text is in it, else a number. Raises Misconfigured: it cannot be written there.
    """
    arrays = {name: pa.array(list(cells), type=_type(cells)) for name, cells in columns.items()}
    table = pa.table(arrays).replace_schema_metadata({f"helix.{key}": text for key, text in about.items()})
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, beside, compression="zstd")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise Misconfigured(f"--parquet {path}: {error.strerror or error}") from error


def _type(cells: Sequence[Cell]) -> pa.DataType:
    return pa.string() if any(isinstance(cell, str) for cell in cells) else pa.float64()
