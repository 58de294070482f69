"""Named queries on what the other tests do not have: no rows at all, and turns that came back to the door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import duckdb
import pytest

from helix_es.analytics.named import shipped
from helix_es.analytics.questions import Limits
from helix_es.analytics.sandbox import Sandbox
from helix_es.analytics.schema import statements
from tests.analytics.small import at, insert
from tests.analytics.test_named import part, rows

Fill = Callable[[duckdb.DuckDBPyConnection], None]
Opened = Callable[[Fill], Sandbox]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """Give what opens a database that has what the argument put into it."""
    with ExitStack() as stack:

        def open_(fill: Fill) -> Sandbox:
            path = tmp_path / "snapshot.duckdb"
            with duckdb.connect(path) as connection:
                connection.execute("SET TimeZone = 'UTC'")
                connection.execute(statements())
                insert(connection, "position", stream="LOG", seq=0)
                insert(connection, "position", stream="BEATS", seq=0)
                fill(connection)
            return stack.enter_context(closing(Sandbox(path, Limits(), lambda: None)))

        yield open_


def test_nothing_is_said_of_a_shop_of_which_nothing_is_known(opened: Opened) -> None:
    sandbox = opened(lambda _: None)
    assert {name: rows(sandbox, name) for name in shipped()} == {name: [] for name in shipped()}


def test_whoever_came_back_to_the_door_waits_there(opened: Opened) -> None:
    """As `helix replay --at` counts them: a lost GPU sends back also those who were continued, and never waited."""

    def fill(connection: duckdb.DuckDBPyConnection) -> None:
        about = {"turn": 1, "mode": "create", "type": "text", "model": "mistral", "state": "queued"}
        about["said_at"] = at("11:59:00")
        insert(connection, "turns", **about, session="new", how="queued")
        insert(
            connection,
            "turns",
            **about,
            session="back",
            how="queued",
            admitted_at=at("11:59:02"),
            wait_ms=2_000,
        )
        insert(connection, "turns", **about, session="middle", how="continued", wait_ms=0)

    (found,) = rows(opened(fill), "waits-by-model")
    assert part(found, "waiting", "admitted", "gave_up") == [3, 1, 0]
    assert part(found, "p50_s", "max_s") == [2.0, 2.0], (
        "a turn that was continued was not waiting for admission"
    )
