"""POST and GET /sql: bodies, codes, who may ask, and what the process behind it says."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from litestar import Litestar
from litestar.di import Provide
from litestar.testing import TestClient

from helix_es.analytics.analyst import Analyst
from helix_es.api.problems import PROBLEMS, problem
from helix_es.api.services import Services
from helix_es.api.sql import SqlRoutes
from helix_es.settings import Analytics, Auth, Settings
from tests.analytics.small import AS_OF, SEQ, make

KEYS = {hashlib.sha256(key).hexdigest(): owner for key, owner in ((b"a", "ann"), (b"b", "bob"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("sql")
    make(found / "snapshot.duckdb")
    return found


class Shop:
    """The routes over one folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        analytics = Analytics(folder=str(folder), fresh_s=3_600.0, query_s=2.0, query_rows=50)
        known = Settings(analytics=analytics, **settings)
        nothing = cast(Any, None)
        names = [name for name in Services.__dataclass_fields__ if not name.startswith("_")]
        services = Services(**{**dict.fromkeys(names, nothing), "settings": known})
        analyst = Analyst(analytics)
        app = Litestar(
            route_handlers=[SqlRoutes],
            dependencies={
                "services": Provide(lambda: services, sync_to_thread=False),
                "analyst": Provide(lambda: analyst, sync_to_thread=False),
            },
            exception_handlers={Exception: problem},
            signature_types=[Services, Analyst],
            on_shutdown=[analyst.close],
            request_max_body_size=10_000,
            logging_config=None,
        )
        self.http = TestClient(app)

    def ask(self, **body: Any) -> Any:
        return self.http.post("/sql", json=body)

    def refused(self, **body: Any) -> tuple[int, str, str]:
        answer = self.ask(**body)
        assert answer.headers["content-type"].startswith("application/problem+json"), answer.text
        told = answer.json()
        assert told["type"] == f"urn:helix:problem:{told['code']}"
        assert told["title"] == PROBLEMS[told["code"]][1]
        return answer.status_code, told["code"], told["detail"]


@pytest.fixture(scope="module")
def shop(folder: Path) -> Iterator[Shop]:
    made = Shop(folder)
    with made.http:
        yield made


