"""`helix finetune`: an adapter from a dataset, watched until it is finished."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from helix_es.cli.chat import INTERRUPTED
from helix_es.cli.client import Api, calling, url_option
from helix_es.cli.output import fail, json_option, show_json
from helix_es.cli.recipe import Recipe, recipe_option
from helix_es.core.errors import Rejected
from helix_es.core.params import TrainParams, parsed
from helix_es.core.subjects import token

if TYPE_CHECKING:
    from helix_es.cli.answer import Answer
    from helix_es.cli.talk import Teller

DEFAULT_MODEL = "smollm2"
EVERY_S = 10.0  # between lines where they cannot replace each other


def _checked_name(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    try:
        return token(value, "it:")
    except Rejected as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@url_option
@click.option("--name", required=True, callback=_checked_name, help="What the adapter will be called.")
@click.option("--model", help=f"Base: catalogue slug or full name.  [default: {DEFAULT_MODEL}]")
@recipe_option
@click.option("--epochs", type=int, help="How often each example is learnt.")
@click.option("--max-steps", type=int, help="End earlier than the epochs do.")
@click.option("--learning-rate", type=float, help="Of the first step after the warm-up.")
@click.option("--warmup-steps", type=int, help="Steps until then.")
@click.option("--batch-size", type=int, help="Examples computed at once.")
@click.option("--gradient-accumulation", type=int, help="Batches in a step.")
@click.option("--sequence-tokens", type=int, help="Longer examples are cut.")
@click.option("--lora-rank", type=int, help="Size of the adapter.")
@click.option("--lora-alpha", type=float, help="Its weight; by default twice the rank.")
@click.option("--lora-dropout", type=float, help="Share of it left out by chance while learning.")
@click.option(
    "--load-in-4bit", is_flag=True, default=None, help="QLoRA: the base takes a quarter of the memory."
)
@click.option("--held-out", type=float, help="Share of the examples kept to measure on.")
@click.option("--checkpoint-steps", type=int, help="Steps between checkpoints.")
@click.option("--seed", type=int, help="Of all that is random.")
@click.option("--detach", is_flag=True, help="Do not wait for the end.")
@json_option
@click.argument("dataset", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def finetune(
    url: str,
    name: str,
    model: str | None,
    recipe: Recipe,
    detach: bool,
    as_json: bool,
    dataset: Path,
    **flags: Any,
) -> None:
    """Learn an adapter called NAME from DATASET, a file with one conversation as JSON in each line.

    Ctrl-C cancels it; what was learnt until then is kept as a checkpoint.
    """
    params = {**recipe.params, **{key: value for key, value in flags.items() if value is not None}}
    try:
        parsed(params, TrainParams)  # before a large file is sent for nothing
    except Rejected as error:
        raise click.UsageError(str(error)) from error
    from helix_es.cli.talk import Teller

    teller = Teller(sys.stderr)
    with calling(url) as api:
        file = _uploaded(api, dataset, recipe.forms, teller)
        body = {
            "model": model or recipe.model or DEFAULT_MODEL,
            "type": "text",
            "mode": "finetune",
            "dataset": file,
            "name": name,
            "params": params,
        }
        session = api.post("/api/v1/sessions", body)
        teller.line(f"session {session['session_id']}")
        if detach:
            _left(session, as_json)
            return
        turn = _watched(api, str(session["session_id"]), teller)
    _say(str(session["session_id"]), turn, name, as_json, teller)


def _uploaded(api: Api, dataset: Path, forms: tuple[str, ...], teller: Teller) -> str:
    """Send the dataset and return its file id; what is wrong with it is the API's to say."""
    teller.status(f"sending {dataset.name} …")
    try:
        stored = api.upload(dataset, "dataset")
    except OSError as error:
        teller.clear()
        fail(f"{dataset} cannot be read: {error.strerror or error}")
    finally:
        teller.clear()
    found = stored["dataset"]
    if forms and found["form"] not in forms:
        fail(f"{dataset} has the form {found['form']}, the recipe says {' or '.join(forms)}")
    teller.line(f"dataset {stored['file_id']}: {found['examples']} examples, form {found['form']}")
    return str(stored["file_id"])


