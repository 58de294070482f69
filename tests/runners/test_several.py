"""One GPU, several kinds of work: one in memory at a time, and nothing of the one before."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from helix_es.core import events as e
from helix_es.core.catalogue import BUILTIN, Model, Picture
from helix_es.core.errors import EngineError, Misconfigured
from helix_es.core.history import Session, Turn
from helix_es.jetstream.files import Files
from helix_es.settings import Settings
from helix_runners.devices import Device, cpu
from helix_runners.main import RunnerOptions, _offer, any_work
from helix_runners.several import SeveralWorks
from helix_runners.work import Job
from tests.runners.command.kit import Heard
from tests.runners.finetune.parts import tiny
from tests.runners.floor import BATCH, CHAT, OTHER, PICTURES, Pretended
from tests.runners.image.pipelines import tiny as tiny_pipeline

pytestmark = pytest.mark.anyio


def job(workload: e.Workload) -> Job:
    turn = Turn(turn=1, state="running", prompt="Hello", attempt=1, queued_ms=0)
    state = Session(
        session=e.SessionId("s1"),
        phase="running",
        type=workload.type,
        model="tiny",
        owner="ann",
        turns=(turn,),
    )
    return Job(state=state, params={"max_tokens": 4} if workload.type == "text" else {"steps": 2})


class Shelf:
    """Makes pretended works and keeps them."""

    def __init__(self) -> None:
        self.made: list[Pretended] = []

    def make(self) -> Pretended:
        self.made.append(Pretended())
        return self.made[-1]


async def test_another_kind_of_work_closes_the_one_before() -> None:
    shelf = Shelf()
    works = SeveralWorks({("create", "text"): shelf.make, ("finetune", "text"): shelf.make})
    assert (works.broken, works.detail(), shelf.made) == (None, {}, [])
    await works.load(CHAT, BUILTIN["smollm2"])
    await works.load(OTHER, BUILTIN["mistral"])
    [text] = shelf.made
    assert (text.loads, text.closed) == ([CHAT, OTHER], False)
    await works.load(BATCH, BUILTIN["smollm2"])
    assert text.closed
    batch = shelf.made[1]
    assert batch.loads == [BATCH]
    assert works.detail() == {"kind": "finetune/text"}
    with pytest.raises(Misconfigured, match="no create of image"):
        await works.load(PICTURES, BUILTIN["scenes"])
    await works.close()
    assert batch.closed


async def test_what_is_asked_goes_to_what_is_loaded() -> None:
    shelf = Shelf()
    works = SeveralWorks({("create", "text"): shelf.make})
    for ask in (works.cancel, works.give_way, works.forget):
        await ask("s1")  # nothing is loaded: nothing to do
    with pytest.raises(EngineError, match="no model is loaded"):
        await works.perform(job(CHAT), Heard())
    await works.load(CHAT, BUILTIN["smollm2"])
    assert (await works.perform(job(CHAT), Heard())).output == "Hello"
    for ask in (works.cancel, works.give_way, works.forget):
        await ask("s1")
    [text] = shelf.made
    assert (text.cancelled, text.gave_way, text.forgotten) == (["s1"], ["s1"], ["s1"])
    text.broken = "the device is lost"
    assert works.broken == "the device is lost"


async def test_a_kind_that_cannot_be_loaded_is_closed_with_the_rest() -> None:
    shelf = Shelf()
    works = SeveralWorks({("create", "text"): shelf.make})
    failing = shelf.make()
    failing.load_error = EngineError("no weights")
    works._makers = {("create", "text"): lambda: failing}
    with pytest.raises(EngineError, match="no weights"):
        await works.load(CHAT, BUILTIN["smollm2"])
    await works.close()
    assert failing.closed


def engine_threads() -> int:
    return sum(each.name.startswith("helix-") for each in threading.enumerate())


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
async def test_a_gpu_goes_from_text_to_pictures_to_training_and_back(tmp_path: Path, files: Files) -> None:
    """With real engines on tiny models: each answers, and of the one before neither weights nor thread is left."""
    text = tiny(tmp_path / "text")
    tiny_pipeline().save_pretrained(tmp_path / "image")
    size = Picture(width=64, height=64, steps=2, guidance=3.0, most_side=64)
    image = Model(name="t/i", type="image", source=str(tmp_path / "image"), image=size)
    threads = torch.get_num_threads()
    works: Any = any_work(None)(cpu(), files)
    before: weakref.ref[Any] | None = None
    try:
        for workload, model in ((CHAT, text), (PICTURES, image), (BATCH, text), (CHAT, text)):
            await works.load(workload, model)
            assert engine_threads() == 1
            if before is not None:
                gc.collect()
                assert before() is None, "the weights of the work before are still held"
            if workload.mode == "create":
                outcome = await works.perform(job(workload), Heard())
                assert outcome.error is None
                assert outcome.usage.completion_tokens or outcome.files
                engine = works._work._engine
                kept = engine._studio._pipeline.unet if workload == PICTURES else engine._multiplexer._network
            else:
                kept = works._work._tools.base._model
            before = weakref.ref(kept)
            del kept
            engine = None
    finally:
        await works.close()
        torch.set_num_threads(threads)
    assert engine_threads() == 0


# -- what it offers


def offered(*workloads: e.Workload, memory_gib: int = 64, **more: Any) -> Any:
    options = RunnerOptions(workloads=workloads, node="box", nats={}, **more)
    device = Device(torch_name="cuda:1", kind="gpu", memory_total_bytes=memory_gib << 30)
    return _offer(Settings(), options, device)


def test_an_offer_has_every_workload_once_with_its_slots() -> None:
    full_name = e.Workload("create", "text", "mistralai/Mistral-7B-Instruct-v0.1")
    made = offered(CHAT, BATCH, PICTURES, full_name, CHAT, pool="night")
    assert made.workloads == [CHAT, BATCH, PICTURES, OTHER]
    assert set(made.models) == {"smollm2", "mistral", "scenes"}
    assert (made.gpu, made.pool, made.stalls) == ("box-1", "night", True)
    assert made.slots["smollm2"] == 16, "of the conversations; a training comes alone"


def test_slots_that_are_given_are_those_of_conversations() -> None:
    assert offered(CHAT, BATCH, PICTURES, slots=5).slots == {"smollm2": 5, "scenes": 5}
    mixed = offered(PICTURES, BATCH, slots=5)
    assert mixed.slots == {"scenes": 5, "smollm2": 1}
    assert offered(BATCH).slots == {"smollm2": 1}
    assert offered(BATCH, slots=2).slots == {"smollm2": 2}


def test_a_program_is_silent_as_long_as_it_likes() -> None:
    assert offered(CHAT, fits=False).stalls is False


@pytest.mark.parametrize(
    ("workload", "more", "said"),
    [
        (e.Workload("create", "text", "gpt"), {}, "no model 'gpt'"),
        (e.Workload("create", "text", "scenes"), {}, "makes image, not text"),
        (OTHER, {"memory_gib": 8}, "does not fit gpu with 8.0 GiB"),
        (CHAT, {"pool": "Night!"}, "--pool 'Night!' is not usable"),
        (CHAT, {"gpu": "a.b"}, "--gpu 'a.b' is not usable"),
    ],
)
def test_what_cannot_be_served_is_refused(workload: e.Workload, more: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        offered(workload, **more)
    assert said in str(refused.value)
