"""Image turns that are refused, cancelled or fail; none of them disturbs another."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from helix_es.core.errors import LogFull, NotOurs, Unavailable
from helix_runners.image import png, work
from tests.runners.image.engines import CLEAN
from tests.runners.image.test_png import GRADIENT
from tests.runners.image.turns import Heard, Shop, job, said_of

pytestmark = [pytest.mark.anyio, CLEAN]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"width": 136}, "params.width: at most 128 with this model, found 136"),
        ({"height": 4096}, "params.height: at most 128"),
        ({"steps": 61}, "params.steps: at most 60"),
        ({"count": 4}, "params.count: at most 3"),
        ({"width": 65}, "params.width"),
        ({"width": 1_000_000_000}, "params.width"),
        ({"width": 0}, "params.width"),
        ({"steps": 0}, "params.steps"),
        ({"steps": "20"}, "params.steps"),
        ({"guidance": float("nan")}, "params.guidance"),
        ({"guidance": -1.0}, "params.guidance"),
        ({"seed": -1}, "params.seed"),
        ({"seed": 2**63}, "params.seed"),
        ({"strength": 0.0}, "params.strength"),
        ({"negative_prompt": "x" * 2001}, "params.negative_prompt"),
        ({"sampler": "euler"}, "sampler"),
    ],
)
async def test_what_is_out_of_range_is_refused_before_anything_is_computed(
    params: dict[str, Any], said: str, shop: Shop
) -> None:
    outcome = await shop.perform(job("a circle", **params))
    assert outcome.error is not None
    assert (outcome.error.code, outcome.retry) == ("invalid_params", False)
    assert said in outcome.error.message
    assert shop.unet.shapes == []


async def test_a_picture_before_that_cannot_be_used_is_refused(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put(data: bytes, owner: str = "ann") -> str:
        return await shop.files.put(data, owner=owner, name="x.png", media="image/png", purpose="image")

    async def code(file: str) -> str:
        outcome = await shop.perform(job("a circle", "blue", before=file))
        assert outcome.error is not None
        return outcome.error.code

    assert await code(await put(b"no picture")) == "invalid_picture"
    assert await code(await put(png.encoded(GRADIENT.resize((136, 64)), {}))) == "invalid_picture"
    assert await code(await put(png.encoded(GRADIENT, {}), owner="bob")) == "file_not_found"
    assert await code("gone") == "file_not_found"
    monkeypatch.setattr(png, "TEXT_BYTES", 0)
    assert await code(await put(png.encoded(GRADIENT, {"a": "x" * 70_000}))) == "invalid_picture"
    assert shop.unet.shapes == []


async def test_sessions_share_the_engine_and_a_cancelled_one_leaves_the_others(shop: Shop) -> None:
    [undisturbed] = await shop.contents(await shop.perform(job("a circle", seed=1)))
    reached = asyncio.Event()

    async def at(step: int) -> None:
        if step >= 2:
            reached.set()

    long = asyncio.create_task(shop.perform(job("a house", session="s2", steps=60), Heard(at)))
    others = [asyncio.create_task(shop.perform(job("a circle", seed=1))) for _ in range(2)]
    await reached.wait()
    await shop.work.cancel("s2")
    cancelled = await long
    assert (cancelled.cancelled, cancelled.error, cancelled.files) == (True, None, [])
    for other in others:
        [same] = await shop.contents(await other)
        assert png.decoded(same, 128).tobytes() == png.decoded(undisturbed, 128).tobytes()
    await shop.work.cancel("nobody")
    await shop.work.forget("s2")


async def test_pictures_that_were_done_before_a_cancel_are_kept(shop: Shop) -> None:
    async def at(step: int) -> None:
        if step > 4:
            await shop.work.cancel("s1")

    outcome = await shop.perform(job("a circle", count=3, seed=1), Heard(at))
    assert outcome.cancelled
    assert [said_of(data)["seed"] for data in await shop.contents(outcome)] == ["1"]


async def test_a_runner_that_is_told_to_stop_stops_computing(shop: Shop) -> None:
    reached = asyncio.Event()

    async def at(_step: int) -> None:
        reached.set()

    turn = asyncio.create_task(shop.perform(job("a circle", steps=60), Heard(at)))
    await reached.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    await shop.perform(job("a circle", session="s2"))
    assert len(shop.unet.shapes) < 60
    assert shop.work.detail()["running"] == 0


async def test_a_turn_that_is_not_ours_any_more_stops_computing(shop: Shop) -> None:
    async def at(_step: int) -> None:
        raise NotOurs("somebody else's")

    with pytest.raises(NotOurs):
        await shop.perform(job("a circle", steps=60), Heard(at))
    await shop.perform(job("a circle", session="s2"))
    assert len(shop.unet.shapes) < 60
    assert shop.work.detail()["running"] == 0


async def test_a_picture_that_this_engine_cannot_compute_may_be_another_gpus(shop: Shop) -> None:
    shop.unet.fail = lambda shape: RuntimeError("device lost")
    for _ in range(3):
        assert shop.work.broken is None
        outcome = await shop.perform(job("a circle"))
        assert outcome.error is not None
        assert (outcome.error.code, outcome.retry) == ("engine_error", True)
    assert shop.work.broken is not None
    outcome = await shop.perform(job("a circle"))
    assert outcome.error is not None
    assert (outcome.error.code, outcome.retry) == ("engine_broken", True)


async def test_a_picture_without_memory_goes_back_and_leaves_the_others_undisturbed(shop: Shop) -> None:
    [undisturbed] = await shop.contents(await shop.perform(job("a circle", seed=1)))
    shop.unet.fail = lambda shape: torch.OutOfMemoryError("CUDA out of memory") if shape == (8, 12) else None
    wide, other = await asyncio.gather(
        shop.perform(job("a house", width=96)), shop.perform(job("a circle", session="s2", seed=1))
    )
    assert wide.error is not None
    assert (wide.error.code, wide.retry, wide.cancelled) == ("out_of_memory", True, False)
    [same] = await shop.contents(other)
    assert png.decoded(same, 128).tobytes() == png.decoded(undisturbed, 128).tobytes()
    shop.unet.fail = lambda shape: None
    assert len(await shop.contents(await shop.perform(job("a house", width=96)))) == 1


async def test_memory_that_ends_beside_the_engine_is_no_fault_of_the_request(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoded(*_: Any) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(png, "encoded", encoded)
        outcome = await shop.perform(job("a circle"))
    assert outcome.error is not None
    assert (outcome.error.code, outcome.retry) == ("out_of_memory", True)
    assert len(await shop.contents(await shop.perform(job("a circle")))) == 1


async def test_the_store_may_be_away_for_a_moment_but_not_for_ever(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, failures = shop.files.put, [Unavailable("no leader")]

    async def failing(*args: Any, **options: Any) -> str:
        if failures:
            raise failures.pop()
        return await put(*args, **options)

    monkeypatch.setattr(shop.files, "put", failing)
    monkeypatch.setattr(work, "RETRY_S", 0.01)
    assert len(await shop.contents(await shop.perform(job("a circle")))) == 1
    monkeypatch.setattr(work, "PATIENCE_S", 0.0)
    failures += [Unavailable("no leader")] * 3
    outcome = await shop.perform(job("a circle"))
    assert outcome.error is not None
    assert outcome.error.code == "log_unavailable"
    failures[:] = [LogFull("the store is full")]
    outcome = await shop.perform(job("a circle"))
    assert outcome.error is not None
    assert outcome.error.code == "log_full"
