"""`helix image`: a picture, or several, from a prompt; a further turn of the session changes it."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from helix_es.cli.chat import INTERRUPTED
from helix_es.cli.client import Api, calling, url_option
from helix_es.cli.output import fail, show_json
from helix_es.core.params import SIDE_STEP

if TYPE_CHECKING:
    from helix_es.cli.answer import Answer
    from helix_es.cli.talk import Teller

DEFAULT_MODEL = "scenes"
SUFFIX = ".png"
SIDES = range(16, 4096 + 1, SIDE_STEP)


def _checked_session(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise click.BadParameter("must be a session id, as this command says it on stderr")
    return value


def _checked_file(_ctx: click.Context, _param: click.Parameter, value: Path) -> Path:
    if value.suffix.lower() != SUFFIX:
        raise click.BadParameter(f"pictures are PNG: the name must end with {SUFFIX}")
    if not value.parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.parent}")
    return value


def _checked_size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> dict[str, int]:
    if value is None:
        return {}
    sides = [int(side) for side in value.split("x")] if re.fullmatch(r"\d{1,5}x\d{1,5}", value) else []
    if not sides or any(side not in SIDES for side in sides):
        raise click.BadParameter(
            f"must be WIDTHxHEIGHT, each {SIDES[0]} to {SIDES[-1]} pixels and a multiple of {SIDE_STEP}"
        )
    return dict(zip(("width", "height"), sides, strict=True))


@click.command()
@url_option
@click.option(
    "-o",
    "to",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_checked_file,
    help="Where the picture goes, *.png; several are numbered: FILE-1.png …",
)
@click.option(
    "--session", "session_id", callback=_checked_session, help="Change this session's last picture."
)
@click.option("--model", help=f"Catalogue slug or full name.  [default: {DEFAULT_MODEL}]")
@click.option("--negative", "negative_prompt", help="What should not be in it.")
@click.option("--size", callback=_checked_size, metavar="WxH", help="Pixels; by default the model's own.")
@click.option("--steps", type=click.IntRange(1, 1000), help="More take longer and show more.")
@click.option("--guidance", type=click.FloatRange(0, 50), help="How closely it keeps to the prompt.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="The same makes the same picture again.")
@click.option("--count", type=click.IntRange(1, 64), help="Pictures; each further one has the next seed.")
@click.option(
    "--strength", type=click.FloatRange(0.05, 1), help="With --session: how much changes, 1 is all."
)
@click.option("--json", "as_json", is_flag=True, help="The turn, as JSON with the paths in it.")
@click.argument("prompt")
def image(
    url: str,
    to: Path,
    session_id: str | None,
    model: str | None,
    size: dict[str, int],
    as_json: bool,
    prompt: str,
    **params: Any,
) -> None:
    """Make a picture of PROMPT and write it to a file; its path is printed, and how it was made is in it.

    Ctrl-C cancels it.
    """
    if session_id is not None and model is not None:
        raise click.UsageError("--model belongs to a new session; leave it out with --session")
    if session_id is None and params["strength"] is not None:
        raise click.UsageError("--strength is for changing a picture; name its session with --session")
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    given = {name: value for name, value in {**params, **size}.items() if value is not None}
    from helix_es.cli.talk import Teller

    teller = Teller(sys.stderr)
    with calling(url) as api:
        session_id, number = _asked(api, session_id, model or DEFAULT_MODEL, prompt, given)
        turn = _ended(api, session_id, number, teller)
        paths = _fetched(api, turn["files"], to) if turn["state"] == "completed" else []
    _say(session_id, turn, paths, as_json, teller)


def _asked(
    api: Api, session_id: str | None, model: str, prompt: str, params: dict[str, Any]
) -> tuple[str, int]:
    """Begin the turn, of a new session unless one is given; return the session's id and the turn's number."""
    body = {"prompt": prompt, "params": params}
    if session_id is not None:
        return session_id, int(api.post(f"/api/v1/sessions/{session_id}/turns", body)["turn"])
    session = api.post("/api/v1/sessions", {"model": model, "type": "image", **body})
    return str(session["session_id"]), len(session["turns"])


def _ended(api: Api, session_id: str, number: int, teller: Teller) -> dict[str, Any]:
    """Wait for the end of the turn and return it; Ctrl-C cancels it and ends the command."""
    from helix_es.cli.answer import Answer

    answer = Answer(api, session_id, number)
    try:
        return _follow(answer, teller)
    except KeyboardInterrupt:
        teller.line("cancelling …")
        api.post(f"/api/v1/sessions/{session_id}/turns/{number}/cancel")
        _follow(answer, teller)
        teller.line(f"session {session_id}")
        raise SystemExit(INTERRUPTED) from None
    finally:
        teller.clear()


def _follow(answer: Answer, teller: Teller) -> dict[str, Any]:
    from helix_es.cli.answer import Dropped, Ended, Place, Progress
    from helix_es.cli.talk import place_line

    cut = False
    with closing(answer.updates()) as updates:
        for update in updates:
            match update:
                case Place() as place:
                    teller.status(place_line(place))
                case Progress(step, steps, detail):
                    if sys.stderr.isatty():  # elsewhere, each step would be a line
                        teller.status(f"step {step} of {steps}")
                    if detail.get("truncated") and not cut:
                        cut = True
                        teller.line("the prompt is longer than the model reads: its end is left out")
                case Dropped(why):
                    teller.status(f"{why}; trying again …")
                case Ended(turn):
                    return turn
                case _:
                    pass
    raise AssertionError("the updates of an answer end with its end")


def _fetched(api: Api, files: list[str], to: Path) -> list[Path]:
    """Download the pictures; return their paths."""
    several = len(files) > 1
    paths = [to.with_stem(f"{to.stem}-{number}") if several else to for number in range(1, len(files) + 1)]
    for file, path in zip(files, paths, strict=True):
        try:
            api.download(f"/api/v1/files/{file}/content", path)
        except OSError as error:
            fail(f"{path} cannot be written: {error.strerror or error}; the picture is file {file}")
    return paths


def _say(session_id: str, turn: dict[str, Any], paths: list[Path], as_json: bool, teller: Teller) -> None:
    """Results on stdout; on stderr how to go on, or what went wrong."""
    from helix_es.cli.talk import ending

    if as_json:
        show_json({"session_id": session_id, **turn, "paths": [str(path) for path in paths]})
    else:
        for path in paths:
            print(path)
    teller.line(f"session {session_id}")
    if (said := ending(turn)) is not None:
        fail(said)
    if not paths:
        fail(f"turn {turn['turn']} made no picture: session {session_id} is not one of images")
