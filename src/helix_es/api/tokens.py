"""Refuse a prompt that cannot fit the model's context before anybody waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol, cast

import structlog

from helix_es.core.catalogue import Model
from helix_es.core.errors import Rejected

log = structlog.get_logger(__name__)


class Encoding(Protocol):
    """Part of what the `tokenizers` package gives back."""

    @property
    def ids(self) -> list[int]: ...


class Tokenizer(Protocol):
    """Part of `tokenizers.Tokenizer`."""

    def encode(self, sequence: str, *, add_special_tokens: bool = ...) -> Encoding: ...


class TokenCounter:
    """Counts with the model's own tokenizer where its file is at hand; elsewhere the runner will refuse.

    `folder_of` gives the folder of a model's files on this machine, or None.
    """

    def __init__(self, folder_of: dict[str, Path]) -> None:
        self._folder_of = folder_of
        self._tokenizers: dict[str, Tokenizer | None] = {}

    async def check(self, model: Model | None, text: str) -> None:
        """Raise Rejected("prompt_too_long") if `text` alone fills the context of `model`."""
        # a token is at least one byte, so a text with fewer bytes than the context has tokens always fits
        if model is None or len(text.encode()) < model.context_tokens:
            return
        count = await asyncio.to_thread(self._count, model, text)
        if count is not None and count >= model.context_tokens:
            raise Rejected(
                "prompt_too_long",
                f"prompt: {count} tokens, but {model.name} has room for {model.context_tokens - 1} before its answer",
            )

    def _count(self, model: Model, text: str) -> int | None:
        tokenizer = self._tokenizer(model.source)
        if tokenizer is None:
            return None
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    def _tokenizer(self, source: str) -> Tokenizer | None:
        if self._tokenizers.get(source) is None:
            self._tokenizers[source] = self._load(source)
        return self._tokenizers[source]

    def _load(self, source: str) -> Tokenizer | None:
        file = self._folder_of.get(source, Path(source)) / "tokenizer.json"
        if not file.is_file():
            return None
        try:
            from tokenizers import Tokenizer as Loaded  # part of the runners' packages, not of the API's
        except ImportError:
            return None
        return cast(Tokenizer, Loaded.from_file(str(file)))
