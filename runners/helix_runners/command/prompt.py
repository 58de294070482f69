"""What a program reads: a prompt in its template, or a whole conversation turn by turn."""

from __future__ import annotations

import re
from collections.abc import Sequence

from helix_es.core.events import Message

FIELD = re.compile(r"\{(prompt|system)\}")
LINE_BREAK = re.compile(r"\r\n|\r|\n")


def fill(template: str, prompt: str, system: str = "") -> str:
    """Return `template` with both names filled in, in one pass: what users write is never looked at again."""
    values = {"prompt": prompt, "system": system}
    return FIELD.sub(lambda found: values[found[1]], template)


def render(template: str, messages: Sequence[Message], *, conversation: bool) -> str:
    """Return the text for the last prompt of `messages`, with all that was said before it if `conversation`.

    Turns and answers are joined by line breaks; the system prompt stands in the first turn that is rendered.
    """
    system = "\n\n".join(each.content for each in messages if each.role == "system")
    said = [each for each in messages if each.role != "system"]
    if not conversation:
        said = said[-1:]
    parts: list[str] = []
    for each in said:
        if each.role == "assistant":
            parts.append(each.content)
        else:
            parts.append(fill(template, each.content, system))
            system = ""
    return "\n".join(parts)


def one_line(text: str) -> str:
    """Return `text` with each line break made a space, for programs that read a prompt a line."""
    return LINE_BREAK.sub(" ", text)
