"""The real SmolLM2-135M through the whole engine. The first run converts it, half a minute, once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helix_es.cache import cache_dir
from helix_es.core.events import Message
from helix_runners.engine.builtin import smollm2_folder
from helix_runners.engine.open import EngineSettings, open_engine
from helix_runners.engine.packed import PackedEngine
from helix_runners.engine.port import Finished, Piece, Sampling

QUESTIONS = [
    "What is the capital of France? Answer in one short sentence.",
    "Write one sentence about the sea.",
    "Name three colours, and say what each makes you think of: please use emoji.",
    "Count from one to five.",
]


@pytest.fixture(scope="module")
def engine() -> Iterator[PackedEngine]:
    opened = open_engine(EngineSettings(dtype="float32", step_tokens=48))
    yield opened
    asyncio.run(opened.close())


def ask(question: str) -> list[Message]:
    return [Message(role="user", content=question)]


async def collect(
    engine: PackedEngine, session: str, messages: list[Message], sampling: Sampling
) -> tuple[list[Piece], Finished]:
    items = [item async for item in engine.generate(session, messages, sampling)]
    assert isinstance(items[-1], Finished)
    return [item for item in items if isinstance(item, Piece)], items[-1]


def expected(question: str, max_tokens: int) -> str:
    """What transformers' own generate() answers greedily."""
    folder = smollm2_folder(cache_dir())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        out = model.generate(**prompt, max_new_tokens=max_tokens, do_sample=False)
    return str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def test_it_answers(engine: PackedEngine) -> None:
    pieces, ended = asyncio.run(collect(engine, "paris", ask(QUESTIONS[0]), Sampling(max_tokens=40)))
    assert "Paris" in "".join(piece.text for piece in pieces)
    assert ended.reason == "stop"
    assert engine.context_tokens == 8192


def test_four_sessions_at_once_give_the_text_of_plain_transformers(engine: PackedEngine) -> None:
    async def all_at_once() -> list[tuple[list[Piece], Finished]]:
        return await asyncio.gather(
            *(collect(engine, question, ask(question), Sampling(max_tokens=32)) for question in QUESTIONS)
        )

    for question, (pieces, _) in zip(QUESTIONS, asyncio.run(all_at_once()), strict=True):
        assert "".join(piece.text for piece in pieces) == expected(question, 32)


def test_a_second_turn_reuses_the_first_and_says_the_same_as_a_cold_one(engine: PackedEngine) -> None:
    async def test() -> None:
        pieces, first = await collect(engine, "warm", ask(QUESTIONS[1]), Sampling(max_tokens=24))
        messages = [
            *ask(QUESTIONS[1]),
            Message(role="assistant", content="".join(piece.text for piece in pieces)),
            *ask("Say it again in other words."),
        ]
        warm, ended = await collect(engine, "warm", messages, Sampling(max_tokens=24))
        cold, _ = await collect(engine, "cold", messages, Sampling(max_tokens=24))
        assert ended.cached_tokens >= first.prompt_tokens
        # not piece by piece: what comes while the reader is busy is handed over as one
        assert "".join(piece.text for piece in warm) == "".join(piece.text for piece in cold)

    asyncio.run(test())


def test_a_stop_string_ends_the_answer(engine: PackedEngine) -> None:
    pieces, ended = asyncio.run(
        collect(engine, "stop", ask(QUESTIONS[0]), Sampling(max_tokens=40, stop=(" Par", "is the capital?")))
    )
    text = "".join(piece.text for piece in pieces)
    assert ended.reason == "stop"
    assert "The capital of France is" in text
    assert " Par" not in text
