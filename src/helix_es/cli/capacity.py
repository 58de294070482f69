"""What `helix models --explain` prints: a table for each model, 120 columns wide."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from helix_es.cli.output import show_table
from helix_es.cli.talk import printable

Row = dict[str, Any]

COLUMNS = ["KIND", "GPUS", "SLOTS", "FROM", "DERIVATION"]
MOST_LOWERED = 5  # of one kind; the JSON names them all


def show_capacities(rows: list[Row]) -> None:
    """Print coefficients, model by model."""
    for number, (model, kinds) in enumerate(groupby(rows, key=lambda row: str(row["model"]))):
        if number:
            print()
        print(printable(model))
        show_table(COLUMNS, [capacity_cells(row) for row in kinds])


def capacity_cells(row: Row) -> list[str]:
    """Return the cells of one kind; the derivation has a line for each of its steps."""
    cells = [row["kind"], row["gpus"] or "-", row["coefficient"], row["source"]]
    return [*(printable(str(cell)) for cell in cells), "\n".join(map(printable, _steps(row)))]


def _steps(row: Row) -> list[str]:
    steps = str(row["line"]).split("; ")
    if row["reason"]:
        steps.append(str(row["reason"]))
    lowered = row["lowered"]
    if lowered:
        named = ", ".join(f"{each['gpu']} {each['slots']}" for each in lowered[:MOST_LOWERED])
        more = f" and {len(lowered) - MOST_LOWERED} more" if len(lowered) > MOST_LOWERED else ""
        steps.append(f"lowered since memory ran out: {named}{more}")
    return steps
