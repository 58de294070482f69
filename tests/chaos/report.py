"""What is said of a run: the proof, the figures, and each violation with the records of its session."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from helix_es.core.codec import encode
from helix_es.core.events import Recorded
from tests.chaos.figures import Figures
from tests.chaos.proof import Proof
from tests.chaos.spread import Spread
from tests.chaos.told import Run
from tests.chaos.violation import Rule, Violation

SHOWN = 20  # violations in full
RECORDS = 40  # of the session of one
WIDTH = 140
PROMISES: dict[Rule, str] = {
    "log": "the log was read whole, every record is readable",
    "ended once": "every turn ended exactly once, none that was acknowledged is missing",
    "asked once": "no request made two turns or two sessions",
    "slots": "no GPU above its slots, none given away while it holds somebody",
    "reserved": "no reserved GPU served a chat, none was given to chats below the reservation",
    "streams": "no token lost or doubled; what was told is what the log has",
    "replayed": "every decision is made again, exactly, from the state that it names",
    "attempts": "every fact is of the attempt that started last; attempts have no gaps",
}


def write(run: Run, found: Figures, proof: Proof, folder: Path) -> None:
    """Write report.json."""
    report = {
        "seed": run.seed,
        "holds": not proof.violations,
        "violations": proof.violations,
        "figures": found,
        "strikes": run.strikes,
        "endings": run.endings,
    }
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def show(run: Run, found: Figures, proof: Proof, records: Sequence[Recorded]) -> None:
    """Print it all."""
    console = Console(width=WIDTH, highlight=False)
    _proof(console, proof)
    _figures(console, found)
    for ending in run.endings:
        console.print(f"ended by itself: {ending.process}, code {ending.code}", style="yellow")
        console.print(escape(ending.said[-600:]), style="dim")
    for violation in proof.violations[:SHOWN]:
        _violation(console, violation, records)
    if len(proof.violations) > SHOWN:
        console.print(f"… and {len(proof.violations) - SHOWN} more violations in report.json")
    verdict = "[bold green]the proof holds" if not proof.violations else "[bold red]the proof does not hold"
    console.print(f"seed {run.seed}: {verdict}")


def _proof(console: Console, proof: Proof) -> None:
    broken = Counter(violation.rule for violation in proof.violations)
    table = Table("promise", "", "violations", box=None, header_style="bold", title_justify="left")
    for rule in get_args(Rule):
        count = broken[rule]
        table.add_row(rule, PROMISES[rule], f"[red]{count}" if count else "[green]none")
    console.print(table)


def _figures(console: Console, found: Figures) -> None:
    table = Table("figure", "", box=None, header_style="bold")
    for name, value in msgspec.structs.asdict(found).items():
        if name == "failovers":
            for each in found.failovers:
                table.add_row(
                    "failover_ms",
                    f"{each.gap_ms}, after: {escape(each.cause)}{'' if each.standby else '; no standby'}",
                )
        else:
            table.add_row(name, escape(_shown(value)))
    console.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, Spread):
        return f"p50 {value.p50}, p95 {value.p95}, most {value.most} (of {value.count})"
    if isinstance(value, Mapping):
        between = "\n" if any(isinstance(each, Spread) for each in value.values()) else ", "
        return between.join(f"{key}: {_shown(each)}" for key, each in value.items()) or "none"
    return str(value)


def _violation(console: Console, violation: Violation, records: Sequence[Recorded]) -> None:
    about = " ".join(part for part in (violation.session, violation.gpu) if part)
    line = f"[bold red]{violation.rule}[/] at {violation.seq} {escape(about)}: {escape(violation.text)}"
    console.print(line)
    root, name = ("session", violation.session) if violation.session else ("gpu", violation.gpu)
    told = [record for record in records if name and record.subject.startswith(f"{root}.{name}.")]
    for record in told[:RECORDS]:
        payload = encode(record.event).decode() if record.event is not None else "unreadable"
        console.print(f"  {record.seq} {record.at_ms} {escape(payload[:240])}", style="dim")
