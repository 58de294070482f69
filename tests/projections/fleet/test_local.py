"""Runner processes of this machine, with a fake runner that does as it is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helix_projections.fleet.local import Times
from helix_projections.fleet.provider import Standing
from tests.projections.fleet.local_pool import Clock, kept, pool

pytestmark = pytest.mark.anyio


async def test_a_size_is_so_many_processes_each_with_a_name_and_a_log(tmp_path: Path) -> None:
    async with kept(tmp_path) as made:
        made.order(2)
        cast = await made.stage.cast(2)
        assert list(cast) == ["n-burst-0", "n-burst-1"]
        assert cast["n-burst-0"].url == "nats://here"
        pids = json.loads((tmp_path / "pids.json").read_text())
        assert pids == {gpu: actor.pid for gpu, actor in cast.items()}
        assert await made.local.present() == 2


async def test_one_that_leaves_in_order_while_the_size_goes_down_is_not_started_again(tmp_path: Path) -> None:
    async with kept(tmp_path) as made:
        made.order(2)
        cast = await made.stage.cast(2)
        made.order(1, n0="drained", n1="serving")
        await cast["n-burst-0"].leave(0)
        await made.death()
        made.order(1, n1="serving")
        await cast["n-burst-1"].tell("stay")
        assert await made.local.present() == 1
        assert made.stage.empty


async def test_one_that_died_is_started_again_under_its_name(tmp_path: Path) -> None:
    async with kept(tmp_path) as made:
        made.order(2)
        cast = await made.stage.cast(2)
        made.order(2, n0="serving", n1="serving")
        await cast["n-burst-1"].leave(3)
        assert (await made.stage.next()).gpu == "n-burst-1"


async def test_one_that_was_killed_is_started_again(tmp_path: Path) -> None:
    async with kept(tmp_path) as made:
        made.order(1)
        first = await made.stage.next()
        os.kill(first.pid, 9)
        assert (await made.stage.next()).pid != first.pid


async def test_one_that_died_on_its_way_out_is_let_go(tmp_path: Path) -> None:
    async with kept(tmp_path) as made:
        made.order(2)
        cast = await made.stage.cast(2)
        made.order(1, n0="serving", n1="draining")
        await cast["n-burst-0"].tell("stay")
        await cast["n-burst-1"].leave(3)
        await made.death()
        await cast["n-burst-0"].tell("stay")
        assert await made.local.present() == 1


async def test_another_takes_a_free_name_beside_one_that_drains(tmp_path: Path) -> None:
    async with kept(tmp_path) as made:
        made.order(2)
        cast = await made.stage.cast(2)
        made.order(2, n0="draining", n1="serving")
        assert (await made.stage.next()).gpu == "n-burst-2"
        await cast["n-burst-0"].tell("stay")


async def test_a_surplus_is_ended_after_its_grace_and_only_what_holds_nobody(tmp_path: Path) -> None:
    clock = Clock()
    async with pool(tmp_path, clock=clock) as made:
        await made.local.make(3, 0, {})
        cast = await made.stage.cast(3)
        gpus: dict[str, Standing] = {"n-burst-0": "draining", "n-burst-1": "drained", "n-burst-2": "serving"}
        assert await made.local.make(1, 3, gpus) == 60
        clock.now_s += 59
        assert await made.local.make(1, 1, gpus) == 1
        for actor in cast.values():
            await actor.tell("stay")
        clock.now_s += 1
        await made.local.make(1, 1, gpus)
        await cast["n-burst-1"].ended()
        await made.death()
        clock.now_s += 3600
        await made.local.make(1, 1, gpus)
        for name in ("n-burst-0", "n-burst-2"):
            await cast[name].tell("stay")


async def test_a_surplus_that_has_gone_has_its_whole_grace_the_next_time(tmp_path: Path) -> None:
    clock = Clock()
    async with pool(tmp_path, clock=clock) as made:
        await made.local.make(2, 0, {})
        cast = await made.stage.cast(2)
        gpus: dict[str, Standing] = {"n-burst-0": "drained", "n-burst-1": "serving"}
        await made.local.make(1, 2, gpus)
        clock.now_s += 50
        await made.local.make(2, 1, {"n-burst-1": "serving"})
        clock.now_s += 50
        assert await made.local.make(1, 2, gpus) == 60
        await cast["n-burst-0"].tell("stay")


async def test_one_that_left_the_log_and_does_not_end_is_replaced_and_then_ended(tmp_path: Path) -> None:
    clock = Clock()
    async with pool(tmp_path, clock=clock) as made:
        await made.local.make(1, 0, {})
        hung = await made.stage.next()
        await made.local.make(1, 1, {"n-burst-0": "serving"})
        assert await made.local.make(1, 1, {}) == 5
        assert await made.local.present() == 1
        clock.now_s += 5
        await made.local.make(1, 1, {})
        assert (await made.stage.next()).gpu == "n-burst-1"
        await hung.tell("stay")
        clock.now_s += 60
        await made.local.make(1, 1, {"n-burst-1": "serving"})
        await hung.ended()


async def test_one_that_was_given_up_and_joins_again_goes_on(tmp_path: Path) -> None:
    clock = Clock()
    async with pool(tmp_path, clock=clock) as made:
        await made.local.make(1, 0, {})
        actor = await made.stage.next()
        await made.local.make(1, 1, {"n-burst-0": "serving"})
        await made.local.make(1, 1, {})
        clock.now_s += 3
        assert await made.local.make(1, 1, {"n-burst-0": "serving"}) is None
        clock.now_s += 100
        assert await made.local.make(1, 1, {"n-burst-0": "serving"}) is None
        assert await made.local.present() == 1
        await actor.tell("stay")


async def test_what_the_log_says_of_the_one_that_died_is_not_about_the_one_that_was_started_for_it(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with pool(tmp_path, clock=clock) as made:
        await made.local.make(1, 0, {})
        gpus: dict[str, Standing] = {"n-burst-0": "serving"}
        await made.local.make(1, 1, gpus)
        await (await made.stage.next()).leave(1)
        await made.death()
        clock.now_s += 1
        await made.local.make(1, 1, gpus)
        again = await made.stage.next()
        await made.local.make(1, 1, gpus)
        await made.local.make(1, 1, {})  # the dead one was given up
        clock.now_s += 30  # loading takes its time
        assert await made.local.make(1, 1, {}) is None
        assert await made.local.present() == 1
        await again.tell("stay")


async def test_one_that_does_not_heed_sigterm_is_killed(tmp_path: Path) -> None:
    clock = Clock()
    async with pool(tmp_path, clock=clock) as made:
        await made.local.make(1, 0, {})
        actor = await made.stage.next()
        await actor.tell("deaf")
        await made.local.make(0, 1, {})
        clock.now_s += 60
        left_s = await made.local.make(0, 0, {})
        assert left_s is None or left_s == pytest.approx(5.2)
        await actor.tell("stay")
        clock.now_s += 6
        await made.local.make(0, 0, {})
        await actor.ended()


async def test_deaths_in_quick_succession_are_answered_more_and_more_slowly(tmp_path: Path) -> None:
    clock = Clock()
    async with pool(tmp_path, times=Times(stop_s=5), clock=clock) as made:
        waits = []
        for _ in range(7):
            await made.local.make(1, 0, {})
            await (await made.stage.next()).leave(1)
            await made.death()
            waits.append(await made.local.make(1, 1, {}))
            clock.now_s += waits[-1] or 0
        assert waits == [0.25, 0.5, 1, 2, 4, 8, 10]
        await made.local.make(1, 1, {})
        steady = await made.stage.next()
        clock.now_s += 21
        await steady.leave(1)
        await made.death()
        await made.local.make(1, 1, {})
        await made.stage.next()  # at once: it had lived
