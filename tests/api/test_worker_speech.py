"""A worker's words on a real server: two replicas of the API, no gaps, no doubles, and nothing cut off in silence."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from helix_es.api.workers import speech as module
from helix_es.api.workers.speech import Speech
from helix_es.api.workers.taskid import TaskId
from helix_es.core.errors import Rejected, Unavailable
from helix_es.core.events import GpuId, SessionId
from helix_es.jetstream.client import Connection
from helix_es.jetstream.deltas import Delta, Deltas, Step

pytestmark = pytest.mark.anyio

TASK = TaskId(SessionId("s1"), 1, 1, GpuId("w1"), "http-1")


async def text(speech: Speech) -> str | None:
    return (await speech.whole(TASK)).text


async def test_pieces_follow_each_other_whichever_replica_takes_them(connection: Connection) -> None:
    one, two = Speech(connection), Speech(connection)
    for n, piece in enumerate(["The", "lighthouse", "stood", "silent", "in", "the", "storm"]):
        await (one, two, two)[n % 3].say(TASK, piece + " ", None)
    assert await text(one) == await text(two) == "The lighthouse stood silent in the storm "
    offsets = [(each.offset, len(each.text)) for each in await Deltas(connection).read("s1", 1, 1)]
    assert all(a + n == b for (a, n), (b, _) in pairwise(offsets))


async def test_pieces_that_come_at_once_to_two_replicas_do_not_overlap(connection: Connection) -> None:
    both = Speech(connection), Speech(connection)
    await asyncio.gather(*(both[n % 2].say(TASK, f"<{n}>", None) for n in range(40)))
    whole = await text(both[0])
    assert whole is not None
    assert sorted(whole.strip("<>").split("><"), key=int) == [str(n) for n in range(40)]


async def test_a_piece_sent_again_with_its_place_is_there_once(connection: Connection) -> None:
    speech = Speech(connection)
    await speech.say(TASK, "one ", 0)
    await speech.say(TASK, "two ", 4)
    await Speech(connection).say(TASK, "two ", 4)
    await speech.say(TASK, "three", None)
    assert await text(speech) == "one two three"


async def test_a_worker_that_begins_anew_stands_at_the_beginning_at_every_replica(
    connection: Connection,
) -> None:
    one, two = Speech(connection), Speech(connection)
    await one.say(TASK, "half of it", None)
    await two.begin_anew(TASK)
    await one.say(TASK, "all ", None)
    await two.say(TASK, "of it", None)
    assert await text(one) == await text(two) == "all of it"
    fresh = TaskId(SessionId("s2"), 1, 1, GpuId("w1"), "http-1")
    await one.begin_anew(fresh)
    assert await Deltas(connection).read("s2", 1, 1) == [], "nothing was said, nothing is taken back"


async def test_what_is_not_remembered_as_a_whole_is_not_passed_off_as_it(connection: Connection) -> None:
    speech = Speech(connection)
    assert await text(speech) == ""
    await speech.say(TASK, "begin ", None)
    await connection.api("STREAM.PURGE.DELTAS", {})  # as its age does, or a restart
    assert await text(speech) is None, "we said more than is there"
    await speech.say(TASK, "and end", None)
    assert await text(Speech(connection)) is None, "the first that is there does not stand at 0"
    await speech.say(TASK, "anew", 0)
    assert await text(speech) == "anew"


async def test_steps_stand_between_the_words_and_one_a_second_is_a_fact(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech = Speech(connection)
    await speech.say(TASK, "ab", None)
    assert await speech.step(TASK, Step(step=1, steps=9))
    assert not await speech.step(TASK, Step(step=2, steps=9))
    monkeypatch.setattr(module, "FACT_EVERY_S", 0.0)
    assert not await speech.step(TASK, Step(step=3, steps=9)), "so soon after another it is not even told"
    monkeypatch.setattr(module, "STEP_EVERY_S", 0.0)
    assert await speech.step(TASK, Step(step=3, steps=9))
    await Speech(connection).say(TASK, "cd", None)
    assert await text(speech) == "abcd"
    told = [each.step.step for each in await Deltas(connection).read("s1", 1, 1) if each.step is not None]
    assert told == [1, 3]


async def test_who_says_the_same_over_and_over_does_not_fill_the_brokers_memory(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_TOLD_CHARS", 20)
    speech = Speech(connection)
    for _ in range(4):
        await speech.say(TASK, "12345", 0)
    with pytest.raises(Rejected) as refused:
        await speech.say(TASK, "12345", 0)
    assert refused.value.code == "output_too_large"


async def test_an_output_without_end_is_refused_and_what_was_said_stays(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CHARS", 10)
    speech = Speech(connection)
    await speech.say(TASK, "12345678", None)
    for piece, offset in (("9012", None), ("x", 10), ("x" * 11, 0)):
        with pytest.raises(Rejected) as refused:
            await speech.say(TASK, piece, offset)
        assert refused.value.code == "output_too_large"
    await speech.say(TASK, "90", None)
    assert await text(speech) == "1234567890"


async def test_forged_pieces_are_passed_over(connection: Connection) -> None:
    speech = Speech(connection)
    await speech.say(TASK, "true", None)
    await connection.publish("delta.s1.1.1", b"not a delta")
    await speech.say(TASK, " still", None)
    assert await text(speech) == "true still"


async def test_nothing_is_acknowledged_that_is_not_stored(connection: Connection) -> None:
    await connection.api("STREAM.DELETE.DELTAS")
    with pytest.raises(Unavailable):
        await Speech(connection).say(TASK, "lost", None)


async def test_the_first_word_has_the_servers_time(connection: Connection) -> None:
    speech = Speech(connection)
    assert (await speech.whole(TASK)).first_ms is None
    await speech.step(TASK, Step(step=1, steps=2))
    assert (await speech.whole(TASK)).first_ms is None, "a step is no word"
    await speech.say(TASK, "a", None)
    first_ms = (await speech.whole(TASK)).first_ms
    await speech.say(TASK, "b", None)
    assert first_ms is not None
    assert (await speech.whole(TASK)).first_ms == first_ms


async def test_the_pieces_are_those_that_every_client_reads(connection: Connection) -> None:
    await Speech(connection).say(TASK, "hello", None)
    (piece,) = await Deltas(connection).read("s1", 1, 1)
    assert piece == Delta(session="s1", turn=1, attempt=1, offset=0, text="hello")
