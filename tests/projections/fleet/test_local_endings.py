"""How the runners of this machine end with the fleet, and what cannot be started."""

from __future__ import annotations

from pathlib import Path

import pytest

from helix_es.processes import end_leftovers
from helix_projections.fleet.local import Local, Staff, Times
from helix_projections.fleet.provider import ProviderError
from tests.projections.fleet.local_pool import gone, pool

pytestmark = pytest.mark.anyio


async def test_at_the_end_all_are_ended_in_order_at_once(tmp_path: Path) -> None:
    async with pool(tmp_path) as made:
        await made.local.make(3, 0, {})
        cast = await made.stage.cast(3)
    assert all(gone(actor.pid) for actor in cast.values())
    assert not (tmp_path / "pids.json").exists()


async def test_at_the_end_the_deaf_are_killed(tmp_path: Path) -> None:
    async with pool(tmp_path, times=Times(drain_s=0.05, stop_s=0.05)) as made:
        await made.local.make(1, 0, {})
        actor = await made.stage.next()
        await actor.tell("deaf")
    assert gone(actor.pid)


async def test_what_cannot_be_started_is_an_error_that_names_it(tmp_path: Path) -> None:
    staff = Staff(folder=tmp_path, name=str, command=lambda gpu: ["/no/such/program"], env={}, most=1)
    local = Local(staff, lambda: None)
    with pytest.raises(ProviderError, match="/no/such/program cannot be started: No such file"):
        await local.make(1, 0, {})
    await local.close()


async def test_a_later_fleet_finds_and_ends_what_was_left(tmp_path: Path) -> None:
    async with pool(tmp_path) as made:
        await made.local.make(1, 0, {})
        actor = await made.stage.next()
        await end_leftovers(tmp_path)
        await actor.ended()
        await made.death()
