"""The models that can be asked for: what they are called, what they need, how many sessions a GPU may hold."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from helix_es.core.errors import Rejected
from helix_es.core.events import Kind

MOST_SLOTS = (
    16  # until calibrated: a full read of the memory per step bounds speed too (shared design, MODELS.md)
)
RESERVE_BYTES = int(1.5 * 2**30)  # activations and the allocator's slack
USABLE = 0.90  # of a GPU's memory; the rest is the driver's and fragmentation


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
    quantisation: str | None = None
    context_tokens: int = 4096
    """Prompt and answer together, for one session."""
    weights_bytes: int = 0
    """In memory, as loaded."""
    kv_bytes_per_token: int = 0
    """2 · layers · key-value heads · head size · bytes of the type."""
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
        weights_bytes=538_000_000,
        kv_bytes_per_token=46_080,
    ),
    "mistral": Model(
        name="mistralai/Mistral-7B-Instruct-v0.1",
        source="mistralai/Mistral-7B-Instruct-v0.1",
        context_tokens=8192,
        weights_bytes=int(13.5 * 2**30),
        kv_bytes_per_token=131_072,
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


def derived_slots(model: Model, memory_total_bytes: int) -> int:
    """Return how many sessions of `model` fit a GPU of that memory; 0 means that the model does not fit.

    floor((0.90 · memory - weights - 1.5 GiB) / (KV bytes a token · context + session bytes)), at most 16.
    """
    per_session = model.kv_bytes_per_token * model.context_tokens + model.session_bytes
    room = int(USABLE * memory_total_bytes) - model.weights_bytes - RESERVE_BYTES
    if room <= 0:
        return 0
    return min(MOST_SLOTS, room // per_session) if per_session else MOST_SLOTS
