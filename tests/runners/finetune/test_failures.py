"""What goes wrong: a stable code and what to do; what can be done without goes on, with a warning."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helix_es.core.catalogue import Model
from helix_es.core.errors import EngineError, Misconfigured, Unavailable
from helix_es.core.events import Failure
from helix_es.jetstream.files import Files
from helix_runners.finetune import course
from helix_runners.finetune.failures import failed, fatal
from helix_runners.finetune.trainer import Trainer
from helix_runners.finetune.work import FinetuneWork
from tests.runners.engine.models import byte_tokenizer, llama
from tests.runners.finetune.parts import STEPS, TINY, Recorder, dataset, job, ready, stored

pytestmark = pytest.mark.anyio


OURS = ("out_of_memory", "engine_error")  # what another GPU may do


async def failure(work: FinetuneWork, files: Files, data: bytes | None = None, **params: Any) -> Failure:
    outcome = await work.perform(job(await stored(files, data or dataset()), **params), Recorder())
    assert outcome.error is not None
    assert (outcome.files, outcome.cancelled) == ([], False)
    assert outcome.retry == (outcome.error.code in OURS)
    return outcome.error


async def works(work: FinetuneWork, files: Files) -> None:
    assert (await work.perform(job(await stored(files, dataset())), Recorder())).error is None


async def test_params_that_do_not_fit_are_named(files: Files, work: FinetuneWork) -> None:
    error = await failure(work, files, target_modules=["q_proj", "nothing"])
    assert error.code == "invalid_params"
    assert "no linear layer nothing; there are: down_proj" in error.message
    error = await failure(work, files, epochs=0)
    assert error.code == "invalid_params"
    assert "params.epochs" in error.message
    await works(work, files)


async def test_a_dataset_that_is_wrong_or_gone_is_said(files: Files, work: FinetuneWork) -> None:
    error = await failure(work, files, dataset() + b"\xff")
    assert (error.code, error.message[:7]) == ("dataset_invalid", "line 11")
    error = await failure(work, files, dataset(1))
    assert error.code == "dataset_invalid"
    for missing in ("nothing", None):
        outcome = await work.perform(job(missing), Recorder())
        assert outcome.error is not None
        assert outcome.error.code == "dataset_invalid"
    await works(work, files)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", "lower batch_size"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
            "batch_size",
        ),
        (MemoryError(), "out_of_memory", "load_in_4bit"),
        (RuntimeError("shapes differ"), "engine_error", "RuntimeError: shapes differ"),
    ],
)
async def test_a_step_that_fails_ends_the_turn_and_not_the_runner(
    files: Files, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, said: str
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_loss", fail)
        found = await failure(work, files, held_out=0)
    assert found.code == code
    assert said in found.message
    assert work.broken is None
    await works(work, files)


async def test_a_loss_that_is_no_number_diverged(
    files: Files, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = Trainer._loss
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_loss", lambda *given: computed(*given) * float("nan"))
        assert (await failure(work, files, held_out=0)).code == "training_diverged"
    await works(work, files)


async def test_a_device_that_does_not_come_back_breaks_the_work(
    files: Files, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)

    monkeypatch.setattr(Trainer, "_loss", fail)
    assert (await failure(work, files)).code == "engine_error"
    assert work.broken is not None
    assert "illegal memory access" in work.broken


def test_what_is_fatal() -> None:
    assert not fatal(torch.OutOfMemoryError("CUDA out of memory"))
    assert not fatal(RuntimeError("x"))
    assert failed(Unavailable("no answer")).failure.code == "log_unavailable"


async def test_a_model_that_cannot_be_loaded_says_why(files: Files, tmp_path: Any) -> None:
    work = FinetuneWork(files, device="cpu", threads=1)
    with pytest.raises(EngineError, match="no model is loaded"):
        await work.perform(job("f1"), Recorder())
    with pytest.raises(EngineError, match="there is no folder"):
        await work.load(TINY, Model(name="x", source="/nowhere"))
    llama().save_pretrained(tmp_path)
    byte_tokenizer(None).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="no chat template"):
        await work.load(TINY, Model(name="x", source=str(tmp_path)))
    await work.close()


@pytest.mark.parametrize("spoilt", ["params", "damaged", "gone", "dataset"])
async def test_a_checkpoint_that_does_not_fit_costs_time_only(
    files: Files, work: FinetuneWork, spoilt: str
) -> None:
    data, told = await stored(files, dataset()), Recorder()
    await work.perform(job(data), told)
    found = told.checkpoint
    params: dict[str, Any] = {}
    if spoilt == "params":
        params = {"lora_alpha": 3.0}
    elif spoilt == "damaged":
        found = [await files.put(b"\x80\x04", owner="ann", name="x", media="x", purpose="checkpoint")]
    elif spoilt == "gone":
        found = ["nothing"]
    else:
        data = await stored(files, dataset())
    again = Recorder()
    outcome = await work.perform(job(data, found, **params), again)
    assert outcome.error is None
    assert [step for step, _ in again.losses] == list(range(1, STEPS + 1))
    assert again.told[0].detail["warning"].startswith(f"begun anew, checkpoint {found[0]} was not used: ")
    assert "warning" not in again.told[1].detail


class Unreachable:
    """A store that does not take some files."""

    def __init__(self, files: Files, purpose: str) -> None:
        self._files = files
        self._purpose = purpose

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    async def put(self, source: Any, **about: Any) -> str:
        if about["purpose"] == self._purpose:
            raise Unavailable("no answer")
        return await self._files.put(source, **about)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "PATIENCE_S", 0.0)
    monkeypatch.setattr(course, "AGAIN_S", 0.0)


@pytest.mark.usefixtures("hurried")
async def test_a_checkpoint_that_cannot_be_stored_does_not_end_the_training(
    files: Files, model: Model
) -> None:
    work: FinetuneWork = await ready(Unreachable(files, "checkpoint"), model)  # type: ignore[arg-type]
    told = Recorder()
    outcome = await work.perform(job(await stored(files, dataset()), checkpoint_steps=3), told)
    await work.close()
    assert outcome.error is None
    assert len(outcome.files) == 2
    assert "checkpoint of step 3 was not stored" in told.told[3].detail["warning"]
    assert [step for step, _ in told.losses] == list(range(1, STEPS + 1))


@pytest.mark.usefixtures("hurried")
async def test_an_adapter_that_cannot_be_stored_is_a_failure(files: Files, model: Model) -> None:
    work: FinetuneWork = await ready(Unreachable(files, "adapter"), model)  # type: ignore[arg-type]
    error = await failure(work, files)
    await work.close()
    assert error.code == "log_unavailable"


async def test_a_store_that_comes_back_is_waited_for(
    files: Files, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "AGAIN_S", 0.0)
    refusals = iter(range(3))

    class Resting(Unreachable):
        async def put(self, source: Any, **about: Any) -> str:
            if next(refusals, None) is not None:
                assert source.read(10)  # half of it is sent already
                raise Unavailable("no answer")
            return await self._files.put(source, **about)

    work: FinetuneWork = await ready(Resting(files, ""), model)  # type: ignore[arg-type]
    told, again = Recorder(), Recorder()
    data = await stored(files, dataset())
    assert (await work.perform(job(data), told)).error is None
    assert (await work.perform(job(data, told.checkpoint), again)).error is None  # it is whole
    await work.close()
    assert "warning" not in str(told.told)
    assert again.told == []


async def test_misconfigured_devices_are_refused(files: Files, model: Model) -> None:
    work = FinetuneWork(files, device="tpu", threads=1)
    with pytest.raises((EngineError, Misconfigured), match="use cpu or cuda"):
        await work.load(TINY, model)
    await work.close()
