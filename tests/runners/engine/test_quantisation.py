"""Weights in four bits are what the engine really computes with; what a device does not serve is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from helix_es.cache import cache_dir
from helix_es.core.catalogue import BUILTIN, footprint
from helix_es.core.errors import Misconfigured
from helix_es.core.events import Message, Workload
from helix_es.settings import Settings
from helix_runners.devices import Device
from helix_runners.engine import open as opening
from helix_runners.engine.linear import PackedLinear
from helix_runners.engine.multiplexer import Multiplexer
from helix_runners.engine.network import Network
from helix_runners.engine.open import EngineSettings, open_engine
from helix_runners.engine.port import Adapter, Finished, Sampling
from helix_runners.engine.weights import Loaded, load_weights, quantised, refuse_quantisation
from helix_runners.main import RunnerOptions, _offer, text_work
from tests.runners.engine.models import byte_tokenizer, drain, limits, llama, prompt_of, reference, turn
from tests.runners.engine.test_lora import train

BIG = 1 << 30
PROMPTS = [
    "What is the capital of France? Answer in one short sentence.",
    "Write one sentence about the sea.",
    "Count from one to five.",
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Layers in four bits start several parallel regions each: on a busy machine they would wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "tiny"
    llama().save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def four_bits(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model as plain transformers quantises it, computed in `dtype` as on CPUs without AVX512-BF16."""
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=config, device_map={"": "cpu"}, local_files_only=True
        )
    return model.eval()


def loaded(folder: Path, quantisation: str | None = "nf4", dtype: str = "float32") -> Loaded:
    return load_weights(
        str(folder), device="cpu", dtype=dtype, cache_dir=folder.parent, quantisation=quantisation
    )


def generated(network: Network, prompts: list[list[int]], adapter: Adapter | None = None) -> list[list[int]]:
    """What the engine generates greedily, all prompts at once."""
    multiplexer = Multiplexer(network, limits(budget_tokens=BIG, step_tokens=11))
    turns = [turn(f"s{n}", prompt, 20, adapter=adapter) for n, prompt in enumerate(prompts)]
    for one in turns:
        multiplexer.submit(one)
    drain(multiplexer)
    return [one.generated for one in turns]


def test_four_bits_generate_what_transformers_generates_with_them(folder: Path) -> None:
    prompts = [prompt_of(length) for length in (1, 17, 70)]
    plain = four_bits(folder)
    answers = generated(Network(loaded(folder).model), prompts)
    assert answers == [reference(plain, prompt, 20) for prompt in prompts]
    assert answers != [reference(llama(), prompt, 20) for prompt in prompts], "it was quantised"


