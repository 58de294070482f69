"""Four sessions with four adapters in one batch, against four with one adapter and four with none, in one run."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file

from helix_runners.engine.open import EngineSettings, open_engine
from helix_runners.engine.port import Adapter, TextEngine
from tests.bench.engine_bench import rate_while_all_decode, run, story

SESSIONS = 4
TOKENS = 48
ROUNDS = 3
RANK = 8
# SmolLM2-135M: 30 layers; inputs and outputs of each linear layer
SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (576, 192),
    "self_attn.v_proj": (576, 192),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (576, 1536),
    "mlp.up_proj": (576, 1536),
    "mlp.down_proj": (1536, 576),
}
LAYERS = 30


class Mixed(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens per second of all four sessions, medians over the rounds."""

    none: float
    one: float
    four: float
    ratio: float
    """Median over rounds of four / one."""


def make_adapter(folder: Path, number: int) -> Adapter:
    """Write an adapter of every linear layer with small random weights."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(number)
    tensors = {}
    for layer in range(LAYERS):
        for name, (inner, outer) in SHAPES.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, inner, generator=generator) * 0.01
            tensors[f"{path}.lora_B.weight"] = torch.randn(outer, RANK, generator=generator) * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return Adapter(key=f"a{number}", folder=folder)


async def rate(engine: TextEngine, adapters: list[Adapter | None]) -> float:
    """Tokens per second of all, while one session for each of `adapters` decodes."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(run(engine, f"s{n}", story(n), TOKENS, adapter))
            for n, adapter in enumerate(adapters)
        ]
    return rate_while_all_decode([task.result() for task in tasks])


async def measure(dtype: str = "float32") -> Mixed:
    """Run the three in turn, several times: the machine's speed drifts."""
    none, one, four = [], [], []
    with tempfile.TemporaryDirectory() as name:
        made = [make_adapter(Path(name) / str(n), n) for n in range(SESSIONS)]
        engine = await asyncio.to_thread(open_engine, EngineSettings(dtype=dtype))
        try:
            await rate(engine, [*made])  # loads them
            for _ in range(ROUNDS):
                one.append(await rate(engine, [made[0]] * SESSIONS))
                four.append(await rate(engine, [*made]))
                none.append(await rate(engine, [None] * SESSIONS))
        finally:
            await engine.close()
    return Mixed(
        none=statistics.median(none),
        one=statistics.median(one),
        four=statistics.median(four),
        ratio=statistics.median(f / o for f, o in zip(four, one, strict=True)),
    )


if __name__ == "__main__":
    print(asyncio.run(measure()))
