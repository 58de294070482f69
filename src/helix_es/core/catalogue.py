"""The models that can be asked for: what they are called, what they need, how many sessions a GPU may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec

from helix_es.core.errors import Rejected
from helix_es.core.events import Kind
from helix_es.core.footprint import BYTES, QUANTISATIONS, Footprint, weights_bytes
from helix_es.core.hardware import Precision, usual_precision


class Picture(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a picture is where a request does not say it, and what it may be at most."""

    width: int = 1024
    height: int = 1024
    steps: int = 30
    guidance: float = 5.0
    most_side: int = 1536
    """Pixels; a larger picture takes more memory than was reckoned with."""
    most_steps: int = 150
    most_count: int = 4


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the catalogue."""

    name: str
    """Full name, as on the hub."""
    type: Kind = "text"
    source: str
    """A folder, a hub id, or `builtin:smollm2`."""
    engine: str = "transformers"
    """Who computes it: transformers (text), diffusers (images), or a program of your own."""
    dtype: str = "auto"
    """float32, bfloat16, float16; auto: what is usual where it runs."""
    quantisation: str | None = None
    """Of the weights: int8, nf4."""
    context_tokens: int = 4096
    """Prompt and answer together, for one session."""
    parameters: int = 0
    """All of them; 0: not known."""
    unquantised_parameters: int | None = None
    """Those that quantisation leaves as they are: embeddings, head, norms. None: an eighth of all."""
    layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    weights_bytes: int = 0
    """In memory, as loaded; 0: follows from the parameters, dtype and quantisation."""
    kv_bytes_per_token: int = 0
    """0: 2 · layers · key-value heads · head size · bytes of the type."""
    session_bytes: int = 0
    """What a session needs beside keys and values; for images, the latents of a picture in progress."""
    image: Picture | None = None
    """Of a model that makes images."""
    template: str = "{prompt}"
    """How a program that reads plain text is given a prompt: `{prompt}` and `{system}` are filled in."""


BUILTIN: dict[str, Model] = {
    "smollm2": Model(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        source="builtin:smollm2",
        context_tokens=4096,
        parameters=134_515_008,
        unquantised_parameters=28_346_688,
        layers=30,
        kv_heads=3,
        head_dim=64,
    ),
    "mistral": Model(
        name="mistralai/Mistral-7B-Instruct-v0.1",
        source="mistralai/Mistral-7B-Instruct-v0.1",
        context_tokens=8192,
        parameters=7_241_732_096,
        unquantised_parameters=262_410_240,
        layers=32,
        kv_heads=8,
        head_dim=128,
        template="[INST]{prompt}[/INST]",
    ),
    "scenes": Model(
        name="helix/scenes",
        type="image",
        source="builtin:scenes",
        engine="diffusers",
        context_tokens=24,
        weights_bytes=12_000_000,
        session_bytes=64 * 2**20,
        image=Picture(width=64, height=64, steps=20, guidance=3.0, most_side=128, most_steps=100),
    ),
    "sdxl": Model(
        name="stabilityai/stable-diffusion-xl-base-1.0",
        type="image",
        source="stabilityai/stable-diffusion-xl-base-1.0",
        engine="diffusers",
        context_tokens=77,
        weights_bytes=int(6.5 * 2**30) + 4 * 2**30,  # fp16, and the peak of decoding one picture
        session_bytes=512 * 2**20,
        image=Picture(),
    ),
}


def find(catalogue: Mapping[str, Model], name: str) -> str:
    """Return the slug of a model given by slug or full name, in any case.

    Raises Rejected("unknown_model"), naming what there is.
    """
    wanted = name.lower()
    for slug, model in catalogue.items():
        if wanted in (slug.lower(), model.name.lower()):
            return slug
    raise Rejected("unknown_model", f"no model {name[:100]!r}; there are: {', '.join(sorted(catalogue))}")


def checked(slug: str, model: Model) -> Model:
    """Return `model`. Raises Rejected("invalid_model") with the key, what was found and what is allowed."""
    if model.dtype != "auto" and model.dtype not in BYTES:
        raise _invalid(slug, "dtype", repr(model.dtype[:100]), f"{', '.join(BYTES)} or auto")
    if model.quantisation is not None:
        if model.quantisation not in QUANTISATIONS:
            raise _invalid(slug, "quantisation", repr(model.quantisation[:100]), ", ".join(QUANTISATIONS))
        if model.type != "text":
            raise _invalid(
                slug, "quantisation", repr(model.quantisation), "nothing where a model makes images"
            )
    for key in SIZES:
        size = getattr(model, key)
        least = 1 if key == "context_tokens" else 0
        if size is not None and not least <= size <= MOST_SIZE:
            raise _invalid(slug, key, str(size), f"{least} to {MOST_SIZE}")
    shape = {key: getattr(model, key) for key in ("layers", "kv_heads", "head_dim")}
    if any(shape.values()) and not all(shape.values()):
        missing = next(key for key, size in shape.items() if not size)
        raise _invalid(slug, missing, "0", "1 or more where one of layers, kv_heads and head_dim is given")
    if (model.unquantised_parameters or 0) > model.parameters:
        found = str(model.unquantised_parameters)
        raise _invalid(slug, "unquantised_parameters", found, f"at most the {model.parameters} parameters")
    return model


# what counts something
SIZES = (
    "context_tokens",
    "parameters",
    "unquantised_parameters",
    "layers",
    "kv_heads",
    "head_dim",
    "weights_bytes",
    "kv_bytes_per_token",
    "session_bytes",
)
MOST_SIZE = 1 << 50  # a pebibyte, or as many parameters: what is larger is a slip of the pen


def _invalid(slug: str, key: str, found: str, allowed: str) -> Rejected:
    return Rejected("invalid_model", f"models.{slug}.{key}: found {found}, allowed is {allowed}")


def precision(model: Model, kind: str) -> Precision:
    """Return what the model is computed in on a GPU of `kind`."""
    return usual_precision(kind) if model.dtype == "auto" else cast(Precision, model.dtype)


def footprint(model: Model, kind: str) -> Footprint:
    """Return what `model` takes on a GPU of `kind`; explicit numbers go before those that follow from its shape."""
    loaded = precision(model, kind)
    return Footprint(
        weights_bytes=model.weights_bytes
        or weights_bytes(model.parameters, model.unquantised_parameters, loaded, model.quantisation),
        kv_bytes_per_token=model.kv_bytes_per_token
        or 2 * model.layers * model.kv_heads * model.head_dim * BYTES[loaded],
        context_tokens=model.context_tokens,
        session_bytes=model.session_bytes,
    )


def derived_slots(model: Model, memory_total_bytes: int, kind: str = "") -> int:
    """Return how many sessions of `model` fit a GPU of that memory; 0 means that the model does not fit.

    floor((0.90 · memory - weights - 1.5 GiB) / (KV bytes a token · context + session bytes)), at most 16.
    kind: decides what dtype `auto` is; a GPU's if nothing is said.
    """
    return footprint(model, kind).slots(memory_total_bytes)
