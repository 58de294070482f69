"""What a what-if prints and writes: a table, JSON, CSV, Parquet, pictures."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from helix_es.cli.output import fail, show_json, show_table
from helix_es.core.errors import Misconfigured
from helix_projections.simulation.axis import Axis
from helix_projections.simulation.panels import Picture, Sketch, picture
from helix_projections.simulation.table import Table, as_csv, columns, legend, records, rows
from helix_projections.simulation.target import worst

TERMINAL = "-"
MISSING = "needs the extra 'analytics': pip install 'helix-es[analytics]'"


def check_outputs(options: dict[str, Any], axes: Sequence[Axis]) -> None:
    """Refuse what could not be written, before anything is simulated. Raises UsageError, Misconfigured."""
    for name in options["plots"]:
        if name != TERMINAL and Path(name).suffix.lower() not in (".png", ".svg"):
            raise Misconfigured(f"--plot {name}: must end in .png or .svg, or be - for the terminal")
        if name == TERMINAL and (options["as_json"] or options["as_csv"]):
            raise click.UsageError("--plot - goes with the table; with --json or --csv write a file")
    if options["plots"] and not any(axis.varied for axis in axes):
        raise Misconfigured(
            "--plot needs something that varies: give a range, as in --coefficient mistral=1..16"
        )
    for path in [*(Path(name) for name in options["plots"] if name != TERMINAL), options["parquet"]]:
        if path is not None and not path.absolute().parent.is_dir():
            raise Misconfigured(f"{path}: the folder {path.parent} is not there; make it first")


def present(table: Table, options: dict[str, Any]) -> None:
    """Print and write what the options ask for."""
    if options["as_json"]:
        show_json({"about": table.about, "rows": json_rows(table)})
    elif options["as_csv"]:
        sys.stdout.write(as_csv(table))
    else:
        print("\n".join(table.about.lines()))
        print(f"columns {legend(table)}\n")
        show_table(columns(table), [list(row) for row in rows(table)])
    write_parquet(table, options["parquet"])
    if options["plots"]:
        drawn = picture(sketch(table))
        for name in options["plots"]:
            plot(drawn, name)


def json_rows(table: Table) -> list[dict[str, Any]]:
    """Return a value for each row: what it is, its settings and everything that was measured."""
    return [
        {
            "row": words,
            "settings": settings,
            "measures": measures,
            **({"reached": worst(table.targets, measures) >= 1} if table.targets else {}),
        }
        for words, settings, measures in table.lines()
    ]


def sketch(table: Table) -> Sketch:
    """Return what the table's picture is made of."""
    about = table.about
    return Sketch(
        title=about.source,
        notes=(f"{about.times}; {about.fleet}", f"{about.rules}", f"service: {'; '.join(about.service)}"),
        axes=table.axes,
        answers=table.answers,
        within_ms=table.within_ms,
        targets=table.targets,
        was=table.was,
    )


def write_parquet(table: Table, path: Path | None) -> None:
    """Write everything that was measured to `path`, if one is given."""
    if path is None:
        return
    try:
        from helix_es.analytics import tables
    except ImportError:
        fail(f"--parquet {MISSING}")
    lines = {
        name: "\n".join(value) if isinstance(value, tuple) else value for name, value in _about(table).items()
    }
    tables.write_parquet(path, records(table), lines)


def _about(table: Table) -> dict[str, Any]:
    about = table.about
    return {name: getattr(about, name) for name in about.__struct_fields__}


def plot(drawn: Picture, name: str) -> None:
    """Write a picture to the file `name`, or to the terminal."""
    if name == TERMINAL:
        try:
            from helix_projections.simulation import terminal
        except ImportError:
            fail(f"--plot {MISSING}")
        width = shutil.get_terminal_size().columns
        colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print("\n" + terminal.text(drawn, width=width, colours=colours))
        return
    try:
        from helix_projections.simulation import plots
    except ImportError:
        fail(f"--plot {MISSING}")
    plots.draw(drawn, Path(name))
    print(f"wrote {name}", file=sys.stderr)
