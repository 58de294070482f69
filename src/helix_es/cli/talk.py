"""A conversation at the terminal: the answer on stdout as it comes, places and notices on stderr."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from typing import Any, TextIO

from helix_es.cli.answer import Again, Answer, Dropped, Ended, Place, Progress, Text
from helix_es.cli.client import Api

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


def printable(text: str) -> str:
    """Return `text` without what would steer a terminal: models and other users write it."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def place_line(place: Place) -> str:
    """Return a place at the door in words."""
    cold = place.cold_start
    if cold is not None:
        return f"place {place.position}, {_cold_line(cold)}"
    wait = "nothing serves this model now" if place.wait_s is None else f"about {place.wait_s:.0f} s"
    return f"place {place.position}, {wait}"


def _cold_line(cold: dict[str, Any]) -> str:
    doing = {
        "starting": f"a GPU of pool {cold['where']} is starting",
        "draining": f"{cold['where']} ends other work first",
        "loading": f"{cold['where']} loads the model",
    }.get(cold["stage"], str(cold["stage"]))
    expected = f" of about {cold['expected_s']} s" if cold["expected_s"] else " s so far"
    return f"{doing}: {cold['elapsed_s']}{expected}"


class Teller:
    """Tells progress on stderr: on a terminal in one line that is replaced, else a line for each change."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._tty = out.isatty()
        self._status = ""
        self.midline = False
        """The same terminal shows the beginning of a line, which must not be overwritten."""

    def status(self, text: str) -> None:
        """Tell what is true for now."""
        if text == self._status:
            return
        if self.midline:
            self.line(text)
            return
        self._status = text
        self._out.write(f"\r\x1b[K{printable(text)}" if self._tty else f"{text}\n")
        self._out.flush()

    def clear(self) -> None:
        """Take the status away, before anything else is written."""
        if self._status and self._tty:
            self._out.write("\r\x1b[K")
            self._out.flush()
        self._status = ""

    def line(self, text: str) -> None:
        """Tell something that stays."""
        self.clear()
        self._out.write(f"\n{printable(text)}\n" if self.midline and self._tty else f"{printable(text)}\n")
        self.midline = False
        self._out.flush()


class Printer:
    """Prints one answer as it comes. Where a new attempt replaces it, what a pipe has got is not repeated."""

    def __init__(self, out: TextIO, teller: Teller) -> None:
        self._out = out
        self._tty = out.isatty()
        self._teller = teller
        self._text = ""
        self._printed = ""

    def text(self, piece: str) -> None:
        """Print what is new of the answer."""
        self._text += piece
        self._catch_up()

    def again(self, attempt: int) -> None:
        """Another attempt begins the answer anew."""
        if self._tty and self._printed:
            self._write("\n")
            self._printed = ""
        self._text = ""
        self._teller.line(f"the answer begins again: attempt {attempt}")

    def end(self, output: str) -> None:
        """Print what is missing of `output`, the whole answer, and end the line."""
        if output and output != self._printed:
            self._text = output
            self._catch_up(whole=True)
        if not self._printed.endswith("\n") and (self._printed or not output):
            self._write("\n")

    def _catch_up(self, *, whole: bool = False) -> None:
        if self._text.startswith(self._printed):
            self._write(self._text[len(self._printed) :])
        elif self._printed.startswith(self._text) and not whole:
            return  # the new attempt has said the same so far
        else:
            self._teller.line("the new attempt says something else; all of it follows")
            self._write("\n" + self._text)
        self._printed = self._text

    def _write(self, text: str) -> None:
        self._teller.clear()
        self._out.write(printable(text) if self._tty else text)
        self._out.flush()
        if text:
            self._teller.midline = self._tty and not text.endswith("\n")


class Talk:
    """One session, begun with its first prompt unless it is given."""

    def __init__(
        self, api: Api, *, session_id: str | None, opening: dict[str, Any], params: dict[str, Any]
    ) -> None:
        self._api = api
        self._opening = opening
        self._params = params
        self.session_id = session_id
        self.interrupted = False
        """Ctrl-C cancelled the last turn."""

    def ask(self, prompt: str, teller: Teller, *, show: bool) -> dict[str, Any]:
        """Return the turn that `prompt` makes when it has ended; with `show`, its text is printed as it comes."""
        self.interrupted = False
        turn = self._say(prompt)
        answer = Answer(self._api, str(self.session_id), turn)
        printer = Printer(sys.stdout, teller) if show else None
        try:
            ended = _follow(answer, printer, teller)
        except KeyboardInterrupt:
            self.interrupted = True
            teller.line("cancelling …")
            self._api.post(f"/api/v1/sessions/{self.session_id}/turns/{turn}/cancel")
            ended = _follow(answer, printer, teller)
        teller.clear()
        if printer is not None and (ended["output"] or ended["state"] == "completed"):
            printer.end(ended["output"])
        return ended

    def _say(self, prompt: str) -> int:
        if self.session_id is None:
            body = {**self._opening, "prompt": prompt, "params": self._params}
            session = self._api.post("/api/v1/sessions", body)
            self.session_id = str(session["session_id"])
            return len(session["turns"])
        body = {"prompt": prompt, "params": self._params}
        return int(self._api.post(f"/api/v1/sessions/{self.session_id}/turns", body)["turn"])


def _follow(answer: Answer, printer: Printer | None, teller: Teller) -> dict[str, Any]:
    with closing(answer.updates()) as updates:
        for update in updates:
            match update:
                case Place() as place:
                    teller.status(place_line(place))
                case Progress(step, steps):
                    teller.status(f"step {step} of {steps}")
                case Text(text) if printer is not None:
                    printer.text(text)
                case Again(attempt) if printer is not None:
                    printer.again(attempt)
                case Dropped(why):
                    teller.status(f"{why}; trying again …")
                case Ended(turn):
                    return turn
                case _:
                    pass
    raise AssertionError("the updates of an answer end with its end")


def ending(turn: dict[str, Any]) -> str | None:
    """Return what to say about a turn that did not complete, or None."""
    if turn["state"] == "completed":
        return None
    error = turn.get("error") or {}
    why = f": {error.get('message', '')} ({error.get('code', '')})" if error else ""
    return f"turn {turn['turn']} {'failed' if turn['state'] == 'failed' else 'was cancelled'}{why}"
