"""Conversations as the tokens that the model would see, and which of them are to be learnt: what the assistant says."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from jinja2.exceptions import TemplateError

from helix_es.core.dataset import examples
from helix_es.core.errors import Rejected
from helix_es.core.values import Message
from helix_runners.engine.prompt import ChatTokenizer, fold_roles
from helix_runners.finetune.failures import TrainingFailed


class Tokens(msgspec.Struct):
    """One sequence to learn from."""

    ids: array[int]
    learnt: bytearray
    """1 for each token that is learnt, 0 for what comes before it."""

    @property
    def learns(self) -> bool:
        # the first token has nothing before it that it could be told from
        return any(self.learnt[1:])


class Material(msgspec.Struct, kw_only=True):
    """A whole dataset as tokens."""

    sequences: list[Tokens] = []
    examples: list[int] = []
    """Which example each sequence is of."""
    cut: int = 0
    """Examples that were longer than a sequence may be."""
    left_out: int = 0
    """Examples of which nothing to be learnt was left after the cut."""


def read_material(
    path: Path, tokenizer: ChatTokenizer, most_tokens: int, check: Callable[[], None]
) -> Material:
    """Return the dataset at `path`, each sequence cut to `most_tokens`.

    `check` is called before each example and may raise to stop. Raises TrainingFailed("dataset_invalid") with the
    line that is wrong, or if nothing is left to learn from.
    """
    material, number = Material(), 0
    with path.open("rb") as file:
        try:
            for number, messages in examples(file):  # noqa: B007  # the error below names it
                check()
                _add(material, list(sequences(messages, tokenizer, most_tokens)), most_tokens)
        except Rejected as error:
            raise TrainingFailed("dataset_invalid", str(error)) from error
        except TemplateError as error:
            raise TrainingFailed(
                "dataset_invalid", f"line {number}: the model's chat template refuses it: {error}"
            ) from error
    if len(set(material.examples)) < 2:
        raise TrainingFailed(
            "dataset_invalid",
            f"{material.left_out} examples have nothing to learn within {most_tokens} tokens and fewer than two "
            "are left; raise sequence_tokens or shorten what comes before the answers",
        )
    return material


def _add(material: Material, found: list[Tokens], most_tokens: int) -> None:
    example = material.examples[-1] + 1 if material.examples else 0
    material.cut += any(len(each.ids) > most_tokens for each in found)
    for each in found:
        del each.ids[most_tokens:], each.learnt[most_tokens:]
    kept = [each for each in found if each.learns]
    material.left_out += not kept
    material.sequences += kept
    material.examples += [example] * len(kept)


def sequences(messages: Sequence[Message], tokenizer: ChatTokenizer, most_tokens: int) -> Iterator[Tokens]:
    """Yield `messages` as tokens: one sequence in which every answer is learnt.

    More than one if the model's template rewrites what was said before, as some do: each answer is then learnt from
    what the model would see in its place. May be longer than `most_tokens`, but begins nothing beyond.
    Raises TemplateError if the template refuses even the plainest form.
    """
    try:
        yield from _chained(messages, tokenizer, most_tokens)
    except TemplateError:
        yield from _chained(fold_roles(messages), tokenizer, most_tokens)


def _chained(messages: Sequence[Message], tokenizer: ChatTokenizer, most_tokens: int) -> Iterator[Tokens]:
    current: Tokens | None = None
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _render(messages[:index], tokenizer, opening=True)
        whole = _render(messages[: index + 1], tokenizer, opening=False)
        start = _common(before, whole)
        if current is not None and (start < len(current.ids) or whole[: len(current.ids)] != current.ids):
            yield current
            current = None
        learnt = current.learnt if current is not None else bytearray()
        learnt.extend(bytes(start - len(learnt)))
        learnt.extend(b"\x01" * (len(whole) - len(learnt)))
        current = Tokens(whole, learnt)
        if len(whole) >= most_tokens:
            break
    if current is not None:
        yield current


def _render(messages: Sequence[Message], tokenizer: ChatTokenizer, *, opening: bool) -> array[int]:
    """Return tokens of `messages`, with the opening of an answer if `opening`: as the engine does when it chats."""
    rendered = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages],
        add_generation_prompt=opening,
        tokenize=True,
        return_dict=True,
        # text is text, also if it looks like the token that ends a message
        sanitize_control_tokens=True,
    )
    return array("i", rendered["input_ids"])


def _common(one: array[int], other: array[int]) -> int:
    """Return how many tokens both begin with: a tokenizer may join the end of a prompt with its answer."""
    if other[: len(one)] == one:  # nearly always, and much faster to see
        return len(one)
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
