"""How commands speak: results on stdout, progress and errors on stderr, exit codes 0, 1 and 2."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import msgspec
import rich_click as click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from helix_es.core.errors import HelixError, Misconfigured

FAILED = 1
WRONG_USE = 2


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Say one line on stderr and exit with `code`."""
    print(f"helix: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(code)


def run(work: Callable[[], Coroutine[Any, Any, None]], *, fast: bool = False) -> None:
    """Run a command's coroutine; errors of ours become one line. `fast` takes uvloop, for what serves."""
    try:
        with asyncio.Runner(loop_factory=_uvloop if fast else None) as runner:
            runner.run(work())
    except Misconfigured as error:
        fail(str(error), WRONG_USE)
    except HelixError as error:
        fail(str(error))
    except BaseExceptionGroup as group:
        _fail_with(group)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _fail_with(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    ours = group.subgroup(HelixError)
    if ours is None:
        raise group
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    fail(str(first), WRONG_USE if isinstance(first, Misconfigured) else FAILED)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--json` and `-o json`; the command gets `as_json`."""
    command = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")(command)

    def picked(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
        if value == "json":
            ctx.params["as_json"] = True

    return click.option(
        "-o",
        "output",
        type=click.Choice(["json", "table"]),
        expose_value=False,
        callback=picked,
        help="Output form.",
    )(command)


def show_json(value: Any) -> None:
    """Print `value` as JSON."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show_table(columns: list[str], rows: list[list[Any]]) -> None:
    """Print rows under their columns; plain when the output is no terminal."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
