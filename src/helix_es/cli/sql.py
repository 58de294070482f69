"""`helix sql`: ask the log's tables, through the API or straight from a file."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from helix_es.cli.client import ANSWER_S, Api, api_key, url_option
from helix_es.cli.output import FAILED, WRONG_USE, fail, show_json
from helix_es.cli.talk import printable
from helix_es.core.errors import HelixError, Misconfigured

FORMS = ("table", "csv", "json")
CELL_CHARS = 200  # of a table; csv and json have the whole
WIDE = 10_000  # of what is no terminal: a line a row, nothing folded, for whoever reads it next
WRONG = ("sql_refused", "sql_error", "unknown_query", "invalid_request")  # codes of what was asked wrongly
QUERY_S, QUERY_ROWS = 60.0, 10_000  # of one's own file, where nobody else waits

Row = dict[str, Any]


def _form(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.params["form"] = "json"


@click.command()
@click.argument("statement", metavar="[SQL]", required=False)
@click.option("--query", "-q", help="Run the query of this name; see --list.")
@click.option(
    "--list", "listing", is_flag=True, help="List the queries that have a name, and what they take."
)
@click.option(
    "--param", "-p", "pairs", multiple=True, metavar="NAME=VALUE", help="Of a query, or $NAME in SQL."
)
@click.option("--limit", type=click.IntRange(0), help="Rows.  [default: 10000]")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), help="Seconds.  [default: 10]"
)
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, path_type=Path),
    help="Ask this database, folder of 'helix analytics' or Parquet export, not the API.",
)
@url_option
@click.option("--format", "-o", "form", type=click.Choice(FORMS), default="table", show_default=True)
@click.option("--json", is_flag=True, expose_value=False, callback=_form, help="Same as --format json.")
def sql(statement: str | None, listing: bool, form: str, **options: Any) -> None:
    """Ask the log's tables. SQL is one SELECT, or - to read it from stdin.

    'SHOW TABLES' and 'DESCRIBE turns' say what there is.
    """
    if listing:
        if statement is not None or options["query"]:
            fail("--list takes no SQL and no --query", WRONG_USE)
        _list(form)
        return
    body = _body(statement, options)
    with _told():
        found = _from_file(options["path"], body) if options["path"] else _from_api(options["url"], body)
    _show(found, form)


def _body(statement: str | None, options: dict[str, Any]) -> Row:
    """Return what is asked, as the API takes it; what is missing or too much ends the command."""
    if (statement is None) == (options["query"] is None):
        fail("give one SELECT, or --query NAME; 'helix sql --list' shows the names", WRONG_USE)
    text = _text_of(statement)
    given = {
        "sql": text,
        "query": options["query"],
        "params": _params(options["pairs"]) or None,
        "limit": options["limit"],
        "timeout_s": options["timeout_s"],
    }
    return {name: value for name, value in given.items() if value is not None}


def _text_of(statement: str | None) -> str | None:
    if statement is None:
        return None
    try:
        text = sys.stdin.read() if statement == "-" else statement
        text.encode()
    except UnicodeError:
        fail("the SQL is not UTF-8", WRONG_USE)
    if not text.strip():
        fail("the SQL is empty", WRONG_USE)
    return text


def _params(texts: Sequence[str]) -> Row:
    pairs = [_pair(text) for text in texts]
    params = dict(pairs)
    if len(params) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        fail(f"--param {twice} is given twice", WRONG_USE)
    return params


def _pair(text: str) -> tuple[str, Any]:
    """Return the name and the value of NAME=VALUE: a number, true, false or null as such, the rest as text."""
    name, equals, value = text.partition("=")
    if not equals or not name or not text.isprintable():
        fail(f"--param {text}: must be NAME=VALUE", WRONG_USE)
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return name, value
    return name, found if found is None or isinstance(found, bool | int | float) else value


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Misconfigured as error:
        fail(str(error), WRONG_USE)
    except HelixError as error:
        fail(printable(str(error)), WRONG_USE if error.code in WRONG else FAILED)


def _from_api(url: str, body: Row) -> Row:
    with Api(url, api_key(), answer_s=ANSWER_S + body.get("timeout_s", 0)) as api:
        found: Row = api.post("/api/v1/sql", body)
    return found


def _from_file(path: Path, body: Row) -> Row:
    from helix_es.analytics.keeper import Keeper
    from helix_es.analytics.questions import Limits, Question

    keeper = Keeper(path, Limits())
    try:
        asked = Question(**{"limit": QUERY_ROWS, "timeout_s": QUERY_S, **body})
        found: Row = msgspec.json.decode(keeper.ask(asked))
    finally:
        keeper.close()
    return found


def _list(form: str) -> None:
    from helix_es.analytics.named import shipped

    queries = list(shipped().values())
    if form == "json":
        show_json({"object": "list", "data": queries})
    elif form == "csv":
        rows = [[each.name, each.description, "; ".join(map(_takes, each.params))] for each in queries]
        _write_csv(["query", "description", "params"], rows)
    else:
        for each in queries:
            print(
                "\n  ".join(
                    [each.name, each.description, *(f"  -p {_takes(param)}" for param in each.params)]
                )
            )


def _takes(param: Any) -> str:
    default = f" [{param.default}]" if param.default is not None else ""
    return f"{param.name}={param.type}{default}: {param.description}"


def _show(found: Row, form: str) -> None:
    if form == "json":
        show_json(found)
        return
    names = [column["name"] for column in found["columns"]]
    if form == "csv":
        _write_csv(names, found["rows"])
    else:
        _write_table(
            [_cell(name) for name in names], [[_cell(cell) for cell in row] for row in found["rows"]]
        )
    count = len(found["rows"])
    more = ", and there are more: see --limit, or select less" if found["truncated"] else ""
    said = f"{count} row{'' if count == 1 else 's'}{more}; {found['elapsed_ms']} ms"
    print(f"{said}, as of {found['as_of'] or '-'} (sequence {found['seq']})", file=sys.stderr)


def _write_table(names: list[str], rows: list[list[str]]) -> None:
    """Print a table in which nothing is left out: a terminal folds it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)


def _write_csv(names: list[str], rows: list[list[Any]]) -> None:
    """Write RFC 4180, but for line ends; null is empty, what is nested is JSON."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if cell is None else _text(cell) for cell in row] for row in rows])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = printable(" ".join(_text(value).split()))
    return text if len(text) <= CELL_CHARS else f"{text[: CELL_CHARS - 1]}…"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