def _left(session: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(session)
    else:
        print(session["session_id"])


def _watched(api: Api, session_id: str, teller: Teller) -> dict[str, Any]:
    """Wait for the end of the fine-tune and return its turn; Ctrl-C cancels it and ends the command."""
    from helix_es.cli.answer import Answer

    answer = Answer(api, session_id, 1)
    try:
        return _follow(answer, teller)
    except KeyboardInterrupt:
        teller.line("cancelling … the step that is computed now is still kept")
        api.post(f"/api/v1/sessions/{session_id}/turns/1/cancel")
        turn = _follow(answer, teller)
        if turn["state"] == "completed":
            return turn  # it was too late to cancel
        kept = f"; the adapter as it was then: {' '.join(turn['files'])}" if turn["files"] else ""
        teller.line(f"cancelled: its last checkpoint is kept{kept}")
        raise SystemExit(INTERRUPTED) from None
    finally:
        teller.clear()


def _follow(answer: Answer, teller: Teller) -> dict[str, Any]:
    from helix_es.cli.answer import Dropped, Ended, Place, Progress
    from helix_es.cli.talk import place_line

    watch = Watch(teller, live=sys.stderr.isatty())
    with closing(answer.updates()) as updates:
        for update in updates:
            match update:
                case Place() as place:
                    teller.status(place_line(place))
                case Progress(step, steps, detail):
                    watch.progress(step, steps, detail)
                case Dropped(why):
                    teller.status(f"{why}; trying again …")
                case Ended(turn):
                    watch.end()
                    return turn
                case _:
                    pass
    raise AssertionError("the updates of an answer end with its end")


class Watch:
    """Shows a training: in one line on a terminal, elsewhere with a line now and then."""

    def __init__(self, teller: Teller, *, live: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._teller = teller
        self._live = live
        self._clock = clock
        self._said_at = -EVERY_S
        self._unsaid = ""
        self._held_out: float | None = None
        self._noted: set[str] = set()

    def progress(self, step: int, steps: int, detail: dict[str, Any]) -> None:
        """Take a step."""
        for note in notes(detail):
            if note not in self._noted:
                self._noted.add(note)
                self._teller.line(note)
        self._held_out = detail.get("held_out_loss", self._held_out)
        self._unsaid = progress_line(step, steps, {**detail, "held_out_loss": self._held_out})
        if self._live or self._clock() - self._said_at >= EVERY_S:
            self._say()

    def end(self) -> None:
        """Show the last step, if it was not yet."""
        if self._unsaid and not self._live:
            self._say()

    def _say(self) -> None:
        self._teller.status(self._unsaid)
        self._said_at, self._unsaid = self._clock(), ""


def notes(detail: dict[str, Any]) -> list[str]:
    """Return what a step tells beside its measures; it may tell it again until the log has it."""
    found = [str(detail["warning"])] if "warning" in detail else []
    if "resumed_step" in detail:
        found.append(f"goes on from the checkpoint of step {detail['resumed_step']}")
    if "examples_cut" in detail:
        cut, left_out = detail["examples_cut"], detail.get("examples_left_out", 0)
        found.append(f"{cut} examples are longer than --sequence-tokens and cut, {left_out} of them left out")
    return found


def progress_line(step: int, steps: int, detail: dict[str, Any]) -> str:
    """Return a step in words."""
    parts = [f"step {step}/{steps}"]
    for key, form in (
        ("loss", "loss {:.3f}"),
        ("held_out_loss", "held out {:.3f}"),
        ("tokens_per_s", "{:.0f} tokens/s"),
        ("left_s", "{:.0f} s left"),
    ):
        if isinstance(value := detail.get(key), int | float):
            parts.append(form.format(value))
    return "  ".join(parts)


def _say(session_id: str, turn: dict[str, Any], name: str, as_json: bool, teller: Teller) -> None:
    """How to use it on stdout; on stderr what was learnt, or what went wrong."""
    from helix_es.cli.talk import ending

    if as_json:
        show_json({"session_id": session_id, "adapter": name, **turn})
    if (said := ending(turn)) is not None:
        fail(said)
    teller.line(turn["output"])
    if not as_json:
        print(f'helix chat --adapter {name} "…"')
