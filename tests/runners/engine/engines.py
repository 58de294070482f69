"""An engine on a network without weights, and the ways to consume it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

from helix_es.core.events import Message
from helix_runners.engine.multiplexer import Limits, Multiplexer
from helix_runners.engine.packed import PackedEngine, Parts
from helix_runners.engine.port import Finished, Sampling, TextEngine
from helix_runners.engine.prompt import ChatPrompt
from tests.runners.engine.models import CountingNetwork, GatedNetwork, byte_tokenizer, limits

HELLO = [Message(role="user", content="Hello")]
PROMPT_TOKENS = len(ChatPrompt(byte_tokenizer()).encode(HELLO))
TIMEOUT_S = 30


class GatedPrompt(ChatPrompt):
    """Tokenises only when the test says so."""

    def __init__(self) -> None:
        super().__init__(byte_tokenizer())
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.ended = threading.Event()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """See ChatPrompt.encode."""
        self.begun.set()
        self.go_on.wait(TIMEOUT_S)
        tokens = super().encode(messages)
        self.ended.set()
        return tokens


@contextlib.asynccontextmanager
async def opened(
    network: CountingNetwork,
    chosen: Limits | None = None,
    *,
    context_tokens: int = 400,
    prompt: ChatPrompt | None = None,
) -> AsyncIterator[PackedEngine]:
    def load() -> Parts:
        return Parts(
            multiplexer=Multiplexer(network, chosen or limits(step_tokens=64)),
            prompt=prompt or ChatPrompt(byte_tokenizer()),
            context_tokens=context_tokens,
            ends=frozenset(),
        )

    engine = await asyncio.to_thread(PackedEngine, load)
    try:
        yield engine
    finally:
        if isinstance(network, GatedNetwork):
            network.allow(1000)
        await engine.close()


def runs(test: Callable[[], Coroutine[None, None, None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), TIMEOUT_S)

    asyncio.run(limited())


async def collect(engine: TextEngine, session: str, sampling: Sampling) -> tuple[str, Finished]:
    text = ""
    async for item in engine.generate(session, HELLO, sampling):
        if isinstance(item, Finished):
            return text, item
        text += item.text
    raise AssertionError("the stream ended without Finished")
