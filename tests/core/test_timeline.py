"""Time travel: whatever was sought before, an instant is the fold of the records until it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_es.archive import Live
from helix_es.core import events as e
from helix_es.core import timeline as module
from helix_es.core.errors import Rejected
from helix_es.core.events import Recorded
from helix_es.core.occupancy import Occupancy
from helix_es.core.snapshot import dump
from helix_es.core.timeline import Timeline
from tests.core.doings import doings, shop_of
from tests.core.shop import Shop
from tests.examples import many


class Tape:
    """A list of records as an archive; counts how many it gave."""

    def __init__(self, records: list[Recorded], together: int = 7) -> None:
        self.records = records
        self.given = 0
        self._together = together

    async def read(self, after_seq: int = 0) -> AsyncIterator[list[Recorded]]:
        left = [record for record in self.records if record.seq > after_seq]
        for start in range(0, len(left), self._together):
            batch = left[start : start + self._together]
            self.given += len(batch)
            yield batch


def prefix(records: list[Recorded], seq: int) -> Occupancy:
    state = Occupancy()
    for record in records:
        if record.seq <= seq:
            state.apply(record)
    return state


def told(work: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(work())  # type: ignore[arg-type]


def small_log(count: int = 30) -> list[Recorded]:
    """Return joins, one a second, from 1,000 ms on."""
    shop = Shop()
    shop.now_ms = 1000
    for n in range(count):
        shop.join(f"box-{n}", 1)
        shop.now_ms += 1000
    return shop.log.records


@settings(max_examples=many(30), deadline=None)
@given(done=doings, every=st.integers(1, 40), random=st.randoms(use_true_random=False))
def test_every_sequence_sought_in_any_order_is_the_fold_of_its_prefix(
    done: list[tuple[str, int]], every: int, random: Any
) -> None:
    records = shop_of(done).log.records
    wanted, state = {}, Occupancy()
    for record in records:
        state.apply(record)
        wanted[record.seq] = dump(state)
    order = list(wanted)
    random.shuffle(order)

    async def seek() -> None:
        timeline = Timeline(Tape(records).read, every=every)
        for seq in order:
            assert dump(await timeline.at_seq(seq)) == wanted[seq]

    told(seek)


@settings(max_examples=many(20), deadline=None)
@given(done=doings, every=st.integers(1, 40), random=st.randoms(use_true_random=False))
def test_every_instant_sought_in_any_order_is_the_fold_of_what_was_stored_by_then(
    done: list[tuple[str, int]], every: int, random: Any
) -> None:
    records = shop_of(done).log.records
    instants = sorted({record.at_ms + shift for record in records for shift in (0, 1, 7)})
    order = [random.choice(instants) for _ in range(40)]

    async def seek() -> None:
        timeline = Timeline(Tape(records).read, every=every)
        for at_ms in order:
            found = await timeline.at_ms(at_ms)
            wanted = prefix(records, max(record.seq for record in records if record.at_ms <= at_ms))
            wanted.tick(at_ms)
            assert dump(found) == dump(wanted)
            seq = random.choice(records).seq
            assert dump(await timeline.at_seq(seq)) == dump(prefix(records, seq))  # no clock is left over

    told(seek)


def test_where_the_servers_clock_went_back_an_instant_ends_at_the_first_later_record() -> None:
    times = [100, 200, 150, 300, 250]
    records = [
        Recorded(n, at_ms, f"gpu.g{n}.joined", joined(f"g{n}")) for n, at_ms in enumerate(times, start=1)
    ]

    async def seek() -> list[int]:
        timeline = Timeline(Tape(records).read, every=1)
        return [(await timeline.at_ms(at_ms)).seq for at_ms in (250, 149, 199, 200, 299, 300, 100)]

    assert told(seek) == [3, 1, 1, 3, 3, 5, 1]


def joined(gpu: str) -> e.GpuJoined:
    return e.GpuJoined(gpu=e.GpuId(gpu), incarnation="i", kind="cpu", memory_total_bytes=1, workloads=[])


@pytest.mark.parametrize(
    ("seq", "code", "said"),
    [
        (0, "before_beginning", "begins at 1"),
        (-3, "before_beginning", "begins at 1"),
        (31, "after_end", "ends at 30"),
    ],
)
def test_a_sequence_outside_the_log_is_refused_with_where_the_log_is(seq: int, code: str, said: str) -> None:
    with pytest.raises(Rejected, match=said) as refused:
        told(lambda: Timeline(Tape(small_log()).read).at_seq(seq))
    assert refused.value.code == code


@pytest.mark.parametrize("records", [[], small_log()])
def test_an_instant_before_the_first_record_is_refused(records: list[Recorded]) -> None:
    with pytest.raises(Rejected) as refused:
        told(lambda: Timeline(Tape(records).read).at_ms(999))
    assert refused.value.code == "before_beginning"


def test_a_sequence_that_was_deleted_is_refused() -> None:
    records = [record for record in small_log() if record.seq != 12]

    async def seek() -> int:
        timeline = Timeline(Tape(records).read)
        with pytest.raises(Rejected, match="deleted"):
            await timeline.at_seq(12)
        return (await timeline.at_seq(13)).seq

    assert told(seek) == 13


def test_it_goes_back_to_a_snapshot_and_not_to_the_beginning() -> None:
    tape = Tape(small_log(100), together=1)

    async def seek() -> int:
        timeline = Timeline(tape.read, every=10)
        await timeline.end()
        before = tape.given
        await timeline.at_seq(75)
        return tape.given - before

    assert told(seek) <= 6


def test_it_goes_forward_to_a_snapshot_that_it_has_passed_before() -> None:
    tape = Tape(small_log(100), together=1)

    async def seek() -> int:
        timeline = Timeline(tape.read, every=10)
        await timeline.end()
        await timeline.at_seq(3)
        before = tape.given
        await timeline.at_seq(98)
        return tape.given - before

    assert told(seek) <= 9


def test_going_on_reads_nothing_twice() -> None:
    tape = Tape(small_log(100))

    async def seek() -> None:
        timeline = Timeline(tape.read)
        for seq in (1, 2, 30, 31, 99):
            await timeline.at_seq(seq)

    told(seek)
    assert tape.given == 100  # in batches of seven: the last one ends with 100


def test_snapshots_stay_few_however_long_the_log_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 4)
    records = small_log(100)

    async def seek() -> int:
        timeline = Timeline(Tape(records).read, every=1)
        await timeline.end()
        for seq in (50, 7, 99, 1):
            assert dump(await timeline.at_seq(seq)) == dump(prefix(records, seq))
        return len(timeline._kept)

    assert told(seek) <= 4


def test_at_the_end_it_looks_again_and_finds_what_came() -> None:
    shop = Shop()
    shop.join("box-0", 1)

    async def seek() -> tuple[int | None, int, int | None, int]:
        timeline = Timeline(Live(shop.log).read)
        await timeline.end()
        nothing = await timeline.next_ms()
        shop.now_ms += 5
        shop.join("box-1", 1)
        early = (await timeline.at_ms(shop.now_ms - 1)).seq
        return nothing, early, await timeline.next_ms(), (await timeline.at_ms(shop.now_ms)).seq

    assert told(seek) == (None, 1, shop.now_ms, 2)


def test_an_instant_is_not_sought_beyond_a_sequence() -> None:
    async def seek() -> list[tuple[int, int]]:
        timeline = Timeline(Tape(small_log()).read, every=3)
        found = []
        for at_ms in (20_000, 2_500, 20_500):
            state = await timeline.at_ms(at_ms, upto_seq=5)
            found.append((state.seq, state.now_ms))
            await timeline.at_seq(25)
        return found

    assert told(seek) == [(5, 5000), (2, 2500), (5, 5000)]


def test_whoever_watches_sees_each_record_with_the_state_after_it() -> None:
    seen: list[tuple[int, int]] = []

    async def seek() -> None:
        timeline = Timeline(
            Tape(small_log()).read, watch=lambda record, state: seen.append((record.seq, len(state.gpus)))
        )
        await timeline.at_seq(3)

    told(seek)
    assert seen == [(1, 1), (2, 2), (3, 3)]
