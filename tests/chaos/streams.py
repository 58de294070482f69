"""What clients read against what the log has: no token lost, none doubled, whatever the stream was carried over."""

from __future__ import annotations

from helix_runners.simulated.words import answer
from tests.chaos.lives import Lives, TurnLife
from tests.chaos.told import SIMULATED, Stream, Told
from tests.chaos.violation import Violation

STATES = {
    "turn.completed": "completed",
    "turn.failed": "failed",
    "turn.cancelled": "cancelled",
    "session.released": "cancelled",
    "session.closed": "cancelled",
}
"""How a turn ended -> what clients are told."""


def streams(lives: Lives, told: Told) -> list[Violation]:
    """Return what clients were told wrongly, and what simulated GPUs said that is not their text."""
    found = [each for stream in told.streams for each in _stream(lives, stream)]
    for life in lives.sessions.values():
        created = life.created
        if created is not None and (created.mode, created.type) == ("create", "text"):
            found += [each for turn in life.turns for each in _simulated(turn, created.params)]
    return found


def _stream(lives: Lives, stream: Stream) -> list[Violation]:
    turn = lives.turn(stream.session, stream.turn)
    if turn is None:  # told by `ended once`
        return []
    wrong = [f"turn {stream.turn}: {each}" for each in stream.breaks]
    if stream.state and turn.end and stream.state != STATES[turn.end]:
        wrong.append(f"turn {stream.turn} ended by {turn.end}, told was {stream.state}")
    if stream.state and turn.end in ("turn.completed", "turn.cancelled") and stream.output != turn.output:
        wrong.append(
            f"turn {stream.turn}: the output that was told is not the log's{_differ(stream.output, turn)}"
        )
    if stream.followed and stream.state and _whole(turn) and stream.text != turn.output:
        wrong.append(
            f"turn {stream.turn}: what was streamed is not the output, after {stream.resumes} resumes"
            f"{_differ(stream.text, turn)}"
        )
    about = {"seq": turn.end_seq, "session": stream.session}
    return [Violation(rule="streams", text=each, **about) for each in wrong]  # type: ignore[arg-type]


def _whole(turn: TurnLife) -> bool:
    """Whether the end carries all that the attempt said: one that a runner appended."""
    return turn.end == "turn.completed" or (turn.end == "turn.cancelled" and turn.output != "")


def _differ(text: str, turn: TurnLife) -> str:
    """Say where two texts part."""
    at = next((n for n, (a, b) in enumerate(zip(text, turn.output, strict=False)) if a != b), None)
    at = min(len(text), len(turn.output)) if at is None else at
    return (
        f": at {at} of {len(turn.output)} characters {text[at : at + 20]!r} for {turn.output[at : at + 20]!r}"
    )


def _simulated(turn: TurnLife, params: dict[str, object]) -> list[Violation]:
    """A simulated answer follows from its turn's name; what was cut short is the beginning of it."""
    if not turn.started or not turn.started[-1].gpu.startswith(SIMULATED):
        return []
    whole = answer(turn.session, turn.turn, {**params, **turn.params})
    good = turn.output == whole if turn.end == "turn.completed" else whole.startswith(turn.output)
    if good:
        return []
    text = f"turn {turn.turn}: the output is not what a simulated GPU says{_differ(whole, turn)}"
    return [Violation(rule="streams", seq=turn.end_seq, session=turn.session, text=text)]
