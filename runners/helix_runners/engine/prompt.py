"""A conversation as the tokens that the model was trained to see: its own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from helix_es.core.errors import EngineError, Misconfigured
from helix_es.core.events import Message


class ChatTokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    chat_template: str | None
    eos_token_id: int | None

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
        return_dict: bool,
        sanitize_control_tokens: bool,
    ) -> Mapping[str, Any]:
        """The prompt's tokens under `input_ids`."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        """The text of `token_ids`."""


class ChatPrompt:
    """Turns messages into prompt tokens; thread-safe, as fast tokenizers are."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        """Raises Misconfigured if the model was not made for conversations."""
        if not tokenizer.chat_template:
            raise Misconfigured("source: the model has no chat template; choose an instruction-tuned model")
        self._tokenizer = tokenizer

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of `messages` and of the opening of the answer.

        Raises EngineError (`invalid_conversation`) if the template refuses even the plainest form.
        """
        try:
            return self._render(messages)
        except TemplateError:
            plain = fold_roles(messages)
        try:
            return self._render(plain)
        except TemplateError as error:
            raise EngineError(
                f"the model's chat template refuses this conversation: {error}", code="invalid_conversation"
            ) from error

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of `tokens` without special tokens; a longer run never changes the text of a shorter one."""
        return self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _render(self, messages: Sequence[Message]) -> list[int]:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            # what a user writes is text, also if it looks like the token that ends a message
            sanitize_control_tokens=True,
        )
        return list(rendered["input_ids"])


def fold_roles(messages: Sequence[Message]) -> list[Message]:
    """The same words in strictly alternating roles without `system`, as Mistral 7B v0.1 demands.

    The system text opens the first user message; neighbours of one role become one message.
    """
    system = [message.content for message in messages if message.role == "system"]
    folded: list[Message] = []
    for message in messages:
        if message.role == "system":
            continue
        content = message.content
        if message.role == "user" and system:
            content, system = "\n\n".join([*system, content]), []
        if folded and folded[-1].role == message.role:
            content = f"{folded.pop().content}\n\n{content}"
        folded.append(Message(role=message.role, content=content))
    return folded
