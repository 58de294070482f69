"""Which pods may go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from helix_projections.fleet.pods import Pod, Scaling, scaling, standing_of
from helix_projections.fleet.provider import Standing

STANDINGS: list[Standing | None] = ["serving", "draining", "drained", None]


def pods(*names: str, marked: str = "") -> list[Pod]:
    return [Pod(name, name in marked.split()) for name in names]


def test_a_larger_size_is_scaled_to_at_once() -> None:
    assert scaling(3, 1, pods("a"), {"a": "serving"}, most=3) == Scaling(replicas=3)


def test_a_pod_goes_when_it_has_drained_and_not_before() -> None:
    there = pods("a", "b")
    assert scaling(1, 2, there, {"a": "serving", "b": "draining"}, most=3) == Scaling(replicas=2)
    assert scaling(1, 2, there, {"a": "serving", "b": "drained"}, most=3) == Scaling(replicas=1, mark=("b",))


def test_of_two_that_leave_the_cluster_is_shown_the_one_that_has_drained() -> None:
    gpus: dict[str, Standing] = {"a": "serving", "b": "draining", "c": "drained"}
    assert scaling(1, 3, pods("a", "b", "c"), gpus, most=3) == Scaling(replicas=2, mark=("c",))


def test_a_pod_that_the_cluster_is_taking_already_is_not_counted_twice() -> None:
    gpus: dict[str, Standing] = {"a": "serving", "b": "drained"}
    assert scaling(0, 1, pods("a", "b", marked="b"), gpus, most=3) == Scaling(replicas=1)


def test_a_marked_pod_whose_gpu_has_left_goes_before_one_that_starts() -> None:
    there = pods("a", "b", "c", marked="c")
    assert scaling(2, 3, there, {"a": "serving"}, most=3) == Scaling(replicas=2)


def test_pods_that_have_not_joined_may_go_and_are_marked_first() -> None:
    assert scaling(1, 3, pods("a", "b", "c"), {"a": "serving"}, most=3) == Scaling(
        replicas=1, mark=("b", "c")
    )


def test_pods_that_serve_are_never_taken_away() -> None:
    assert scaling(0, 2, pods("a", "b"), {"a": "serving", "b": "serving"}, most=3) == Scaling(replicas=2)


def test_a_mark_is_taken_back_from_a_pod_that_serves_again() -> None:
    there = pods("a", "b", marked="b")
    assert scaling(2, 2, there, {"a": "serving", "b": "serving"}, most=3) == Scaling(
        replicas=2, unmark=("b",)
    )


def test_replicas_that_the_cluster_has_not_made_cost_nobody() -> None:
    assert scaling(1, 3, pods("a"), {"a": "serving"}, most=3) == Scaling(replicas=1)


def test_another_pod_runs_beside_one_that_drains_up_to_the_most() -> None:
    gpus: dict[str, Standing] = {"a": "serving", "b": "draining"}
    there = pods("a", "b")
    assert scaling(2, 2, there, gpus, most=4).replicas == 3
    assert scaling(2, 2, there, gpus, most=2).replicas == 2


def test_a_pod_has_the_standing_of_its_busiest_gpu() -> None:
    assert standing_of("a", {"a-0": "drained", "a-1": "draining"}) == "draining"
    assert standing_of("a", {"a-0": "drained", "a-1": "serving"}) == "serving"
    assert standing_of("a", {"ab": "serving"}) is None


@given(
    size=st.integers(0, 6),
    standings=st.lists(st.sampled_from(STANDINGS), max_size=8),
    marks=st.lists(st.booleans(), min_size=8, max_size=8),
    more=st.integers(-2, 2),
)
def test_the_cluster_never_has_to_take_a_pod_that_holds_or_may_hold_somebody(
    size: int, standings: list[Standing | None], marks: list[bool], more: int
) -> None:
    names = [f"p{n}" for n in range(len(standings))]
    gpus = {name: each for name, each in zip(names, standings, strict=True) if each is not None}
    there = [Pod(name, marked) for name, marked in zip(names, marks, strict=False)]
    replicas = max(0, len(there) + more)
    planned = scaling(size, replicas, there, gpus, most=6)
    marked = {pod.name for pod in there if pod.marked} - set(planned.unmark) | set(planned.mark)
    assert all(gpus.get(name) in (None, "drained") for name in marked)
    if planned.replicas < replicas:  # the cluster takes those with a mark first: they must be enough
        assert len(there) - planned.replicas <= len(marked)
    assert planned.replicas >= min(replicas, size)
    assert planned.replicas <= max(replicas, 6)
