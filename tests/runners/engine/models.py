"""Tiny random models, a byte-level tokenizer, and a network whose answers are known beforehand."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from helix_runners.engine.kv import Geometry
from helix_runners.engine.multiplexer import Limits, Multiplexer, Output
from helix_runners.engine.network import Rows
from helix_runners.engine.port import Adapter, Finished, Sampling
from helix_runners.engine.turn import Turn

VOCABULARY = 264
END = 256
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# the rules of Mistral 7B Instruct v0.1: no system role, strict alternation
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %}{{ m['content'] }}</s>{% endif %}"
    "{% endfor %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # large: logits far apart, so that greedy choices are not ties
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def llama() -> LlamaForCausalLM:
    """Grouped-query attention, three query heads a key head. The same weights at every call."""
    torch.manual_seed(7)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def mistral(window: int | None) -> MistralForCausalLM:
    """With a sliding window, as Mistral 7B v0.1 has."""
    torch.manual_seed(8)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=window)).eval()


def byte_tokenizer(template: str | None = CHATML) -> FastTokenizer:
    """Token n is byte n in the byte-level alphabet's order; <|im_end|> is `END`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"."), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fast = FastTokenizer(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = template
    return fast


def reference(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """What plain transformers generates greedily, `count` tokens."""
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
        )
    return [int(token) for token in out[0, len(prompt) :]]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random tokens, the same for the same arguments."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return [int(token) for token in torch.randint(0, 256, (length,), generator=generator)]


def turn(
    session: str,
    prompt: list[int],
    max_tokens: int = 8,
    *,
    ends: Sequence[int] = (),
    adapter: Adapter | None = None,
    **sampling: Any,
) -> Turn:
    """A turn whose text is one character a token, and which no token ends unless said so."""
    return Turn(
        session,
        prompt,
        Sampling(max_tokens=max_tokens, **sampling),
        decode=lambda tokens: "".join(chr(0x4E00 + token) for token in tokens),
        ends=ends,
        adapter=adapter,
    )


def drain(multiplexer: Multiplexer) -> list[Output]:
    """Step until nothing is left to do."""
    outputs: list[Output] = []
    while multiplexer.busy:
        outputs += multiplexer.step()
    return outputs


def finished(outputs: Sequence[Output]) -> dict[str, Finished]:
    """How each session's turn ended."""
    return {turn.session: item for turn, item in outputs if isinstance(item, Finished)}


class CountingNetwork:
    """The next token is the last one plus 1: a model without weights, with real key-value accounting."""

    def __init__(self) -> None:
        self.geometry = Geometry(
            layers=1, kv_heads=1, head_dim=1, dtype=torch.float32, device=torch.device("cpu")
        )
        self.weights_bytes = 0
        self.adapters = 0
        self.batches: list[list[int]] = []
        """Rows of every step."""
        self.fail_with: list[Exception] = []
        """Raised by the next steps, one each."""

    def load_adapter(self, adapter: Adapter, in_use: Collection[str]) -> None:
        """See Network.load_adapter."""
        self.adapters += 1

    def forward(self, batch: Sequence[Rows]) -> torch.Tensor:
        """See Network.forward."""
        if self.fail_with:
            raise self.fail_with.pop(0)
        self.batches.append([len(rows.tokens) for rows in batch])
        for rows in batch:
            rows.kv.reserve(rows.kv.length + len(rows.tokens))
            rows.kv.commit(len(rows.tokens))
        logits = torch.zeros(sum(rows.sample for rows in batch), VOCABULARY)
        for row, rows in enumerate(rows for rows in batch if rows.sample):
            logits[row, (rows.tokens[-1] + 1) % 256] = 10.0
        return logits


class GatedNetwork(CountingNetwork):
    """Computes one step for each `allow`, so that a test decides what happens between steps."""

    def __init__(self) -> None:
        super().__init__()
        self._permits = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        """One for each step that has started."""

    def allow(self, steps: int = 1) -> None:
        """Let `steps` more steps be computed."""
        self._permits.release(steps)

    def forward(self, batch: Sequence[Rows]) -> torch.Tensor:
        """See Network.forward."""
        self.begun.release()
        if not self._permits.acquire(timeout=30):
            raise TimeoutError("the test never allowed this step")
        return super().forward(batch)


def limits(*, budget_tokens: int = 4096, **changes: Any) -> Limits:
    """Small blocks and steps; the budget is in tokens of a CountingNetwork (8 bytes each)."""
    values: dict[str, Any] = {"step_tokens": 32, "max_batch": 8, "block_tokens": 16} | changes
    return Limits(kv_budget_bytes=budget_tokens * 8, **values)
