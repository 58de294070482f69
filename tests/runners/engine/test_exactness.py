"""In fp32 the engine's greedy tokens are those of plain transformers, whoever shares the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from helix_es.core.errors import Misconfigured
from helix_runners.engine.multiplexer import Multiplexer
from helix_runners.engine.network import Network
from tests.runners.engine.models import drain, finished, limits, llama, mistral, prompt_of, reference, turn

WINDOW = 12
MODELS: dict[str, Callable[[], Any]] = {
    "grouped_query": llama,
    "sliding_window": lambda: mistral(WINDOW),
    "window_of_one_block": lambda: mistral(16),
    "no_window": lambda: mistral(None),
}
BIG = 1 << 30


@pytest.fixture(params=list(MODELS))
def build(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return MODELS[request.param]


def test_one_session_generates_what_transformers_generates(build: Callable[[], Any]) -> None:
    for length in (1, WINDOW, WINDOW + 1, 70):
        one = turn("s", prompt_of(length), 40)
        multiplexer = Multiplexer(Network(build()), limits(budget_tokens=BIG))
        multiplexer.submit(one)
        drain(multiplexer)
        assert one.generated == reference(build(), prompt_of(length), 40)


def test_interleaved_sessions_with_chunked_prefill_do_not_touch_each_other(build: Callable[[], Any]) -> None:
    multiplexer = Multiplexer(Network(build()), limits(budget_tokens=BIG, step_tokens=9, max_batch=4))
    turns = [turn(f"s{n}", prompt_of(length, n), 25) for n, length in enumerate((3, 90, 17, 41, 64, 5))]
    for number, one in enumerate(turns):
        multiplexer.submit(one)
        for _ in range(number):  # they arrive while others are at different places
            multiplexer.step()
    drain(multiplexer)
    for one in turns:
        assert one.generated == reference(build(), one.prompt, 25)


def test_a_second_turn_on_kept_keys_equals_a_cold_one(build: Callable[[], Any]) -> None:
    multiplexer = Multiplexer(Network(build()), limits(budget_tokens=BIG))
    first = turn("s", prompt_of(50), 20)
    multiplexer.submit(first)
    drain(multiplexer)
    # the template came back a little different: two tokens of the answer are not what was sampled
    prompt = [*first.prompt, *first.generated[:12], 1, 2, *prompt_of(30, 9)]
    second = turn("s", prompt, 20)
    multiplexer.submit(second)
    ended = finished(drain(multiplexer))["s"]
    assert ended.cached_tokens == 62
    assert second.generated == reference(build(), prompt, 20)


def test_an_evicted_session_is_computed_again(build: Callable[[], Any]) -> None:
    network = Network(build())
    room = 128 * network.geometry.token_bytes
    multiplexer = Multiplexer(network, limits(budget_tokens=room // 8))
    first = turn("s", prompt_of(60), 20)
    for one in (first, turn("other", prompt_of(60, 1), 20)):
        multiplexer.submit(one)
        drain(multiplexer)
    assert multiplexer.stats().evictions == 1
    second = turn("s", first.tokens, 20)
    multiplexer.submit(second)
    assert finished(drain(multiplexer))["s"].cached_tokens == 0
    assert second.generated == reference(build(), first.tokens, 20)


def test_each_layer_keeps_to_its_own_window() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.runners.engine.models import SHAPE

    def build() -> Any:
        torch.manual_seed(9)
        kinds = ["full_attention", "sliding_attention", "full_attention"]
        config = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=10, layer_types=kinds)
        return Qwen2ForCausalLM(config).eval()

    one = turn("s", prompt_of(60), 30)
    multiplexer = Multiplexer(Network(build()), limits(budget_tokens=BIG, step_tokens=20))
    multiplexer.submit(one)
    drain(multiplexer)
    assert one.generated == reference(build(), one.prompt, 30)


def test_a_position_code_that_changes_with_the_batch_is_refused() -> None:
    model = llama()
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    with pytest.raises(Misconfigured, match="dynamic"):
        Network(model)


def test_a_model_with_another_attention_is_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from tests.runners.engine.models import SHAPE

    torch.manual_seed(0)
    with pytest.raises(Misconfigured, match="gemma2"):
        Network(Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, sliding_window=8)).eval())
