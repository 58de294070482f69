"""What is stored of what was asked: exactly what was given, and nothing that one request must not take."""

from __future__ import annotations

from typing import Any

import pytest

from helix_es.api.requests import checked_params
from helix_es.core.errors import Rejected
from helix_es.core.events import Workload
from helix_es.settings import Settings

IMAGE = Workload("create", "image", "scenes")
TUNE = Workload("finetune", "text", "smollm2")


@pytest.mark.parametrize(
    ("workload", "params"),
    [
        (IMAGE, {"count": 1, "strength": 0.7, "negative_prompt": ""}),
        (IMAGE, {"seed": 3}),
        (IMAGE, {}),
        (TUNE, {"epochs": 4, "load_in_4bit": False}),
    ],
)
def test_a_default_that_is_said_is_stored(workload: Workload, params: dict[str, Any]) -> None:
    assert checked_params(params, Settings(), workload) == params


@pytest.mark.parametrize(
    "params",
    [
        {"batch_size": 256, "sequence_tokens": 2048},
        {"batch_size": 8, "gradient_accumulation": 256},
        {"lora_rank": 256},
    ],
)
def test_a_training_that_would_take_the_gpu_for_itself_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as refused:
        checked_params(params, Settings(), TUNE)
    assert refused.value.code == "invalid_params"
