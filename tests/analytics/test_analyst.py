"""Several askers at once: two are served, some wait, the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from helix_es.analytics import analyst as module
from helix_es.analytics.analyst import Analyst
from helix_es.analytics.questions import Question, Unanswered
from helix_es.settings import Analytics

pytestmark = pytest.mark.anyio

ONE = Question(sql="SELECT 1")
LONG = Question(sql="SELECT count(*) FROM range(1_000_000_000_000)", timeout_s=0.3)


@pytest.fixture
async def analyst(snapshot: Path) -> AsyncIterator[Analyst]:
    made = Analyst(Analytics(folder=str(snapshot.parent), fresh_s=3_600.0))
    yield made
    await made.close()


async def test_the_event_loop_goes_on_while_queries_run(analyst: Analyst) -> None:
    ticks = 0
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(_code(analyst, LONG)) for _ in range(2)]
        while not all(each.done() for each in asked):
            await asyncio.sleep(0.01)
            ticks += 1
    assert [each.result() for each in asked] == ["sql_timeout"] * 2
    assert ticks >= 10


async def test_a_third_waits_and_is_refused_if_that_takes_too_long(
    analyst: Analyst, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(_code(analyst, LONG))
        third = group.create_task(analyst.ask(ONE))
        await asyncio.sleep(0)
        monkeypatch.setattr(module, "WAIT_S", 0.01)
        assert await _code(analyst, ONE) == "sql_busy"
        assert not third.done()
    assert b"[[1]]" in third.result()


async def test_only_so_many_wait(analyst: Analyst, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 0)
    assert await _code(analyst, ONE) == "sql_busy"


async def test_who_goes_away_leaves_the_place_taken_until_the_query_ends(analyst: Analyst) -> None:
    gone = asyncio.create_task(analyst.ask(LONG))
    await _until(lambda: len(analyst._idle) == module.AT_ONCE - 1)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert len(analyst._idle) == module.AT_ONCE - 1
    answers = await asyncio.gather(*(analyst.ask(ONE) for _ in range(4)))
    assert all(b"[[1]]" in answer for answer in answers)
    await _until(lambda: len(analyst._idle) == module.AT_ONCE)


async def test_without_a_snapshot_it_says_what_to_start(tmp_path: Path) -> None:
    analyst = Analyst(Analytics(fresh_s=0.0), folder=tmp_path)
    with pytest.raises(Unanswered, match="start 'helix analytics'") as error:
        await analyst.ask(ONE)
    assert error.value.code == "analytics_unavailable"
    assert len(analyst._idle) == module.AT_ONCE


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 — what it waits for says nothing
            await asyncio.sleep(0.005)


async def _code(analyst: Analyst, question: Question) -> str:
    try:
        await analyst.ask(question)
    except Unanswered as error:
        return error.code
    return "answered"
