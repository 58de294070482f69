"""Logs that are read to their end: the live one with holes in it, files that are damaged."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from helix_es.archive import Chained, JsonLines, Live
from helix_es.core import events as e
from helix_es.core.errors import Unavailable, Unreadable
from helix_es.core.subjects import subject_of
from helix_es.core.timeline import Timeline
from helix_es.log import Batch
from helix_es.testing import InMemoryLog

pytestmark = pytest.mark.anyio


class Holed(InMemoryLog):
    """A log from which messages were deleted by hand; it follows for ever, as the real one does."""

    def __init__(self, count: int, deleted: set[int]) -> None:
        super().__init__(lambda: 1_000)
        for n in range(count):
            closed = e.SessionClosed(session=e.SessionId(f"s{n}"))
            self.append_now(closed, expected_seq=0, key=subject_of(closed))
        self.deleted = deleted

    async def follow(self, after_seq: int, *, filters: Sequence[str] = ()) -> AsyncIterator[Batch]:
        async for batch in super().follow(after_seq, filters=filters):
            yield Batch([each for each in batch.records if each.seq not in self.deleted], batch.pending)


async def read(archive: Live | Chained | JsonLines, after_seq: int = 0) -> list[int]:
    return [record.seq async for records in archive.read(after_seq) for record in records]


async def test_a_log_whose_last_message_was_deleted_is_read_to_its_end() -> None:
    assert await read(Live(Holed(3, {3}))) == [1, 2]
    assert await read(Live(Holed(3, {2, 3})), 1) == []


async def test_deleted_messages_are_passed_over_and_told() -> None:
    live = Live(Holed(9, {3, 4, 7}))
    assert await read(live) == [1, 2, 5, 6, 8, 9]
    assert live.missing == {3: 2, 7: 1}


async def test_a_log_that_begins_later_is_refused_with_what_to_do() -> None:
    with pytest.raises(Unavailable, match="begins at sequence 3, 1 is gone: give an export"):
        await read(Live(Holed(9, {1, 2})))


def lines_of(*seqs: int) -> list[str]:
    about = '{{"seq":{0},"at_ms":1,"subject":"session.s{0}.closed","payload":{1}}}\n'
    return [about.format(n, f'{{"event":"session.closed","session":"s{n}"}}') for n in seqs]


async def test_a_file_and_then_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = lines_of(1, 2, 3)
    path.write_text("".join(lines))
    chained = Chained(JsonLines(path), Live(Holed(5, {1, 2})))
    assert await read(chained) == [1, 2, 3, 4, 5]
    path.write_text(lines[0] + lines[2])
    with pytest.raises(Unreadable, match="line 2: sequence 3 after 1"):
        await read(JsonLines(path))
    path.write_bytes(b'{"seq":1,"at_ms":1,"subject":"session.\xff.closed","payload":{}}\n')
    with pytest.raises(Unreadable, match="line 1"):
        await read(JsonLines(path))


async def test_lines_without_anything_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines_of(1, 2, 3)) + "\n \n")
    assert await read(JsonLines(path)) == [1, 2, 3]


async def test_what_stands_before_the_damage_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(lines_of(1, 2, 3))[:-20])
    timeline = Timeline(JsonLines(path).read)
    assert (await timeline.at_seq(2)).seq == 2
    with pytest.raises(Unreadable, match="line 3"):
        await timeline.at_seq(3)


@pytest.mark.parametrize("packed", [gzip.compress, lzma.compress, bz2.compress])
async def test_a_packed_file_is_read_as_it_is(packed: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.packed"
    whole = packed("".join(lines_of(*range(1, 400))).encode())
    path.write_bytes(whole)
    assert await read(JsonLines(path), 396) == [397, 398, 399]
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Unreadable, match="packed, after line"):
        await read(JsonLines(path))
