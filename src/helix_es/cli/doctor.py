"""`helix doctor`: what is well, what is not, and what to do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import rich_click as click

from helix_es.cli.client import api_key, url_option, written_url
from helix_es.cli.output import fail, json_option, show_json
from helix_es.cli.serve import NATS_OPTIONS
from helix_es.core.errors import Misconfigured

if TYPE_CHECKING:
    from helix_es.cli.checks import Check
    from helix_es.jetstream.client import Connection

CONNECT_S = 3.0
DEFAULT_NATS = "nats://127.0.0.1:4222"
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def identified(command: Any) -> Any:
    """Add the options that say who we are to the NATS server."""
    for option in NATS_OPTIONS[1:4]:
        command = option(command)
    return command


@click.command()
@url_option
@click.option("--nats", "nats_url", help="URL of the NATS server; by default that of the 'helix up' here.")
@identified
@json_option
def doctor(url: str, nats_url: str | None, as_json: bool, **identity: Any) -> None:
    """Check this machine, the broker, the scheduler, the API and the floor."""
    try:
        key = api_key()
    except Misconfigured as error:
        fail(str(error), 2)
    _log_nothing()
    from helix_es.cli.checks import run_all

    address, origin = _nats(nats_url)
    found = run_all(url, key, f"{address}{origin}", lambda: _connect(address, identity))
    good = all(check.status != "fail" for check in found)
    if as_json:
        show_json({"ok": good, "checks": found})
    else:
        _show(found)
    raise SystemExit(0 if good else 1)


def _nats(given: str | None) -> tuple[str, str]:
    """Return the server's URL and where it comes from."""
    if given:
        return given, ""
    if (written := written_url("nats.url")) is not None:
        return written, " (from var/helix/nats.url)"
    if named := os.environ.get("HELIX_NATS_URL"):
        return named, " (from HELIX_NATS_URL)"
    return DEFAULT_NATS, ""


def _log_nothing() -> None:
    """Findings say everything; the log lines of the connection would say it again."""
    import structlog

    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


async def _connect(url: str, identity: dict[str, Any]) -> Connection:
    from helix_es.jetstream.client import NatsSettings, connect

    user = identity["nats_user"]
    settings = NatsSettings(
        url=url,
        name="helix-doctor",
        nkey_seed_file=identity["nats_seed_file"],
        tls_ca_file=identity["nats_ca_file"],
        inbox_prefix=f"_INBOX_{user}" if user else "_INBOX",
        connect_timeout_s=CONNECT_S,
    )
    return await connect(settings)


def _show(found: list[Check]) -> None:
    from rich.console import Console
    from rich.text import Text

    from helix_es.cli.talk import printable

    console = Console(highlight=False, soft_wrap=True)
    wide = max(len(check.check) for check in found)
    for check in found:
        line = Text(f"{check.status:<4}  ", style=COLOURS[check.status])
        line.append(f"{check.check:<{wide}}  {printable(check.found)}", style="default")
        console.print(line)
        if check.advice:
            console.print(Text(f"{'':<{6 + wide}}  → {printable(check.advice)}"))
    bad = sum(check.status == "fail" for check in found)
    warned = sum(check.status == "warn" for check in found)
    console.print(Text(f"\n{len(found)} checks: {bad} failed, {warned} warnings"))
