"""A prompt stands in its template as it was written, whatever it holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_es.core.errors import Misconfigured
from helix_es.core.events import Message
from helix_runners.command.prompt import fill, one_line, render
from helix_runners.command.settings import CommandSettings, checked

MISTRAL = "[INST]{prompt}[/INST]"


def said(*contents: str, system: str | None = None) -> list[Message]:
    """Return a conversation: user, assistant, user, …"""
    messages = [] if system is None else [Message(role="system", content=system)]
    for number, content in enumerate(contents):
        messages.append(Message(role="assistant" if number % 2 else "user", content=content))
    return messages


@given(prompt=st.text(), system=st.text())
def test_what_users_write_is_put_in_unread(prompt: str, system: str) -> None:
    assert fill("<{system}>[{prompt}]{0}{x!r}{", prompt, system) == f"<{system}>[{prompt}]{{0}}{{x!r}}{{"


def test_a_prompt_that_names_the_fields_is_not_filled_again() -> None:
    assert fill("{system}|{prompt}", "{system}{prompt}", "{prompt}") == "{prompt}|{system}{prompt}"


def test_the_last_prompt_alone() -> None:
    assert render(MISTRAL, said("hi", "hello", "bye"), conversation=False) == "[INST]bye[/INST]"


def test_a_conversation_goes_through_the_template_turn_by_turn() -> None:
    found = render(
        "[INST]{system}{prompt}[/INST]", said("hi", "hello", "bye", system="Be brief. "), conversation=True
    )
    assert found == "[INST]Be brief. hi[/INST]\nhello\n[INST]bye[/INST]"


def test_the_system_prompt_is_there_for_the_last_prompt_alone_too() -> None:
    assert render("{system}/{prompt}", said("hi", "hello", "bye", system="S"), conversation=False) == "S/bye"


def test_line_breaks_become_spaces() -> None:
    assert one_line("a\nb\r\nc\rd") == "a b c d"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"command": []}, "no command given"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"template": "[INST][/INST]"}, "--template: found '.INST.*no {prompt}"),
        ({"time_limit_s": 0}, "--time-limit-s: found 0, allowed is 0.001"),
        ({"most_output_bytes": 10_000_000}, "--most-output-bytes: found 10000000, allowed is 1 to 900000"),
        ({"parallel": 0}, "--parallel: found 0"),
        ({"end_line": "a\nb"}, "--end-line"),
        ({"ready_line": ""}, "--ready-line: is empty"),
        ({"collect": "../*.png"}, "--collect: found '../"),
        ({"collect": "/etc/*"}, "--collect: found '/etc"),
        ({"collect": "a/**"}, "write '\\*\\*/\\*'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(Misconfigured, match=text):
        checked(CommandSettings(**{"command": ["cat"], **wrong}))  # type: ignore[arg-type]
