"""`helix replay --verify`: makes every decision of a log again, and says where it came out otherwise."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from helix_es.archive import Archive
from helix_es.cli.output import FAILED, fail, show_json
from helix_es.core.decision import RULES
from helix_es.core.verify import Difference, Report, Verification


async def check(archive: Archive) -> Report:
    """Return what came of deciding everything in `archive` again. It is read twice."""
    verification = Verification()
    last = 0
    async for records in archive.read():
        for record in records:
            verification.note(record)
            last = record.seq
    async for records in archive.read():
        for record in records:
            if record.seq <= last:  # the log goes on meanwhile
                verification.take(record)
    return verification.end()


async def verify(archive: Archive, *, as_json: bool, other_rules: bool = False) -> None:
    """Print the report; exit 1 if anything differs, or cannot be judged and `other_rules` does not allow that."""
    report = await check(archive)
    ok = report.ok and (other_rules or not report.other_rules)
    if as_json:
        shown = msgspec.to_builtins(report)
        show_json({"ok": ok, "log": archive.name, **shown})
    else:
        _show(report, archive.name)
    if report.differences and not as_json:
        for line in _told(report.differences[0]):
            print(line, file=sys.stderr)
    if report.ok and not ok:
        fail(
            f"{report.other_rules:,} decisions were made by another version of the rules than this release's, {RULES}, "
            "and are not verified: replay those with the release that made them, or pass over them with --other-rules"
        )
    if not ok:
        raise SystemExit(FAILED)


def _show(report: Report, name: str) -> None:
    print(f"{name}: {report.events:,} events to sequence {report.last_seq:,}")
    total = sum(report.reproduced.values())
    print(
        f"{total:,} decisions at {report.plans:,} instants are made again exactly, "
        f"{report.admissions:,} of them admissions:"
    )
    for kind, count in sorted(report.reproduced.items(), key=lambda each: -each[1]):
        print(f"  {kind:<18} {count:>9,}")
    if report.overtaken or report.unwritten:
        print(
            f"decided too, and not in the log: {report.overtaken:,} whose fence somebody else had moved, "
            f"{report.unwritten:,} whose scheduler ended or got no answer"
        )
    if report.late:
        print(f"{report.late:,} admissions stand after others of their plan: their append had to be repeated")
    if report.other_rules:
        print(
            f"{report.other_rules:,} decisions were made by other rules than this release's, {RULES}: not judged"
        )
    if report.ok:
        print("no difference" + (" in what could be judged" if report.other_rules else ""))


def _told(first: Difference) -> list[str]:
    lines = [
        f"helix: sequence {first.seq}: {first.what} "
        f"(decided at sequence {first.decided_seq}, clock {first.decided_at_ms})"
    ]
    if first.again is None:
        lines.append(f"  recorded: {_brief(first.recorded)}")
        return lines
    for key, value in first.recorded.items():
        if first.again.get(key) != value:
            lines.append(f"  {key}: recorded {value!r}, again {first.again.get(key)!r}")
    return lines


def _brief(event: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in event.items() if value not in (None, "", [], {}))
