"""`helix why`: for each turn of a session why it waited, who was ahead, and which decision admitted it."""

from __future__ import annotations

from typing import Any

import msgspec
import rich_click as click

from helix_es.cli.archives import archive_options, check_options, opened
from helix_es.cli.instants import rfc3339
from helix_es.cli.output import fail, json_option, run, show_json
from helix_es.cli.serve import log_lines
from helix_es.cli.waited import count
from helix_es.core.story import Story
from helix_es.core.why import Why


@click.command()
@click.argument("session")
@click.option("--turn", type=click.IntRange(min=1), help="Only this one.")
@archive_options
@json_option
def why(session: str, turn: int | None, as_json: bool, **options: Any) -> None:
    """Say for each turn of SESSION why it waited, who was ahead and who passed it, what was free and did not help,
    which decision admitted it, and how it ended."""
    check_options(options)
    log_lines()

    async def work() -> None:
        asked = Why(session)
        async with opened(options) as source:
            async for records in source.archive.read():
                for record in records:
                    asked.take(record)
            name = source.archive.name
        story = asked.story
        if story is None:
            fail(f"there is no session {session!r} in {name}{_similar(asked.similar)}")
        if turn is not None and turn not in [each.turn for each in story.turns]:
            fail(f"session {session} has {count(len(story.turns), 'turn')}, no turn {turn}")
        _show(story, turn, as_json=as_json)

    run(work)


def _similar(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _show(story: Story, turn: int | None, *, as_json: bool) -> None:
    from helix_es.cli.reasons import story_lines
    from helix_es.cli.talk import printable

    if not as_json:
        for line in story_lines(story, turn):
            print(printable(line))
        return
    shown = msgspec.to_builtins(story)
    if turn is not None:
        shown["turns"] = [each for each in shown["turns"] if each["turn"] == turn]
    show_json(_timed(shown))


def _timed(value: Any) -> Any:
    """Return `value` with every instant as the API writes it: `…_ms` of the log's clock becomes `…_at`."""
    if isinstance(value, list):
        return [_timed(each) for each in value]
    if not isinstance(value, dict):
        return value
    return dict(_named(key, each) for key, each in value.items())


INSTANTS = {
    "at_ms": "at",
    "created_ms": "created_at",
    "closed_ms": "closed_at",
    "log_ms": "log_at",
    "queued_ms": "queued_at",
    "ended_ms": "ended_at",
    "admitted_ms": "admitted_at",
    "decided_at_ms": "decided_at",
    "first_token_ms": "first_token_at",
    "since_ms": "since_at",
    "asked_to_stop_ms": "asked_to_stop_at",
    "asked_to_yield_ms": "asked_to_yield_at",
}


def _named(key: str, value: Any) -> tuple[str, Any]:
    if key in INSTANTS:
        return INSTANTS[key], None if value is None else rfc3339(value)
    return key, _timed(value)
