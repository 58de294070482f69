"""A training between two steps as one safetensors file: tensors, and in its header what training it is of."""

from __future__ import annotations

from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from helix_es.core.params import TrainParams
from helix_runners.finetune.trainer import Misfit, Tensors

FORMAT = "helix-finetune-1"
KEY = "helix"


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which training it is: two are the same if their steps would be."""

    format: str = FORMAT
    model: str
    dataset: str
    """File id."""
    params: dict[str, object]
    """All of them, also where they are the defaults, since those may change."""


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the header says."""

    identity: Identity
    adapter: dict[str, object]
    """peft's configuration."""
    step: int
    tokens: int
    """Computed until then."""
    losses: list[float]
    """Of the first step and the last."""
    held_out: list[float]
    """The first and the last that were measured."""


def identity(model: str, dataset: str, params: TrainParams) -> Identity:
    """Return which training this is."""
    return Identity(model=model, dataset=dataset, params=msgspec.structs.asdict(params))


def write(path: Path, about: About, tensors: Tensors) -> None:
    """Write a checkpoint, which is at `path` only when it is whole."""
    draft = path.with_name(f".{path.name}")
    header = {KEY: msgspec.json.encode(about).decode()}
    save_file({name: each.contiguous() for name, each in tensors.items()}, draft, header)
    draft.replace(path)


def read(path: Path, wanted: Identity) -> tuple[About, Tensors]:
    """Return a checkpoint of the training `wanted`. Raises Misfit if it is another's, or no checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            about = msgspec.json.decode((file.metadata() or {})[KEY], type=About)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except (SafetensorError, msgspec.DecodeError, KeyError) as error:
        raise Misfit(f"it cannot be read: {error}") from error
    if about.identity != wanted:
        differing = [
            name
            for name in Identity.__struct_fields__
            if getattr(about.identity, name) != getattr(wanted, name)
        ]
        raise Misfit(f"it is of another training: {', '.join(differing)} differ")
    return about, tensors
