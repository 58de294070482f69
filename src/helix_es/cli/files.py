"""`helix files`: what was uploaded and made, to list, to bring and to fetch."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rich_click as click

from helix_es.cli.client import calling, url_option
from helix_es.cli.output import json_option, show_json

PURPOSES = ["dataset", "image", "adapter", "checkpoint", "artefact"]


@click.group(invoke_without_command=True)
@url_option
@click.option("--purpose", type=click.Choice(PURPOSES), help="Only those.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--after", help="Go on after this file id.")
@json_option
@click.pass_context
def files(ctx: click.RichContext, /, url: str, as_json: bool, **filters: Any) -> None:
    """List files, newest first; `put` and `get` move them."""
    if ctx.invoked_subcommand is not None:
        return
    with calling(url) as api:
        page = api.get("/api/v1/files", **filters)
    if as_json:
        show_json(page)
        return
    from helix_es.cli.show import age, show

    now = datetime.now(UTC)
    columns = ["FILE", "NAME", "PURPOSE", "BYTES", "SESSION", "AGE"]
    keys = ["file_id", "name", "purpose", "size", "session_id"]
    show((columns, [[*(row[key] for key in keys), age(row["created_at"], now)] for row in page["data"]]))


@files.command("put")
@url_option
@json_option
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def put(url: str, as_json: bool, path: Path) -> None:
    """Upload the dataset PATH; it is checked line by line."""
    with calling(url) as api:
        stored = api.upload(path, "dataset")
    if as_json:
        show_json(stored)
    else:
        print(stored["file_id"])


@files.command("get")
@url_option
@click.option("-o", "to", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Where to.")
@click.argument("file_id")
def get(url: str, to: Path, file_id: str) -> None:
    """Download FILE_ID."""
    if not file_id.isascii() or not file_id.replace("-", "").replace("_", "").isalnum():
        raise click.UsageError("FILE_ID must be the id of a file, as 'helix files' lists it")
    if not to.parent.is_dir():
        raise click.UsageError(f"-o: there is no folder {to.parent}")
    with calling(url) as api:
        api.download(f"/api/v1/files/{file_id}/content", to)
    print(to)
