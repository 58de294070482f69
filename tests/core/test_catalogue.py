"""What a model takes follows from its shape, dtype and quantisation, unless it is said."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_es.core.catalogue import BUILTIN, Model, checked, derived_slots, footprint, precision
from helix_es.core.errors import Rejected
from helix_es.core.hardware import GIB, KNOWN_GPUS
from helix_es.settings import parse

MISTRAL, SMOLLM2 = BUILTIN["mistral"], BUILTIN["smollm2"]


def changed(model: Model, **changes: Any) -> Model:
    return msgspec.structs.replace(model, **changes)


@pytest.mark.parametrize(("quantisation", "gib"), [(None, 13.49), ("int8", 7.29), ("nf4", 3.84)])
def test_the_weights_of_mistral_are_those_that_were_reckoned(quantisation: str | None, gib: float) -> None:
    need = footprint(changed(MISTRAL, quantisation=quantisation), "a100-80")
    assert round(need.weights_bytes / GIB, 2) == gib
    assert need.kv_bytes_per_token == 131_072


def test_smollm2_is_as_it_was_measured() -> None:
    need = footprint(SMOLLM2, "cpu")
    assert need.weights_bytes == pytest.approx(538e6, rel=0.001)
    assert need.kv_bytes_per_token == 46_080
    four_bits = footprint(changed(SMOLLM2, quantisation="nf4"), "l4-24")
    assert four_bits.weights_bytes == pytest.approx(110e6, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "usual"),
    [("cpu", "float32"), ("t4-16", "float16"), ("a100-40", "bfloat16"), ("h200-141", "bfloat16")],
)
def test_auto_is_what_the_hardware_computes_well(kind: str, usual: str) -> None:
    assert precision(MISTRAL, kind) == usual
    assert precision(changed(MISTRAL, dtype="float32"), kind) == "float32"


def test_float32_doubles_weights_keys_and_values() -> None:
    half, whole = footprint(MISTRAL, "l4-24"), footprint(MISTRAL, "cpu")
    assert whole.weights_bytes == 2 * half.weights_bytes
    assert whole.kv_bytes_per_token == 2 * half.kv_bytes_per_token


def test_explicit_numbers_go_first() -> None:
    given = changed(MISTRAL, weights_bytes=5, kv_bytes_per_token=7, quantisation="nf4", dtype="float32")
    need = footprint(given, "cpu")
    assert (need.weights_bytes, need.kv_bytes_per_token) == (5, 7)


def test_quantisation_in_the_configuration_changes_the_weights() -> None:
    models = parse({"models": {"mistral": {"quantisation": "nf4"}}}).models
    assert round(footprint(models["mistral"], "t4-16").weights_bytes / GIB, 2) == 3.84
    assert derived_slots(models["mistral"], KNOWN_GPUS["t4-16"].memory_bytes) == 7


def test_without_a_word_about_embeddings_an_eighth_stays_unquantised() -> None:
    model = Model(name="m", source="m", parameters=8_000_000_000, quantisation="nf4")
    assert footprint(model, "l4-24").weights_bytes == 2_000_000_000 + 7_000_000_000 * 8452 // 16384 + 1


def test_the_built_in_models_are_allowed() -> None:
    for slug, model in BUILTIN.items():
        assert checked(slug, model) is model


@pytest.mark.parametrize(
    ("slug", "changes", "said"),
    [
        (
            "mistral",
            {"dtype": "bf16"},
            "models.mistral.dtype: found 'bf16', allowed is float32, bfloat16, float16",
        ),
        (
            "mistral",
            {"quantisation": "int4"},
            "models.mistral.quantisation: found 'int4', allowed is int8, nf4",
        ),
        ("sdxl", {"quantisation": "nf4"}, "nothing where a model makes images"),
        ("mistral", {"context_tokens": 0}, "models.mistral.context_tokens: found 0, allowed is 1 to"),
        ("mistral", {"weights_bytes": -1}, "models.mistral.weights_bytes: found -1"),
        ("mistral", {"layers": -32}, "models.mistral.layers: found -32"),
        ("mistral", {"head_dim": 0}, "models.mistral.head_dim: found 0"),
        ("mistral", {"unquantised_parameters": 8 << 30}, "at most the 7241732096 parameters"),
        ("mistral", {"session_bytes": 1 << 60}, "models.mistral.session_bytes"),
    ],
)
def test_what_is_not_allowed_is_refused_by_its_key(slug: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Rejected) as refused:
        checked(slug, changed(BUILTIN[slug], **changes))
    assert refused.value.code == "invalid_model"
    assert said in str(refused.value)


models = st.builds(
    Model,
    name=st.just("m"),
    source=st.just("m"),
    dtype=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    quantisation=st.sampled_from([None, "int8", "nf4"]),
    context_tokens=st.integers(1, 1 << 17),
    parameters=st.integers(0, 1 << 37),
    unquantised_parameters=st.none() | st.integers(0, 1 << 33),
    layers=st.integers(0, 128),
    kv_heads=st.integers(0, 64),
    head_dim=st.integers(0, 256),
    session_bytes=st.integers(0, 1 << 32),
)
kinds = st.sampled_from([*KNOWN_GPUS, "cpu", "http", ""])
memories = st.integers(0, 1 << 40)


@given(models, memories, memories, kinds)
def test_more_memory_never_holds_fewer(model: Model, one: int, other: int, kind: str) -> None:
    less, more = sorted((one, other))
    assert 0 <= derived_slots(model, less, kind) <= derived_slots(model, more, kind) <= 16


@given(models, memories, st.integers(1, 1 << 17), kinds)
def test_a_longer_context_never_holds_more(model: Model, memory: int, tokens: int, kind: str) -> None:
    longer = changed(model, context_tokens=model.context_tokens + tokens)
    assert derived_slots(longer, memory, kind) <= derived_slots(model, memory, kind)


@given(models, memories, st.integers(0, 1 << 36), kinds)
def test_heavier_weights_never_hold_more(model: Model, memory: int, more: int, kind: str) -> None:
    heavier = changed(model, weights_bytes=footprint(model, kind).weights_bytes + more)
    assert derived_slots(heavier, memory, kind) <= derived_slots(model, memory, kind)


@given(models, kinds)
def test_quantisation_never_needs_more(model: Model, kind: str) -> None:
    sizes = [
        footprint(changed(model, quantisation=each), kind).weights_bytes for each in ("nf4", "int8", None)
    ]
    assert sizes == sorted(sizes)


@given(models, kinds)
def test_what_is_needed_at_least_is_enough_and_a_byte_less_is_not(model: Model, kind: str) -> None:
    least = footprint(model, kind).least_bytes
    assert derived_slots(model, least, kind) >= 1
    assert derived_slots(model, least - 1, kind) == 0