def test_a_query_is_answered_with_columns_rows_and_how_far_they_go(shop: Shop) -> None:
    answer = shop.ask(
        sql="SELECT session, turns FROM sessions WHERE owner = ? ORDER BY session", params=["ann"]
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    assert told.pop("elapsed_ms") >= 0
    assert told == {
        "columns": [{"name": "session", "type": "VARCHAR"}, {"name": "turns", "type": "INTEGER"}],
        "rows": [["s1", 1], ["s2", 1]],
        "truncated": False,
        "seq": SEQ,
        "as_of": AS_OF,
    }


def test_a_named_query_takes_parameters_by_name(shop: Shop) -> None:
    told = shop.ask(query="longest-waits", params={"most": 1, "since": "-10m"}).json()
    assert [row[0] for row in told["rows"]] == ["s3"]


def test_rows_beyond_the_limit_are_cut_off(shop: Shop) -> None:
    told = shop.ask(sql="FROM range(1000)").json()
    assert (len(told["rows"]), told["truncated"]) == (50, True)
    told = shop.ask(sql="FROM range(1000)", limit=3).json()
    assert (len(told["rows"]), told["truncated"]) == (3, True)


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({}, 400, "invalid_request", "sql, query: give one of the two"),
        ({"sql": "SELECT 1", "query": "owners"}, 400, "invalid_request", "give one of the two"),
        ({"sql": "  "}, 400, "invalid_request", "sql: must not be empty"),
        ({"sql": 1}, 400, "invalid_request", "sql"),
        ({"sql": "SELECT 1", "rows": 1}, 400, "invalid_request", "rows"),
        ({"sql": "SELECT 1", "limit": 51}, 400, "invalid_request", "limit: must be 0 to 50"),
        ({"sql": "SELECT 1", "limit": -1}, 400, "invalid_request", "limit"),
        ({"sql": "SELECT 1", "timeout_s": 3}, 400, "invalid_request", "timeout_s: must be more than 0"),
        ({"sql": "SELECT 1", "timeout_s": 0}, 400, "invalid_request", "timeout_s"),
        ({"sql": "SELECT 1", "params": 5}, 400, "invalid_request", "params"),
        ({"sql": "DROP TABLE turns"}, 422, "sql_refused", "DROP is not allowed: this only reads"),
        ({"sql": "SELECT 1; SELECT 2"}, 422, "sql_refused", "send one at a time"),
        ({"sql": "FROM read_csv('/etc/passwd')"}, 422, "sql_refused", "read_csv() is not allowed"),
        ({"sql": "SELEC 1"}, 422, "sql_error", "syntax error"),
        ({"sql": "SELECT $a"}, 422, "sql_error", "Values were not provided"),
        ({"query": "nobody"}, 422, "unknown_query", "there is no query 'nobody'; there are"),
        ({"query": "owners", "params": {"x": 1}}, 422, "sql_error", "owners has no parameter x"),
        ({"query": "owners", "params": [1]}, 422, "sql_error", "parameters of a named query have names"),
        ({"sql": "SELECT repeat('x', 1_000_000_000)"}, 422, "sql_too_large", "needs more memory"),
        (
            {"sql": "SELECT count(*) FROM range(1_000_000_000_000)", "timeout_s": 0.2},
            422,
            "sql_timeout",
            "did not end within 0.2 s",
        ),
    ],
)
def test_what_cannot_be_answered_has_a_stable_code(
    shop: Shop, body: dict[str, Any], status: int, code: str, said: str
) -> None:
    found = shop.refused(**body)
    assert found[:2] == (status, code)
    assert said in found[2]


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[]", 400, "invalid_request"),
        (b'{"sql": "' + b"x" * 20_000 + b'"}', 413, "body_too_large"),
        (b'{"sql": "SELECT 1", "params": ' + b"[" * 4_000 + b"]" * 4_000 + b"}", 400, "invalid_json"),
    ],
)
def test_a_body_that_is_no_request_is_refused_as_elsewhere(
    shop: Shop, raw: bytes, status: int, code: str
) -> None:
    answer = shop.http.post("/sql", content=raw, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_the_named_queries_are_listed_with_how_far_the_tables_go(shop: Shop) -> None:
    told = shop.http.get("/sql").json()
    assert (told["seq"], told["as_of"], told["set_aside"], told["unavailable"]) == (SEQ, AS_OF, 1, None)
    names = {each["name"]: each for each in told["data"]}
    assert len(names) == 15
    most = names["owners"]["params"][0]
    assert most == {"name": "most", "type": "count", "default": "100", "description": "so many"}


def test_without_analytics_it_says_what_to_start(tmp_path: Path) -> None:
    shop = Shop(tmp_path)
    with shop.http:
        status, code, said = shop.refused(sql="SELECT 1")
        assert (status, code) == (503, "analytics_unavailable")
        assert "start 'helix analytics'" in said
        told = shop.http.get("/sql").json()
        assert (told["seq"], told["set_aside"]) == (None, None)
        assert "start 'helix analytics'" in told["unavailable"]
        assert told["data"]


def test_with_keys_only_analysts_may_ask(folder: Path) -> None:
    shop = Shop(folder, auth=Auth(keys=KEYS, analysts=["ann"]))
    with shop.http:
        for key, status, code in (("a", 200, None), ("b", 403, "not_an_analyst"), ("c", 401, "unauthorized")):
            headers = {"authorization": f"Bearer {key}"}
            asked = shop.http.post("/sql", json={"sql": "SELECT 1"}, headers=headers)
            listed = shop.http.get("/sql", headers=headers)
            for answer in (asked, listed):
                assert (answer.status_code, answer.json().get("code")) == (status, code)


def test_the_document_describes_both_routes(shop: Shop) -> None:
    paths = shop.http.get("/schema/openapi.json").json()["paths"]
    assert set(paths["/sql"]) == {"get", "post"}
    assert "200" in paths["/sql"]["post"]["responses"]
