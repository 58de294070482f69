"""`helix chat`: one question, or a conversation."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import rich_click as click

from helix_es.cli.client import calling, url_option
from helix_es.cli.output import fail, json_option, show_json
from helix_es.core.errors import HelixError

if TYPE_CHECKING:
    from helix_es.cli.talk import Talk, Teller

DEFAULT_MODEL = "smollm2"
INTERRUPTED = 130  # as a shell says it of Ctrl-C
MARK = "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK} "


def _session_id(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise click.BadParameter("must be a session id: 1 to 64 characters of letters, digits, '_' and '-'")
    return value


@click.command()
@url_option
@click.option("--session", "session_id", callback=_session_id, help="Go on with this session.")
@click.option("--model", help=f"Catalogue slug or full name.  [default: {DEFAULT_MODEL}]")
@click.option("--adapter", help="Name of a fine-tune: the model as it was trained there.")
@click.option("--system", help="What the model is told before anything else.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is deterministic.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="For sampling.")
@json_option
@click.argument("prompt", required=False)
def chat(
    url: str,
    session_id: str | None,
    prompt: str | None,
    as_json: bool,
    model: str | None,
    adapter: str | None,
    system: str | None,
    **params: Any,
) -> None:
    """Ask PROMPT, or what stdin says; on a terminal without either, talk until /quit or Ctrl-D.

    Ctrl-C during an answer cancels it.
    """
    begun = {"model": model, "adapter": adapter, "system": system}
    opening = {name: value for name, value in begun.items() if value is not None}
    if session_id is not None and opening:
        raise click.UsageError(
            "--model, --adapter and --system belong to a new session; leave them out with --session"
        )
    prompt = _prompt(prompt, as_json)
    from helix_es.cli.talk import Talk, Teller

    opening.setdefault("model", DEFAULT_MODEL)
    given = {name: value for name, value in params.items() if value is not None}
    with calling(url) as api:
        talk = Talk(api, session_id=session_id, opening=opening, params=given)
        teller = Teller(sys.stderr)
        if prompt is None:
            _converse(talk, teller)
        else:
            _once(talk, teller, prompt, as_json)


def _prompt(given: str | None, as_json: bool) -> str | None:
    """Return the one question, or None to talk. Raises UsageError if there is none and nobody to talk to."""
    if given is None and sys.stdin.isatty():
        if as_json:
            raise click.UsageError("--json needs a PROMPT, or one on stdin")
        return None
    try:
        text = sys.stdin.read() if given is None else given
        text.encode()
    except UnicodeError:
        raise click.UsageError("the prompt is not UTF-8") from None
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return text


def _once(talk: Talk, teller: Teller, prompt: str, as_json: bool) -> None:
    from helix_es.cli.talk import ending

    turn = talk.ask(prompt, teller, show=not as_json)
    if as_json:
        show_json({"session_id": talk.session_id, **turn})
    teller.line(f"session {talk.session_id}")
    if talk.interrupted:
        raise SystemExit(INTERRUPTED)
    if (said := ending(turn)) is not None:
        fail(said)


def _converse(talk: Talk, teller: Teller) -> None:
    from helix_es.cli.talk import ending

    with suppress(ImportError):
        import readline  # noqa: F401  # input() edits lines with it
    teller.line("/quit or Ctrl-D ends, Ctrl-C cancels an answer")
    while (prompt := _line()) is not None:
        try:
            turn = talk.ask(prompt, teller, show=True)
        except HelixError as error:  # the next prompt may do better
            teller.line(f"helix: {error}")
        except KeyboardInterrupt:
            teller.line("interrupted")
        else:
            if (said := ending(turn)) is not None:
                teller.line(said)
    if talk.session_id is not None:
        teller.line(f"session {talk.session_id}")


def _line() -> str | None:
    """Return the next prompt, or None at the end."""
    while True:
        try:
            if sys.stdout.isatty():
                line = input(MARK)
            else:
                print(MARK, end="", file=sys.stderr, flush=True)
                line = input()
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            print(file=sys.stderr)
            continue
        except UnicodeDecodeError:
            print("the line is not UTF-8", file=sys.stderr)
            continue
        if line.strip() == "/quit":
            return None
        if line.strip():
            return line
