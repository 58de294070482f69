"""A fine-tune as axolotl writes it down: the keys that mean something here, the others refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

# axolotl's key -> ours
PARAMS = {
    "load_in_4bit": "load_in_4bit",
    "lora_r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "sequence_len": "sequence_tokens",
    "micro_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "num_epochs": "epochs",
    "learning_rate": "learning_rate",
    "max_steps": "max_steps",
    "warmup_steps": "warmup_steps",
    "val_set_size": "held_out",
    "save_steps": "checkpoint_steps",
    "seed": "seed",
}
OTHERS = ("base_model", "adapter", "datasets")
ADAPTERS = ("lora", "qlora")
# axolotl's types of a dataset -> the forms that the API finds in an upload
FORMS = {"chat_template": ("chat", "sharegpt"), "sharegpt": ("sharegpt",), "alpaca": ("alpaca",)}


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a recipe says."""

    model: str | None = None
    """Full name."""
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    forms: tuple[str, ...] = ()
    """What the dataset may be; empty: whatever it is."""


def recipe_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--recipe`; the command gets a `recipe`, an empty one if none is given."""

    def checked(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> Recipe:
        return Recipe() if path is None else read(path)

    return click.option(
        "--recipe",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        callback=checked,
        metavar="FILE.yml",
        help="Keys of axolotl; flags go before it.",
    )(command)


def read(path: Path) -> Recipe:
    """Return the recipe at `path`. Raises BadParameter with the key that is wrong and what is allowed."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise click.BadParameter(f"{path} is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise click.BadParameter(f"{path} holds no keys; it must be a recipe of axolotl's")
    unknown = sorted(str(key) for key in found if key not in PARAMS and key not in OTHERS)
    if unknown:
        allowed = ", ".join([*OTHERS, *PARAMS])
        raise click.BadParameter(f"{', '.join(unknown)}: not supported; allowed are {allowed}")
    return Recipe(model=_model(found), params=_params(found), forms=_forms(found.get("datasets")))


def _model(found: dict[str, Any]) -> str | None:
    model = found.get("base_model")
    if model is not None and not isinstance(model, str):
        raise click.BadParameter("base_model: must be a name")
    return model


def _params(found: dict[str, Any]) -> dict[str, Any]:
    params = {ours: found[key] for key, ours in PARAMS.items() if found.get(key) is not None}
    rate = params.get("learning_rate")
    if isinstance(rate, str):  # YAML reads 2e-4, without a dot, as text
        try:
            params["learning_rate"] = float(rate)
        except ValueError:
            raise click.BadParameter(f"learning_rate: {rate[:40]!r} is no number") from None
    adapter = found.get("adapter")
    if adapter not in (None, *ADAPTERS):
        raise click.BadParameter(f"adapter: {str(adapter)[:40]!r} is not supported; it must be lora or qlora")
    if adapter == "qlora" and params.setdefault("load_in_4bit", True) is not True:
        raise click.BadParameter("adapter: qlora needs load_in_4bit: true")
    return params


def _forms(datasets: Any) -> tuple[str, ...]:
    if datasets is None:
        return ()
    if not isinstance(datasets, list) or len(datasets) != 1 or not isinstance(datasets[0], dict):
        raise click.BadParameter("datasets: must be a list of one, whose type is that of DATASET")
    unknown = sorted(str(key) for key in datasets[0] if key != "type")
    if unknown:
        raise click.BadParameter(
            f"datasets[0]: {', '.join(unknown)}: not supported; allowed is type, the file itself is DATASET"
        )
    kind = datasets[0].get("type")
    if kind is None:
        return ()
    if not isinstance(kind, str) or kind not in FORMS:
        raise click.BadParameter(f"datasets[0].type: {str(kind)[:40]!r}: must be one of {', '.join(FORMS)}")
    return FORMS[kind]
