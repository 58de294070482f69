"""What a turn may set, by the kind of its work: names, ranges and defaults, for whoever asks and whoever computes."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from helix_es.core.errors import Rejected

SIDE_STEP = 8  # pixels: one latent of a Stable Diffusion autoencoder

Side = Annotated[int, Meta(ge=16, le=4096, multiple_of=SIDE_STEP)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=1)]


class _Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ImageParams(_Params, frozen=True, kw_only=True):
    """A picture. What is None is the model's own default."""

    negative_prompt: Annotated[str, Meta(max_length=2000)] = ""
    width: Side | None = None
    height: Side | None = None
    steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Meta(ge=0, le=50)] | None = None
    seed: Seed | None = None
    """None: derived from the session and the turn, so that a second attempt makes the same picture."""
    count: Annotated[int, Meta(ge=1, le=64)] = 1
    strength: Annotated[float, Meta(ge=0.05, le=1)] = 0.7
    """How far a further turn may go from the picture before it; 1: all the way."""


class TrainParams(_Params, frozen=True, kw_only=True):
    """A fine-tune: LoRA, or QLoRA with `load_in_4bit`."""

    epochs: Annotated[int, Meta(ge=1, le=1000)] = 4
    max_steps: Count | None = None
    """Ends the training earlier than `epochs` do."""
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 1e-3
    warmup_steps: Annotated[int, Meta(ge=0, le=100_000)] = 5
    batch_size: Annotated[int, Meta(ge=1, le=256)] = 2
    gradient_accumulation: Annotated[int, Meta(ge=1, le=256)] = 1
    sequence_tokens: Annotated[int, Meta(ge=16, le=131_072)] = 512
    """Longer examples are cut."""
    lora_rank: Annotated[int, Meta(ge=1, le=64)] = 8
    lora_alpha: Annotated[float, Meta(gt=0, le=4096)] | None = None
    """None: twice the rank."""
    lora_dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    target_modules: (
        Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=64)] | None
    ) = None
    """Names of linear layers; None: all of them."""
    load_in_4bit: bool = False
    held_out: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    """Share of the examples that is not learnt from, to measure the loss on; at most 32 of them."""
    checkpoint_steps: Count = 20
    seed: Seed = 0


Parsed = TypeVar("Parsed", bound=_Params)


def parsed(raw: dict[str, Any], kind: type[Parsed]) -> Parsed:
    """Return `raw` as `kind`. Raises Rejected("invalid_params") with the name, and what is allowed."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        what, _, where = text.partition(" - at `$.")
        name = where.rstrip("`")
        if name:
            found = raw.get(name.split(".")[0].split("[")[0])
            raise Rejected("invalid_params", f"params.{name}: {what}, found {found!r:.100}") from error
        allowed = ", ".join(kind.__struct_fields__)
        raise Rejected("invalid_params", f"params: {what}; allowed are: {allowed}") from error
