"""Conversations into tokens: every answer is learnt, nothing else, and the model sees what it will see in a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from helix_es.core.values import Message
from helix_runners.engine.prompt import ChatPrompt, ChatTokenizer
from helix_runners.finetune.failures import TrainingFailed
from helix_runners.finetune.sequences import Material, Tokens, read_material, sequences
from helix_runners.finetune.thread import Stopped
from tests.runners.engine.models import CHATML, STRICT, byte_tokenizer
from tests.runners.finetune.parts import dataset

# as some reasoning models have it: only the last answer keeps its thoughts
FORGETS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}<think>"
    "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str = CHATML) -> ChatTokenizer:
    return cast(ChatTokenizer, byte_tokenizer(template))


def text(tokens: Any) -> str:
    return str(byte_tokenizer().decode(list(tokens), skip_special_tokens=False))


def learnt(tokens: Tokens) -> list[str]:
    """The pieces that are learnt."""
    assert len(tokens.ids) == len(tokens.learnt)
    pieces, before = [""], 0
    for token, mark in zip(tokens.ids, tokens.learnt, strict=True):
        if mark and not before:
            pieces.append("")
        if mark:
            pieces[-1] += text([token])
        before = mark
    return pieces[1:]


def said(*contents: str, system: str | None = None) -> list[Message]:
    roles = ["user", "assistant"] * len(contents)
    messages = [Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]  # type: ignore[arg-type]
    return [Message(role="system", content=system), *messages] if system else messages


def test_every_answer_is_learnt_with_the_token_that_ends_it() -> None:
    (found,) = sequences(said("a?", "A.", "b?", "B.", system="s"), tokenizer(), 512)
    assert learnt(found) == ["A.<|im_end|>\n", "B.<|im_end|>\n"]
    assert text(found.ids).startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na?")


def test_what_comes_before_an_answer_is_what_a_chat_gives() -> None:
    messages = said("a?", "A.", "b?", "B.")
    (found,) = sequences(messages, tokenizer(), 512)
    prompt = ChatPrompt(tokenizer()).encode(messages[:-1])
    assert list(found.ids[: len(prompt)]) == prompt
    assert not found.learnt[len(prompt) - 1]
    assert found.learnt[len(prompt)]


def test_what_looks_like_a_control_token_stays_text() -> None:
    (found,) = sequences(said("<|im_end|>", "<|im_end|>A"), tokenizer(), 512)
    control = byte_tokenizer().encode("<|im_end|>")
    assert list(found.ids).count(control[0]) == 2  # the two that end the messages


def test_a_strict_template_gets_its_roles_folded() -> None:
    (found,) = sequences(said("a?", "A.", "b?", "B.", system="s"), tokenizer(STRICT), 512)
    assert learnt(found) == ["A.</s>", "B.</s>"]
    assert text(found.ids).startswith("[INST] s\n\na? [/INST]")


def test_a_template_that_rewrites_the_past_makes_a_sequence_for_each_answer() -> None:
    found = list(sequences(said("a?", "A.", "b?", "B."), tokenizer(FORGETS), 512))
    assert [learnt(each) for each in found] == [["<think>A.<|im_end|>\n"], ["<think>B.<|im_end|>\n"]]
    assert "<think>A" not in text(found[1].ids)


def test_what_is_beyond_the_cut_is_not_even_rendered() -> None:
    messages = said(*["question", "answer"] * 50)
    rendered: list[int] = []

    class Counting:
        def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
            rendered.append(len(conversation))
            return tokenizer().apply_chat_template(conversation, **options)

    list(sequences(messages, cast(ChatTokenizer, Counting()), 100))
    assert max(rendered) <= 6


def material(tmp_path: Path, data: bytes, most_tokens: int = 512, template: str = CHATML) -> Material:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    return read_material(path, tokenizer(template), most_tokens, lambda: None)


def test_long_examples_are_cut_and_those_with_nothing_left_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "output": "A"},
        {"instruction": "a", "output": "A" * 200},
        {"instruction": "a" * 200, "output": "A"},
        {"instruction": "b", "output": "B"},
    ]
    found = material(tmp_path, b"\n".join(json.dumps(row).encode() for row in rows), 60)
    assert [len(each.ids) for each in found.sequences][1] == 60
    assert all(each.learns for each in found.sequences)
    assert (found.cut, found.left_out, found.examples) == (2, 1, [0, 1, 2])


def test_nothing_left_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="10 examples have nothing to learn within 16 tokens") as caught:
        material(tmp_path, dataset(), 16)
    assert caught.value.failure.code == "dataset_invalid"
    assert "raise sequence_tokens" in str(caught.value)


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="line 3: is not JSON") as caught:
        material(tmp_path, dataset(2) + b"{")
    assert caught.value.failure.code == "dataset_invalid"


def test_a_template_that_refuses_a_line_names_it(tmp_path: Path) -> None:
    refusing = "{{ raise_exception('no') }}"
    with pytest.raises(TrainingFailed, match="line 1: the model's chat template refuses it: no"):
        material(tmp_path, dataset(2), template=refusing)


def test_reading_stops_when_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(dataset())
    calls = iter([None, None])

    def check() -> None:
        if next(calls, "over") == "over":
            raise Stopped

    with pytest.raises(Stopped):
        read_material(path, tokenizer(), 512, check)
