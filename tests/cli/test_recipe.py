"""Recipes of axolotl's: what is understood, and that all else is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from helix_es.cli.finetune import finetune
from helix_es.cli.recipe import Recipe, read

RECIPE = """
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
adapter: qlora
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules:
  - q_proj
  - v_proj
sequence_len: 256
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
learning_rate: 2e-4
val_set_size: 0.05
datasets:
  - type: chat_template
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "toy.jsonl"
    path.write_bytes(b'{"messages": []}\n')
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_recipe_of_axolotl_is_understood(recipe: Path) -> None:
    assert read(recipe) == Recipe(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        params={
            "load_in_4bit": True,
            "lora_rank": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            "target_modules": ["q_proj", "v_proj"],
            "sequence_tokens": 256,
            "batch_size": 2,
            "gradient_accumulation": 4,
            "epochs": 3,
            "learning_rate": 2e-4,
            "held_out": 0.05,
        },
        forms=("chat", "sharegpt"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "flash_attention: true\nlora_r: 8\nfsdp: []",
            "flash_attention, fsdp: not supported; allowed are base_model",
        ),
        ("- a", "holds no keys"),
        ("", "holds no keys"),
        ("a: [", "is no YAML"),
        ("a: !!python/object/apply:os.system [x]", "is no YAML"),
        ("adapter: full", "adapter: 'full' is not supported; it must be lora or qlora"),
        ("adapter: qlora\nload_in_4bit: false", "adapter: qlora needs load_in_4bit: true"),
        ("base_model: 7", "base_model: must be a name"),
        ("learning_rate: fast", "learning_rate: 'fast' is no number"),
        ("lora_r: many", "params.lora_rank: Expected `int`, got `str`"),
        ("num_epochs: 0", "params.epochs: Expected `int` >= 1"),
        ("datasets: x.jsonl", "datasets: must be a list of one"),
        ("datasets: [{type: alpaca}, {type: alpaca}]", "datasets: must be a list of one"),
        ("datasets: [{path: x.jsonl, type: alpaca}]", "datasets[0]: path: not supported; allowed is type"),
        ("datasets: [{type: completion}]", "datasets[0].type: 'completion': must be one of chat_template"),
        ("datasets: [{type: [alpaca]}]", "datasets[0].type: "),
        ("1: 2", "1: not supported"),
    ],
)
def test_what_a_recipe_may_not_say_is_named(tmp_path: Path, dataset: Path, text: str, said: str) -> None:
    path = tmp_path / "odd.yml"
    path.write_text(text)
    result = CliRunner().invoke(finetune, ["--name", "toy", "--recipe", str(path), str(dataset)])
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path, dataset: Path) -> None:
    path = tmp_path / "odd.yml"
    path.write_bytes(b"\xff\xfe\x00")
    assert CliRunner().invoke(finetune, ["--name", "toy", "--recipe", str(path), str(dataset)]).exit_code == 2
    path.write_text("[" * 100_000)
    assert CliRunner().invoke(finetune, ["--name", "toy", "--recipe", str(path), str(dataset)]).exit_code == 2
