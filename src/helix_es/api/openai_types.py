"""The shapes of OpenAI's chat API, as far as they are served; unknown fields of requests are let pass."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Part(msgspec.Struct, kw_only=True):
    """A piece of a message's content; only text is served."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct, kw_only=True):
    """One message."""

    role: str
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct, kw_only=True):
    """Body of POST /v1/chat/completions."""

    model: str
    messages: list[ChatMessage]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    user: str | None = None
    n: int | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None


class PromptDetails(msgspec.Struct, kw_only=True):
    """What of the prompt was in memory."""

    cached_tokens: int


class ChatUsage(msgspec.Struct, kw_only=True):
    """Tokens of one answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Answer(msgspec.Struct, kw_only=True):
    """An assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(msgspec.Struct, kw_only=True):
    """The one answer."""

    index: int = 0
    message: Answer
    finish_reason: str
    logprobs: None = None


class Completion(msgspec.Struct, kw_only=True):
    """An answer that is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage


class ModelCard(msgspec.Struct, kw_only=True):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "helix"


class ModelCards(msgspec.Struct, kw_only=True):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
