"""Simulated pictures and fine-tunes: real files, and one curve however often a fine-tune is moved."""

from __future__ import annotations

import struct
import zlib

import pytest
from msgspec.structs import replace

from helix_es.core import events as e
from helix_es.jetstream.client import Connection
from helix_es.jetstream.files import Files
from helix_runners.simulated.files import Makings, pixel
from helix_runners.simulated.service import loss
from tests.conftest import NatsServer
from tests.runners.simulated.shop import QUICK, Shop, options, running

pytestmark = pytest.mark.anyio

BATCH = "finetune/text/mistral"
DRAWING = "create/image/sdxl"


@pytest.fixture
def shop(connection: Connection) -> Shop:
    return Shop(connection)


@pytest.fixture
def files(connection: Connection) -> Files:
    return Files(connection, new_id=iter("abcdefgh").__next__)


async def test_a_picture_is_a_file_that_its_owner_can_read(
    nats_server: NatsServer, shop: Shop, files: Files
) -> None:
    async with running(nats_server, options(models=("mistral", "sdxl"), count=1)):
        _, joined = await shop.fact(e.GpuJoined)
        assert e.Workload("create", "image", "sdxl") in joined.workloads
        await shop.ready("sim-0", 2, DRAWING)
        for name in ("s1", "s2"):
            await shop.open(name, DRAWING, steps=3)
            done = await shop.completed(name)
            (made,) = done.files
            assert (await files.info(made, "ann")).media == "image/png"
            assert b"".join([piece async for piece in files.read(made)]) == pixel()
        await shop.proceed("s1", "redder")
        assert (await shop.completed("s1", turn=2)).files == [made], "the same for every picture of an owner"


async def test_parameters_that_cannot_be_fail_the_turn(nats_server: NatsServer, shop: Shop) -> None:
    async with running(nats_server, options(models=("sdxl",), count=1)):
        await shop.ready("sim-0", 1, DRAWING)
        await shop.open("s1", DRAWING, steps=-1)
        _, failed = await shop.fact(e.TurnFailed)
        assert failed.error.code == "invalid_params"


async def test_a_fine_tune_that_must_give_way_goes_on_from_its_checkpoint(
    nats_server: NatsServer, shop: Shop, files: Files
) -> None:
    service = replace(QUICK, step_ms=30, checkpoint_every=1000)
    async with running(nats_server, options(batch=True, count=2, service=service)):
        _, joined = await shop.fact(e.GpuJoined)
        assert e.Workload("finetune", "text", "mistral") in joined.workloads
        await shop.ready("sim-0", 1, BATCH)
        await shop.open("s1", BATCH, max_steps=40)
        await shop.started("s1")
        await shop.tell("s1", e.TurnYielding)
        _, kept = await shop.fact(e.TurnProgressed, lambda x: bool(x.checkpoint))
        assert (await files.info(kept.checkpoint[0])).purpose == "checkpoint"
        await shop.release("s1", "preempted")
        await shop.ready("sim-0", 0, BATCH)
        await shop.ready("sim-1", 1, BATCH)
        await shop.admit("s1")
        done = await shop.completed("s1")
        assert (done.gpu, done.attempt, done.files) == ("sim-1", 2, [])
        told = [each.event for each in await shop.log.history("session.s1.turn.progressed.sim-1")]
        steps = [
            step for each in told if isinstance(each, e.TurnProgressed) for step, _ in each.detail["losses"]
        ]
        assert steps[0] == kept.step + 1
        assert steps == list(range(steps[0], steps[-1] + 1)), "without a gap or a doubled step"


async def test_checkpoints_are_made_as_often_as_was_said(nats_server: NatsServer, shop: Shop) -> None:
    async with running(nats_server, options(batch=True, count=1)):
        await shop.ready("sim-0", 1, BATCH)
        await shop.open("s1", BATCH, max_steps=12)
        await shop.completed("s1")
        told = [each.event for each in await shop.log.history("session.s1.turn.progressed.>")]
        kept = [each.step for each in told if isinstance(each, e.TurnProgressed) and each.checkpoint]
        assert kept == [5, 10]


async def test_a_checkpoint_of_another_session_is_not_gone_on_from(files: Files) -> None:
    makings = Makings(files)
    made = await makings.checkpoint("s1", "ann", 7)
    assert await makings.step_of("s1", [made]) == 7
    assert await makings.step_of("s2", [made]) == 0
    assert await makings.step_of("s1", ["nothing"]) == 0
    other = await files.put(b"\x00", owner="ann", name="x", media="x/y", purpose="checkpoint", session="s1")
    assert await makings.step_of("s1", [other]) == 0


def test_the_pixel_is_a_png() -> None:
    data = pixel()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    length, name = struct.unpack_from(">I4s", data, 8)
    assert (length, name) == (13, b"IHDR")
    assert struct.unpack_from(">I", data, 16 + length)[0] == zlib.crc32(data[12 : 16 + length])


def test_the_curve_falls_and_is_the_same_for_every_attempt() -> None:
    curve = [loss(step, 50) for step in range(1, 51)]
    assert curve == sorted(curve, reverse=True)
    assert curve == [loss(step, 50) for step in range(1, 51)]
