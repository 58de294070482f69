"""Where a coefficient comes from, and what is told about a model that runs nowhere."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_es.core import events as e
from helix_es.core.capacity import explain, known_slots, unfit
from helix_es.core.catalogue import BUILTIN, Model
from helix_es.core.floor import Gpu
from helix_es.core.hardware import GIB, KNOWN_GPUS, Card
from tests.core.test_catalogue import changed, kinds, memories, models

MISTRAL = BUILTIN["mistral"]
NO_RULES = e.Policy()
CHAT = e.Workload("create", "text", "mistral")
TUNE = e.Workload("finetune", "text", "mistral")

# Shared design, MODELS.md, "Capacity": sessions of Mistral-7B at 4k, 8k and 32k tokens, before the cap of 16.
TABLE = {
    ("a100-40", None): (40, 20, 5),
    ("a100-80", None): (112, 56, 14),
    ("h100-80", None): (112, 56, 14),
    ("l4-24", None): (9, 4, 1),
    ("rtx4090-24", None): (12, 6, 1),
    ("t4-16", None): (0, 0, 0),
    ("a100-40", "nf4"): (60, 30, 7),
    ("a100-80", "nf4"): (131, 65, 16),
    ("h100-80", "nf4"): (131, 65, 16),
    ("l4-24", "nf4"): (28, 14, 3),
    ("rtx4090-24", "nf4"): (31, 15, 3),
    ("t4-16", "nf4"): (15, 7, 1),
    # the design gives 7.3 GiB of weights and no row: reckoned by hand from its formula
    ("a100-40", "int8"): (53, 26, 6),
    ("a100-80", "int8"): (124, 62, 15),
    ("h100-80", "int8"): (124, 62, 15),
    ("l4-24", "int8"): (22, 11, 2),
    ("rtx4090-24", "int8"): (24, 12, 3),
    ("t4-16", "int8"): (8, 4, 1),
}


def gpu(name: str = "n-0", kind: str = "cpu", memory: float = 16.0, **others: Any) -> Gpu:
    offered = others.pop("offered", {})
    workloads = others.pop("workloads", [e.Workload("create", "text", slug) for slug in offered])
    return Gpu(
        gpu=e.GpuId(name),
        incarnation="i1",
        kind=kind,
        memory_total_bytes=int(memory * GIB),
        workloads=workloads,
        offered=offered,
        **others,
    )


@pytest.mark.parametrize(("kind", "quantisation"), TABLE)
@pytest.mark.parametrize(("place", "tokens"), [(0, 4_096), (1, 8_192), (2, 32_768)])
def test_the_table_of_the_design_is_reproduced(
    kind: str, quantisation: str | None, place: int, tokens: int
) -> None:
    model = changed(MISTRAL, quantisation=quantisation, context_tokens=tokens)
    found = explain(model, "mistral", Card(kind=kind), NO_RULES)
    wanted = TABLE[kind, quantisation][place]
    assert (found.quotient, found.coefficient, found.source) == (wanted, min(wanted, 16), "memory")
    assert (found.reason is None) == (wanted > 0)
    assert found.dtype == ("float16" if kind == "t4-16" else "bfloat16")


def test_the_derivation_is_one_line_with_every_number() -> None:
    assert explain(MISTRAL, "mistral", Card(kind="a100-80"), NO_RULES).line == (
        "0.90 × 79.0 GiB − 13.5 GiB weights − 1.5 GiB reserve = 56.1 GiB; "
        "÷ 1.00 GiB a session (8192 tokens × 128 KiB) = 56, at most 16 until calibrated → 16"
    )
    assert explain(MISTRAL, "mistral", Card(kind="l4-24"), NO_RULES).line.endswith(" = 4 → 4")


def test_the_terms_add_up() -> None:
    found = explain(changed(MISTRAL, session_bytes=5), "mistral", Card(kind="a100-40"), NO_RULES)
    assert found.usable_bytes == found.memory_bytes * 9 // 10
    assert found.room_bytes == found.usable_bytes - found.weights_bytes - found.reserve_bytes
    assert found.per_session_bytes == found.kv_bytes_per_token * found.context_tokens + found.session_bytes
    assert found.quotient == found.room_bytes // found.per_session_bytes


def test_what_does_not_fit_says_why() -> None:
    found = explain(MISTRAL, "mistral", Card(kind="t4-16"), NO_RULES)
    assert found.reason == "does not fit: it needs at least 17.8 GiB, and there are 14.6 GiB"
    assert found.line.endswith("= −1.8 GiB: no room for a session → 0")
    tight = explain(MISTRAL, "mistral", Card(kind="cuda", memory_bytes=17 * GIB), NO_RULES)
    assert (tight.coefficient, tight.quotient) == (0, 0)
    assert tight.room_bytes > 0
    assert tight.reason


def test_memory_that_a_gpu_says_goes_before_that_of_its_kind() -> None:
    assert explain(MISTRAL, "mistral", Card(kind="a100-80", memory_bytes=10 * GIB), NO_RULES).coefficient == 0


def test_the_table_goes_before_the_offer_and_the_offer_before_memory() -> None:
    rules = e.Policy(coefficients={"t4-16/mistral": 20})
    card = Card(kind="t4-16", offered=3)
    found = explain(MISTRAL, "mistral", card, rules)
    assert (found.coefficient, found.source, found.reason) == (20, "table", None)
    assert found.line.startswith("[coefficients] says 20 for t4-16/mistral; by memory: 0.90 × ")
    found = explain(MISTRAL, "mistral", card, NO_RULES)
    assert (found.coefficient, found.source) == (3, "offer")
    assert explain(MISTRAL, "mistral", Card(kind="t4-16"), rules).source == "table"
    none = explain(MISTRAL, "mistral", card, e.Policy(coefficients={"t4-16/mistral": 0}))
    assert (none.coefficient, none.reason) == (0, "[coefficients] says 0")


def test_memory_that_nobody_knows_holds_what_is_offered_only() -> None:
    found = explain(MISTRAL, "mistral", Card(kind="http"), NO_RULES)
    assert (found.coefficient, found.quotient, found.memory_bytes) == (0, None, 0)
    assert found.reason == "its memory is not known, and it does not offer this model"
    assert explain(MISTRAL, "mistral", Card(kind="http", offered=2), NO_RULES).coefficient == 2


def test_a_model_of_unknown_shape_is_held_by_any_memory_up_to_the_cap() -> None:
    found = explain(Model(name="m", source="m"), "m", Card(kind="l4-24"), NO_RULES)
    assert (found.coefficient, found.quotient) == (16, None)
    assert "not known" in found.line


@given(models, kinds, memories, st.none() | st.integers(0, 64), st.integers(0, 10_000))
def test_a_coefficient_is_never_negative_and_the_table_goes_first(
    model: Model, kind: str, memory: int, offered: int | None, says: int
) -> None:
    card = Card(kind=kind, memory_bytes=memory, offered=offered)
    found = explain(model, "m", card, NO_RULES)
    assert found.coefficient >= 0
    assert (found.reason is None) == (found.coefficient > 0)
    table = explain(model, "m", card, e.Policy(coefficients={f"{kind}/m": says, f"{kind}/n": says + 1}))
    assert (table.coefficient, table.source) == (says, "table")
    assert all(isinstance(getattr(found, name), int) for name in SIZES)


SIZES = [each.name for each in msgspec.structs.fields(type(explain(MISTRAL, "m", Card(kind=""), NO_RULES)))]
SIZES = [name for name in SIZES if name.endswith("_bytes")]


def test_kinds_known_by_name_have_a_coefficient_before_any_gpu_is_here() -> None:
    assert [known_slots(MISTRAL, kind) for kind in ("a100-80", "l4-24", "t4-16", "cpu")] == [16, 4, 0, None]


# -- what runs nowhere -------------------------------------------------------------------------------------------------


def why(
    *gpus: Gpu, policy: e.Policy = NO_RULES, model: Model = MISTRAL, mode: e.Mode = "create"
) -> str | None:
    return unfit(model, "mistral", gpus, policy, mode)


def test_an_empty_floor_says_nothing() -> None:
    assert why() is None


def test_what_fits_no_gpu_is_refused_with_what_to_do() -> None:
    assert why(gpu("n-0", "t4-16", 14.6), gpu("n-1", "cpu", 8)) == (
        "mistral fits no GPU here: it needs at least 17.8 GiB of GPU memory (13.5 GiB weights, 1.0 GiB one session, "
        "1.5 GiB reserve, 10 % unusable), and the largest GPU here, n-0 (t4-16), has 14.6 GiB: "
        'set quantisation = "nf4" in [models.mistral], with which 7.1 GiB are enough, or add a larger GPU'
    )


def test_a_shorter_context_is_proposed_where_it_helps() -> None:
    said = why(gpu("n-0", "l4-24", 18), model=changed(MISTRAL, context_tokens=32_768))
    assert said is not None
    tokens = int(said.split("lower context_tokens to ")[1].split()[0])
    assert why(gpu("n-0", "l4-24", 18), model=changed(MISTRAL, context_tokens=tokens)) is None
    assert why(gpu("n-0", "l4-24", 18), model=changed(MISTRAL, context_tokens=tokens + 1)) is not None


def test_nothing_is_proposed_that_does_not_help() -> None:
    said = why(gpu("n-0", "cuda", 2))
    assert said is not None
    assert said.endswith("has 2.0 GiB: add a larger GPU")


def test_one_gpu_with_the_memory_is_enough_whatever_it_serves_now() -> None:
    busy = gpu("n-1", "a100-40", 39.4, offered={"smollm2": 16}, model="smollm2")
    assert why(gpu("n-0", "t4-16", 14.6), busy) is None


def test_an_offer_goes_before_memory() -> None:
    program = gpu("n-0", "cpu", 2, offered={"mistral": 1}, workloads=[CHAT])
    assert why(program) is None
    assert why(gpu("n-0", "cpu", 2, workloads=[CHAT])) is None, "who lists a workload holds one of it"


def test_a_worker_whose_memory_nobody_knows_counts_for_what_it_offers() -> None:
    assert why(gpu("w1", "http", 0, offered={"mistral": 1}, workloads=[CHAT])) is None
    said = why(gpu("w1", "http", 0, offered={"smollm2": 1}))
    assert said is not None
    assert "no GPU here says how much it has, or offers mistral" in said


def test_the_table_decides_for_conversations() -> None:
    small, large = gpu("n-0", "t4-16", 14.6), gpu("n-1", "a100-80", 79)
    assert why(small, policy=e.Policy(coefficients={"t4-16/mistral": 1})) is None
    said = why(large, policy=e.Policy(coefficients={"a100-80/mistral": 0}))
    assert said is not None
    assert said.endswith("but [coefficients] or its runner allows 0 for a100-80/mistral; raise that")


def test_a_pool_that_serves_the_model_can_hold_it() -> None:
    def pool(**rule: Any) -> e.Policy:
        return e.Policy(pools={"burst": e.PoolRule(**rule)})

    assert why(policy=pool(workloads=[CHAT])) is None
    assert why(gpu(memory=2), policy=pool(workloads=[CHAT], slots={"mistral": 4})) is None
    for rule in ({"workloads": [TUNE]}, {"workloads": [CHAT], "slots": {"mistral": 0}}, {}):
        said = why(policy=pool(**rule))
        assert said is not None
        assert "no pool serves it" in said


def test_a_training_is_refused_for_its_weights_alone() -> None:
    tight = gpu("n-0", "l4-24", 17)
    assert why(tight) is not None
    assert why(tight, mode="finetune") is None
    assert why(gpu("n-0", "l4-24", 15), mode="finetune") is not None
    tuner = gpu("n-0", "l4-24", 15, offered={"mistral": 1}, workloads=[TUNE])
    assert why(tuner, policy=e.Policy(coefficients={"l4-24/mistral": 0}), mode="finetune") is None


floors = st.lists(
    st.tuples(kinds, memories, st.none() | st.integers(0, 4)).map(
        lambda each: Gpu(
            gpu=e.GpuId("g"),
            incarnation="i",
            kind=each[0],
            memory_total_bytes=each[1],
            workloads=[] if each[2] is None else [e.Workload("create", "text", "m")],
            offered={} if each[2] is None else {"m": each[2]},
        )
    ),
    max_size=6,
)


@given(models, floors, st.dictionaries(kinds.map(lambda kind: f"{kind}/m"), st.integers(0, 3)))
def test_it_is_refused_exactly_when_no_gpu_here_has_a_coefficient(
    model: Model, floor: list[Gpu], coefficients: dict[str, int]
) -> None:
    rules = e.Policy(coefficients=coefficients)
    slots = [
        explain(
            model,
            "m",
            Card(
                kind=each.kind,
                memory_bytes=each.memory_total_bytes,
                offered=each.offered.get("m") if each.workloads else None,
            ),
            rules,
        ).coefficient
        for each in floor
    ]
    assert (unfit(model, "m", floor, rules) is None) == (any(slots) or not slots)


@given(models, floors)
def test_a_gpu_more_never_makes_it_unfit(model: Model, floor: list[Gpu]) -> None:
    if floor and unfit(model, "m", floor[:-1] or floor, NO_RULES) is None:
        assert unfit(model, "m", floor, NO_RULES) is None


def test_every_known_kind_is_larger_than_what_its_name_promises_less_a_tenth() -> None:
    for kind, known in KNOWN_GPUS.items():
        named = int(kind.rpartition("-")[2]) * GIB
        assert 0.9 * named <= known.memory_bytes <= named


def test_a_processor_waits_for_a_program_that_brings_a_large_model_in_four_bits() -> None:
    def why(model: Model, gib: int) -> str | None:
        gpu = Gpu(
            gpu=e.GpuId("box-0"),
            incarnation="i",
            kind="cpu",
            memory_total_bytes=gib << 30,
            workloads=[e.Workload("create", "text", "smollm2")],
            offered={},
        )
        return unfit(model, "mistral", [gpu], e.Policy())

    assert why(BUILTIN["mistral"], 16) is None
    assert "mistral fits no GPU here" in (why(BUILTIN["mistral"], 4) or "")
