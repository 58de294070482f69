"""The route that explains coefficients: the fold's policy and GPUs, the configuration's models."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
from litestar import Litestar
from litestar.di import Provide
from litestar.testing import TestClient

from helix_es.api.capacity import CapacityRoutes
from helix_es.api.problems import problem
from helix_es.api.services import Services
from helix_es.core import events as e
from helix_es.core.floor import Gpu
from helix_es.core.hardware import GIB, KNOWN_GPUS
from helix_es.core.occupancy import Occupancy
from helix_es.settings import Auth, Settings

KEYS = {hashlib.sha256(b"secret").hexdigest(): "ann"}


class Replica:
    """Only its fold."""

    def __init__(self) -> None:
        self.state = Occupancy()


class Shop:
    """The route on a fold that tests fill."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.replica = Replica()
        nothing = cast(Any, None)
        services = Services(
            connection=nothing,
            settings=settings or Settings(),
            log=nothing,
            replica=cast(Any, self.replica),
            directory=nothing,
            deltas=nothing,
            desk=nothing,
            beats=nothing,
            files=nothing,
            adapters=nothing,
            workers=nothing,
        )
        app = Litestar(
            route_handlers=[CapacityRoutes],
            dependencies={"services": Provide(lambda: services, sync_to_thread=False)},
            exception_handlers={Exception: problem},
            signature_types=[Services],
            logging_config=None,
        )
        self.http = TestClient(app)

    def join(self, name: str, kind: str, gib: float, offered: dict[str, int], **others: Any) -> None:
        self.replica.state.gpus[name] = Gpu(
            gpu=e.GpuId(name),
            incarnation="i1",
            kind=kind,
            memory_total_bytes=int(gib * GIB),
            workloads=[e.Workload("create", "text", slug) for slug in offered],
            offered=offered,
            **others,
        )

    def rows(self, **query: str) -> list[dict[str, Any]]:
        answer = self.http.get("/models/explain", params=query)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])


@pytest.fixture
def shop() -> Iterator[Shop]:
    made = Shop()
    with made.http:
        yield made


def test_an_empty_floor_shows_every_model_on_every_known_kind(shop: Shop) -> None:
    rows = shop.rows()
    assert [(row["model"], row["kind"]) for row in rows] == [
        (model, kind) for model in sorted(Settings().models) for kind in sorted(KNOWN_GPUS)
    ]
    assert {row["gpus"] for row in rows} == {0}
    found = {row["kind"]: row["coefficient"] for row in rows if row["model"] == "mistral"}
    assert found == {"a100-40": 16, "a100-80": 16, "h100-80": 16, "l4-24": 4, "rtx4090-24": 6, "t4-16": 0}


def test_sizes_are_whole_bytes(shop: Shop) -> None:
    shop.join("n-0", "cpu", 15.6, {"smollm2": 4})
    for row in shop.rows():
        assert all(isinstance(value, int) for key, value in row.items() if key.endswith("_bytes"))


def test_kinds_on_the_floor_are_shown_as_they_are_there(shop: Shop) -> None:
    shop.join("n-0", "cpu", 16, {"smollm2": 4})
    shop.join("n-1", "cpu", 16, {"smollm2": 4})
    shop.join("n-2", "a100-80", 80, {"mistral": 12})
    shop.join("w1", "http", 0, {"mistral": 1})
    rows = {(row["model"], row["kind"]): row for row in shop.rows()}
    cpu = rows["smollm2", "cpu"]
    assert (cpu["gpus"], cpu["coefficient"], cpu["source"], cpu["dtype"]) == (2, 4, "offer", "float32")
    own = rows["mistral", "a100-80"]
    assert (own["gpus"], own["coefficient"], own["memory_bytes"]) == (1, 12, 80 * GIB)
    assert rows["smollm2", "a100-80"]["source"] == "memory"
    assert (rows["mistral", "http"]["coefficient"], rows["smollm2", "http"]["coefficient"]) == (1, 0)
    assert rows["mistral", "t4-16"]["gpus"] == 0


def test_those_that_offer_a_model_speak_for_their_kind(shop: Shop) -> None:
    shop.join("n-0", "cpu", 16, {"smollm2": 4})
    shop.join("n-1", "cpu", 16, {"scenes": 2})
    (row,) = [row for row in shop.rows(model="smollm2") if row["kind"] == "cpu"]
    assert (row["gpus"], row["source"]) == (1, "offer")


def test_the_coefficients_are_those_in_the_log(shop: Shop) -> None:
    shop.replica.state.policy = e.Policy(coefficients={"l4-24/mistral": 2})
    found = {row["kind"]: (row["coefficient"], row["source"]) for row in shop.rows(model="mistral")}
    assert found["l4-24"] == (2, "table")
    shop.replica.state.policy = e.Policy()
    found = {row["kind"]: (row["coefficient"], row["source"]) for row in shop.rows(model="mistral")}
    assert found["l4-24"] == (4, "memory")


def test_gpus_that_ran_out_of_memory_are_named(shop: Shop) -> None:
    shop.join("n-0", "l4-24", 22, {"mistral": 4}, strained={"create/mistral": 3})
    shop.join("n-1", "l4-24", 22, {"mistral": 4}, strained={"finetune/mistral": 1})
    (row,) = [row for row in shop.rows(model="mistral") if row["kind"] == "l4-24"]
    assert (row["gpus"], row["coefficient"]) == (2, 4)
    assert row["lowered"] == [{"gpu": "n-0", "slots": 3}]


def test_a_model_is_found_by_its_full_name(shop: Shop) -> None:
    assert {row["model"] for row in shop.rows(model="MistralAI/Mistral-7B-Instruct-v0.1")} == {"mistral"}


@pytest.mark.parametrize("name", ["gpt", "", "../x", "m" * 5000])
def test_a_model_that_is_not_there_is_a_problem(shop: Shop, name: str) -> None:
    answer = shop.http.get("/models/explain", params={"model": name})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_model")
    assert len(answer.text) < 1000


def test_without_a_key_nothing_is_told() -> None:
    locked = Shop(msgspec.structs.replace(Settings(), auth=Auth(keys=KEYS)))
    with locked.http as http:
        assert http.get("/models/explain").status_code == 401
        given = {"Authorization": "Bearer secret"}
        assert http.get("/models/explain", headers=given).status_code == 200
