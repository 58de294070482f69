"""One generation in progress: what is to be computed, what was sampled, and when it ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from helix_runners.engine.kv import KeyValues
from helix_runners.engine.port import Adapter, Finished, FinishReason, Sampling
from helix_runners.engine.sampling import Sampler
from helix_runners.engine.text import Decode, TextStream


class Turn:
    """Mutable, of one thread. Identity counts: a session has another turn later."""

    def __init__(
        self,
        session: str,
        prompt: list[int],
        sampling: Sampling,
        *,
        decode: Decode,
        ends: Collection[int],
        adapter: Adapter | None = None,
    ) -> None:
        """`sampling.max_tokens` must already fit the context. Raises EngineError for invalid sampling."""
        self.session = session
        self.prompt = prompt
        self.adapter = adapter
        self.max_tokens = sampling.max_tokens
        self.sampler = Sampler(sampling)
        self.generated: list[int] = []
        self.cached_tokens = 0
        self.kv: KeyValues | None = None
        """Lent while the turn is running, None while it waits."""
        self._ends = ends
        self._text = TextStream(decode, sampling.stop)

    @property
    def total_tokens(self) -> int:
        """Prompt and answer at their longest."""
        return len(self.prompt) + self.max_tokens

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer so far."""
        return self.prompt + self.generated

    @property
    def adapter_key(self) -> str | None:
        """What the adapter is called, None without one."""
        return None if self.adapter is None else self.adapter.key

    def start(self, kv: KeyValues) -> None:
        """`kv` holds the beginning of the prompt."""
        self.kv = kv
        self.cached_tokens = kv.length
        kv.reserve(len(self.prompt))  # at once: growing block by block would copy a long prompt many times

    def remaining(self) -> int:
        """Tokens still to be computed before the next one can be sampled; 1 while decoding."""
        held = 0 if self.kv is None else self.kv.length
        return len(self.prompt) + len(self.generated) - held

    def next_tokens(self, count: int) -> Sequence[int]:
        """The next `count` tokens to compute."""
        held = 0 if self.kv is None else self.kv.length
        if held < len(self.prompt):
            return self.prompt[held : held + count]
        return self.generated[held - len(self.prompt) :][:count]

    def accept(self, token: int) -> tuple[str, FinishReason | None]:
        """Take a sampled token: text that became final, and why the turn is over if it is."""
        self.generated.append(token)
        if token in self._ends:
            return self._text.flush(), "stop"
        text = self._text.push(token)
        if self._text.stopped:
            return text, "stop"
        if len(self.generated) >= self.max_tokens:
            text += self._text.flush()
            # what was held back may have become a stop string only now
            return text, "stop" if self._text.stopped else "length"
        return text, None

    def finished(self, reason: FinishReason) -> Finished:
        """The last item of the turn's stream."""
        return Finished(
            reason=reason,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
            completion_tokens=len(self.generated),
        )
