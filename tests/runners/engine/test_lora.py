"""One model, many adapters: each session gets what peft would give it, whoever shares the step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from helix_es.core.errors import EngineError
from helix_runners.engine.lora import Adapters
from helix_runners.engine.multiplexer import Multiplexer
from helix_runners.engine.network import Network
from helix_runners.engine.port import Adapter
from tests.runners.engine.models import drain, finished, limits, llama, mistral, prompt_of, reference, turn

BIG = 1 << 30
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(
    folder: Path, name: str, *, rank: int = 4, seed: int = 1, modules: list[str] | None = None, **more: Any
) -> Adapter:
    """An adapter whose weights are random, both halves of it, so that it changes every answer."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=modules or ALL, task_type="CAUSAL_LM", **more
    )
    model = get_peft_model(llama(), config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_B" in key:
                value.normal_(std=0.3)
    model.save_pretrained(folder / name)
    return Adapter(key=name, folder=folder / name)


def adapted(adapter: Adapter | None, prompt: list[int], count: int = 20) -> list[int]:
    """What peft generates."""
    model: Any = llama() if adapter is None else PeftModel.from_pretrained(llama(), adapter.folder).eval()
    return reference(model, prompt, count)


@pytest.fixture
def three(tmp_path: Path) -> list[Adapter]:
    return [
        train(tmp_path, "a", seed=1),
        train(tmp_path, "b", seed=2, rank=7, modules=["q_proj", "down_proj"]),
        train(tmp_path, "c", seed=3, use_rslora=True),
    ]


def test_mixed_adapters_in_one_batch_answer_as_peft_does(three: list[Adapter]) -> None:
    multiplexer = Multiplexer(Network(llama()), limits(budget_tokens=BIG, step_tokens=11))
    chosen = [three[0], None, three[1], three[2], three[0], None]
    turns = [turn(f"s{n}", prompt_of(9 + 13 * n, n), 20, adapter=each) for n, each in enumerate(chosen)]
    for number, one in enumerate(turns):
        multiplexer.submit(one)
        for _ in range(number):  # they arrive in the middle of others
            multiplexer.step()
    drain(multiplexer)
    answers = [adapted(one.adapter, one.prompt) for one in turns]
    assert [one.generated for one in turns] == answers
    assert len({tuple(adapted(each, turns[1].prompt)) for each in [*three, None]}) == 4, "they do differ"
    assert multiplexer.stats().adapters == 3


def test_a_session_that_changes_its_adapter_does_not_reuse_the_other_ones_keys(three: list[Adapter]) -> None:
    multiplexer = Multiplexer(Network(llama()), limits(budget_tokens=BIG))
    for each in (three[0], three[1], None, None):
        one = turn("s", prompt_of(40), 10, adapter=each)
        multiplexer.submit(one)
        ended = finished(drain(multiplexer))["s"]
        assert one.generated == adapted(each, one.prompt, 10)
    assert ended.cached_tokens > 0, "with the same one it does"


def test_adapters_beyond_the_budget_leave_and_come_back(three: list[Adapter]) -> None:
    model = llama()
    network = Network(model)
    size = sum(value.nbytes for value in load_file(three[0].folder / "adapter_model.safetensors").values())
    network._adapters = Adapters(model, dtype=torch.float32, budget_bytes=int(1.5 * size))
    multiplexer = Multiplexer(network, limits(budget_tokens=BIG))
    for each in [three[0], three[2], three[0], None, three[2]]:
        one = turn("s", prompt_of(30), 10, adapter=each)
        multiplexer.submit(one)
        drain(multiplexer)
        assert one.generated == adapted(each, one.prompt, 10)
        assert multiplexer.stats().adapters <= 1
    running = turn("one", prompt_of(30), 10, adapter=three[0])
    multiplexer.submit(running)
    with pytest.raises(EngineError, match="try again later"):
        multiplexer.submit(turn("two", prompt_of(30), 10, adapter=three[2]))
    drain(multiplexer)
    assert running.generated == adapted(three[0], running.prompt, 10)


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"bias": "all"}, {"peft_type": "IA3"}, {"r": 5}, {"r": 0}]
)
def test_what_is_not_plain_lora_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    adapter = train(tmp_path, "a")
    config = json.loads((adapter.folder / "adapter_config.json").read_text())
    (adapter.folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    multiplexer = Multiplexer(Network(llama()), limits(budget_tokens=BIG))
    with pytest.raises(EngineError) as refused:
        multiplexer.submit(turn("s", prompt_of(5), adapter=adapter))
    assert refused.value.code == "adapter_invalid"
    assert not multiplexer.busy


def test_an_adapter_of_another_model_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    multiplexer = Multiplexer(Network(mistral(None)), limits(budget_tokens=BIG))
    adapter = train(tmp_path, "a")
    multiplexer.submit(turn("fits", prompt_of(5), adapter=adapter))  # the same shapes
    drain(multiplexer)
    weights = adapter.folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    for broken in (
        {**tensors, first: torch.zeros(4, 7)},
        {**tensors, "base_model.model.x.lora_A.weight": torch.zeros(4, 4)},
    ):
        save_file(broken, weights)
        with pytest.raises(EngineError, match="does not fit"):
            multiplexer.submit(turn("s", prompt_of(5), adapter=Adapter(key="other", folder=adapter.folder)))
    weights.write_bytes(b"\x80\x04pickle")
    with pytest.raises(EngineError, match="cannot be read"):
        multiplexer.submit(turn("s", prompt_of(5), adapter=Adapter(key="other", folder=adapter.folder)))
    plain = turn("base", prompt_of(5), 10)
    multiplexer.submit(plain)
    drain(multiplexer)
    assert plain.generated == reference(mistral(None), plain.prompt, 10), "nothing of them stayed"