def test_an_adapter_on_four_bits_answers_as_peft_does_on_them(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = train(tmp_path, "a")
    prompts = [prompt_of(length) for length in (9, 40)]
    network = Network(loaded(folder).model)
    without = generated(network, prompts)
    answers = generated(network, prompts, adapter)
    peft: Any = PeftModel.from_pretrained(four_bits(folder), adapter.folder).eval()
    assert answers == [reference(peft, prompt, 20) for prompt in prompts]
    assert all(one != other for one, other in zip(answers, without, strict=True))
    assert generated(network, prompts) == without


def test_four_bits_take_the_memory_that_was_reckoned(folder: Path) -> None:
    plain = Network(llama()).weights_bytes
    network = Network(loaded(folder).model)
    linear = sum(
        each.numel()
        for name, each in llama().named_parameters()
        if "_proj" in name  # embeddings, head and norms stay
    )
    assert network.weights_bytes == pytest.approx(plain - linear * 4 + linear * 0.516, rel=0.03)


def test_the_head_is_laid_out_for_speed_unless_it_shares_its_weight(folder: Path, tmp_path: Path) -> None:
    model: Any = loaded(folder).model
    Network(model)
    assert type(model.lm_head) is PackedLinear
    tied = llama()
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    place = tmp_path / "tied"
    tied.save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    model = loaded(place).model
    Network(model)
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_in_bfloat16_sizes_that_the_fast_layout_has_no_room_for_work(folder: Path) -> None:
    model = loaded(folder, dtype="bfloat16").model
    assert model.dtype == torch.bfloat16
    assert len(generated(Network(model), [prompt_of(10)])[0]) == 20


def test_a_folder_that_is_stored_in_four_bits_stays_so(folder: Path, tmp_path: Path) -> None:
    plain = four_bits(folder)
    place = tmp_path / "stored"
    plain.save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    assert any("quant_state" in name for name in load_file(place / "model.safetensors"))
    for quantisation in ("nf4", None):
        answers = generated(Network(loaded(place, quantisation).model), [prompt_of(30)])
        assert answers == [reference(plain, prompt_of(30), 20)]
    config = json.loads((place / "config.json").read_text())
    config["quantization_config"]["bnb_4bit_quant_type"] = "fp4"
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(Misconfigured, match=r"^quantisation: .* is stored as fp4 already, not nf4"):
        loaded(place)


def test_pickled_weights_are_not_loaded_in_four_bits_either(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(Misconfigured, match="pickled"):
        loaded(folder)


@pytest.mark.parametrize("quantisation", ["int8", "int3", ""])
def test_what_a_cpu_does_not_serve_is_refused_before_anything_is_loaded(quantisation: str) -> None:
    with pytest.raises(Misconfigured, match=r"^quantisation: .* is not served on cpu; allowed there is nf4"):
        open_engine(EngineSettings(source="/no/such/folder", quantisation=quantisation))


def test_int8_needs_a_gpu_that_has_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    capability = [(7, 5)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    gpu = torch.device("cuda:0")
    refuse_quantisation("int8", gpu)
    capability[0] = (7, 0)
    refuse_quantisation("nf4", gpu)
    with pytest.raises(Misconfigured, match=r"^quantisation: int8 is not served on cuda:0"):
        refuse_quantisation("int8", gpu)
    assert quantised("int8", torch.float16).load_in_8bit


def test_without_bitsandbytes_it_is_said_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(Misconfigured, match=r"^quantisation: .*bitsandbytes.*helix-es\[finetune\]"):
        loaded(folder)


def test_a_runner_passes_on_what_the_configuration_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[EngineSettings] = []
    monkeypatch.setattr(opening, "open_engine", asked.append)
    cpu = Device(torch_name="cpu", kind="cpu", memory_total_bytes=64 << 30)
    files: Any = None
    work: Any = text_work(None)(cpu, files)
    model = msgspec.structs.replace(BUILTIN["smollm2"], quantisation="nf4")
    asyncio.run(work.load(Workload("create", "text", "smollm2"), model))
    assert [each.quantisation for each in asked] == ["nf4"]


def test_a_runner_that_cannot_serve_it_does_not_join() -> None:
    model = msgspec.structs.replace(BUILTIN["smollm2"], quantisation="int8")
    settings = msgspec.structs.replace(Settings(), models={"smollm2": model})
    options = RunnerOptions(workloads=(Workload("create", "text", "smollm2"),), node="n", nats={})
    cpu = Device(torch_name="cpu", kind="cpu", memory_total_bytes=64 << 30)
    with pytest.raises(Misconfigured, match=r"^models\.smollm2\.quantisation: 'int8' is not served on cpu"):
        _offer(settings, options, cpu)
    card = Device(torch_name="cuda:0", kind="l4-24", memory_total_bytes=22 << 30)
    assert _offer(settings, options, card).slots["smollm2"] > 0


def test_smollm2_in_four_bits_says_what_transformers_says_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_weights(
        "builtin:smollm2", device="cpu", dtype="float32", cache_dir=cache_dir(), quantisation="nf4"
    )
    tokenizer: Any = model.tokenizer
    expected = []
    for question in PROMPTS:  # before the engine has the model, whose attention it changes
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        tokens = reference(model.model, prompt, 8)
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True))
    monkeypatch.setattr(opening, "load_weights", lambda *_source, **_options: model)  # seconds, once
    engine = open_engine(EngineSettings(dtype="float32", step_tokens=48, quantisation="nf4", threads=1))

    async def answer(question: str) -> str:
        text = ""
        messages = [Message(role="user", content=question)]
        async for item in engine.generate(question, messages, Sampling(max_tokens=8)):
            text += "" if isinstance(item, Finished) else item.text
        return text

    async def answers() -> list[str]:
        try:
            return await asyncio.gather(*(answer(question) for question in PROMPTS))
        finally:
            await engine.close()

    assert asyncio.run(answers()) == expected
    need = footprint(msgspec.structs.replace(BUILTIN["smollm2"], quantisation="nf4"), "cpu")
    assert engine.stats().weights_bytes == pytest.approx(need.weights_bytes, rel=0.15)
