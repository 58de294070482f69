"""The story of a session in words: what `helix why` prints."""

from __future__ import annotations

from collections.abc import Iterator

from helix_es.cli.instants import clock, day_clock, lasted
from helix_es.cli.waited import ENDED, RELEASED, count, named, wait_lines
from helix_es.core.story import Release, Run, Story, TurnStory, Wait


def story_lines(story: Story, only: int | None = None) -> Iterator[str]:
    """Yield the lines; `only` that turn."""
    work = "fine-tune of" if story.mode == "finetune" else f"{story.type} with"
    priority = f", priority {story.priority}" if story.priority else ""
    adapter = f", adapter {story.adapter}" if story.adapter else ""
    closed = f", closed {clock(story.closed_ms)}" if story.closed_ms else ""
    yield f"Session {story.session} of {story.owner}: {work} {story.model}{adapter}{priority}"
    yield f"came in {day_clock(story.created_ms)}{closed}"
    releases = [each for each in story.releases if not _told_in_turn(story, each)]
    for number, told in enumerate(story.turns):
        after = story.turns[number + 1].seq if number + 1 < len(story.turns) else story.log_seq + 1
        if only in (None, told.turn):
            yield ""
            yield from _turn(story, told)
            for each in releases:
                if told.seq < each.seq < after:
                    yield _release(each)


def _told_in_turn(story: Story, release: Release) -> bool:
    """Whether a turn was open then: its line says it."""
    return any(each.seq == release.seq for turn in story.turns for each in turn.waits) or any(
        run.ended_seq == release.seq for turn in story.turns for run in turn.runs
    )


def _release(release: Release) -> str:
    waited = f", {release.waiting} waited" if release.reason == "idle" else ""
    return (
        f"  {clock(release.at_ms)} gave its slot on {release.gpu} back: "
        f"{RELEASED[release.reason]}{waited} (sequence {release.seq}, decided at {release.decided_seq})"
    )


def _turn(story: Story, told: TurnStory) -> Iterator[str]:
    how = "straight to the GPU that held the session" if told.straight else "at the door"
    yield f"Turn {told.turn}, said {clock(told.at_ms)} (sequence {told.seq}): {how}"
    before_ms = told.at_ms
    parts: list[Wait | Run] = [*told.waits, *told.runs]
    for part in sorted(parts, key=lambda each: each.seq):
        if isinstance(part, Wait):
            yield from wait_lines(part, batch=story.mode == "finetune")
        else:
            yield from _run(part, before_ms)
        before_ms = part.ended_ms or before_ms
    yield f"  {_end(story, told)}"


def _end(story: Story, told: TurnStory) -> str:
    if told.ended_ms is None:
        return f"is {told.state} at the end of the log, {clock(story.log_ms)}"
    took = lasted(told.ended_ms - told.at_ms)
    first = ""
    if told.first_token_ms is not None:
        first = f", first token after {lasted(told.first_token_ms - told.at_ms)}"
    tokens = told.usage.completion_tokens
    used = f", {told.usage.prompt_tokens} tokens in, {tokens} out" if tokens else ""
    error = f": {told.error.code}: {told.error.message}" if told.error is not None else ""
    return f"→ {told.state} {took} after it was said{first}{used}{error}"


# -- on a GPU


def _run(run: Run, before_ms: int) -> Iterator[str]:
    attempt = f", attempt {run.attempt}" if run.attempt > 1 else ""
    after = lasted(max(0, run.at_ms - before_ms))
    yield f"  ran on {run.gpu} from {clock(run.at_ms)} (sequence {run.seq}{attempt}), {after} later; {_beside(run)}"
    if run.asked_to_stop_ms is not None:
        yield f"    asked to stop at {clock(run.asked_to_stop_ms)}"
    if run.asked_to_yield_ms is not None:
        made = f"{count(run.checkpoints, 'checkpoint')} made in all"
        yield f"    asked to give way at {clock(run.asked_to_yield_ms)}, {made}"
    if run.end is None or run.ended_ms is None:
        yield "    still runs"
        return
    error = f": {run.error.code}: {run.error.message}" if run.error is not None else ""
    ended = ENDED.get(run.end) or RELEASED[run.end]
    yield f"    {lasted(run.ended_ms - run.at_ms)} later: {ended}{error}"


def _beside(run: Run) -> str:
    if not run.slots:
        return "the GPU was given up by then"
    if not run.beside:
        return f"alone on {count(run.slots, 'slot')}"
    words = [f"{each.session} ({each.owner}, {each.state})" for each in run.beside]
    return f"{len(words) + 1} of {run.slots} slots held, beside {named(words, len(words))}"
