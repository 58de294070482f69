"""A queue in which some owners hold as much as one may: against a plain model of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helix_es.core.fairqueue import FairQueue, Place

OWNERS = ["ann", "bob", "cyd"]
steps = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "serve", "cancel", "bar", "unbar"]),
        st.sampled_from(OWNERS),
        st.integers(0, 9),
    ),
    max_size=60,
)


@given(steps, st.dictionaries(st.sampled_from(OWNERS), st.integers(-1, 3)), st.integers(1, 5))
def test_next_is_the_order_without_the_barred_and_within_the_allowance(
    done: list[tuple[str, str, int]], allowance: dict[str, int], n: int
) -> None:
    queue = FairQueue()
    waiting: dict[Place, str] = {}
    barred: set[str] = set()
    for seq, (what, owner, index) in enumerate(done):
        if what == "arrive":
            waiting[queue.arrive(f"s{seq}", owner, priority=index % 3 - 1, seq=seq)] = owner
        elif what in ("serve", "cancel") and waiting:
            place = sorted(waiting)[index % len(waiting)]
            queue.leave(place, waiting.pop(place), served=what == "serve")
        elif what == "bar":
            queue.bar(owner)
            barred.add(owner)
        elif what == "unbar":
            queue.unbar(owner)
            barred.discard(owner)
    open_ = [place for place in sorted(waiting) if waiting[place] not in barred]
    assert queue.eligible == len(open_)
    assert queue.first(99) == sorted(waiting)
    assert queue.next(n) == open_[:n]
    taken: dict[str, int] = dict.fromkeys(OWNERS, 0)
    expected = []
    for place in open_:
        owner = waiting[place]
        if len(expected) < n and taken[owner] < allowance.get(owner, 2):
            taken[owner] += 1
            expected.append(place)
    assert queue.next(n, allowance, 2) == expected
    again = FairQueue.restore(queue.snapshot())
    for owner in barred:
        again.bar(owner)
    assert again.next(n, allowance, 2) == expected
    assert again.snapshot() == queue.snapshot()
