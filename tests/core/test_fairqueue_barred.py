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


def test_whoever_comes_again_is_not_overtaken_for_ever_by_those_who_come_for_the_first_time() -> None:
    queue = FairQueue()
    once = queue.arrive("a1", "ann", priority=0, seq=1)
    for seq in range(10):  # others keep coming, faster than anybody is served
        queue.arrive(f"n{seq}", f"new{seq}", priority=0, seq=seq + 2)
    queue.leave(once, "ann", served=True)
    mine = queue.arrive("a2", "ann", priority=0, seq=20)
    newcomers = 10
    while queue.next(1) != [mine]:
        (first,) = queue.next(1)
        queue.leave(first, f"new{first.session[1:]}", served=True)
        for _ in range(2):
            queue.arrive(f"n{newcomers}", f"new{newcomers}", priority=0, seq=21 + newcomers)
            newcomers += 1
        assert newcomers < 200, "ann starves"
