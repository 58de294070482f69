"""A fine-tune from the dataset in the store to the adapter in the store: resumed, cancelled, dropped, one at a time."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load

from helix_es.core.catalogue import Model
from helix_es.core.errors import LogFull, NotOurs
from helix_es.jetstream.files import Files
from helix_runners.finetune import course
from helix_runners.finetune.trainer import Trainer
from helix_runners.finetune.work import FinetuneWork
from helix_runners.work import Outcome
from tests.runners.engine.models import llama, prompt_of
from tests.runners.finetune.parts import NAME, STEPS, Recorder, adapter, content, dataset, job, ready, stored

pytestmark = pytest.mark.anyio
PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runners put what they need for a while."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


async def test_a_fine_tune_makes_an_adapter_in_the_format_of_peft(
    files: Files, work: FinetuneWork, tmp_path: Path, scratch: Path
) -> None:
    told = Recorder()
    outcome = await work.perform(job(await stored(files, dataset())), told)
    assert (outcome.error, outcome.cancelled) == (None, False)
    assert outcome.output.startswith(f"{STEPS} of {STEPS} steps over 10 examples: loss ")
    assert outcome.usage.prompt_tokens > 0
    infos = [await files.info(file, "ann") for file in outcome.files]
    assert [each.name for each in infos] == ["adapter_model.safetensors", "adapter_config.json"]
    assert {(each.purpose, each.session) for each in infos} == {("adapter", "s1")}
    config = json.loads(await content(files, outcome.files[1]))
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == (NAME, 8, 16)
    for info in infos:
        await files.fetch(info.id, tmp_path / info.name)
    base = llama()
    tokens = torch.tensor([prompt_of(20)])
    with torch.inference_mode():
        before = base(input_ids=tokens).logits
        after = PeftModel.from_pretrained(base, str(tmp_path)).eval()(input_ids=tokens).logits
    assert (after - before).abs().max() > 0.1
    assert os.listdir(scratch) == []
    assert work.detail() == {"doing": "nothing"}


async def test_steps_tell_what_was_measured(files: Files, work: FinetuneWork) -> None:
    told, seen = Recorder(), []
    told.at = lambda step: seen.append(work.detail())
    await work.perform(job(await stored(files, dataset()), checkpoint_steps=3), told)
    assert [each.step for each in told.told] == list(range(STEPS + 1))
    assert {each.steps for each in told.told} == {STEPS}
    assert [each.step for each in told.told if each.checkpoint] == [3, 6, 8]
    assert [step for step, _ in told.held_out] == [0, 3, 6, 8]
    assert told.held_out[-1][1] < told.held_out[0][1]
    last = told.told[-1].detail
    assert last["learning_rate"] == pytest.approx(0.01 * 0.0670, rel=1e-2)
    assert (last["left_s"], last["loss"]) == (0.0, last["losses"][-1][1])
    assert last["tokens_per_s"] > 0
    assert seen[-1] == {"doing": "training", "step": 8, "steps": 8, "loss": seen[-1]["loss"]}
    assert round(seen[-1]["loss"], 6) == last["loss"]


@pytest.mark.parametrize("every", [1, 3, 100])
async def test_the_log_holds_the_whole_curve_once(files: Files, work: FinetuneWork, every: int) -> None:
    told = Recorder(every)
    await work.perform(job(await stored(files, dataset()), checkpoint_steps=3), told)
    assert [step for step, _ in told.losses] == list(range(1, STEPS + 1))
    assert told.losses == [(each.step, each.detail["loss"]) for each in told.told[1:]]
    assert [step for step, _ in told.held_out] == [0, 3, 6, 8]


async def uninterrupted(files: Files, model: Model, **params: Any) -> tuple[Recorder, Outcome]:
    work, told = await ready(files, model), Recorder()
    outcome = await work.perform(job(await stored(files, dataset()), **params), told)
    await work.close()
    return told, outcome


def fail_at(step: int, error: Callable[[], Exception]) -> Callable[[int], None]:
    def fail(now: int) -> None:
        if now == step:
            raise error()

    return fail


async def test_a_killed_fine_tune_goes_on_exactly_on_another_runner(files: Files, model: Model) -> None:
    params: dict[str, Any] = {"checkpoint_steps": 3, "lora_dropout": 0.2, "gradient_accumulation": 1}
    whole, expected = await uninterrupted(files, model, **params)
    data = await stored(files, dataset())
    first, killed = await ready(files, model), Recorder(at=fail_at(5, lambda: NotOurs("gone")))
    with pytest.raises(NotOurs):
        await first.perform(job(data, **params), killed)
    await first.close()
    torch.manual_seed(1234)  # nothing may hang on what this process did before
    second, resumed = await ready(files, model), Recorder()
    outcome = await second.perform(job(data, killed.checkpoint, **params), resumed)
    await second.close()
    assert resumed.told[0].detail["resumed_step"] == 3
    assert [step for step, _ in resumed.losses] == [4, 5, 6, 7, 8]
    for (_, loss), (_, wanted) in zip(resumed.losses, whole.losses[3:], strict=True):
        assert loss == pytest.approx(wanted, abs=1e-5)
    assert [step for step, _ in resumed.held_out] == [6, 8]
    assert resumed.held_out[-1][1] == pytest.approx(whole.held_out[-1][1], abs=1e-5)
    assert outcome.output == expected.output  # the summary and the usage are the whole training's
    assert outcome.usage == expected.usage
    made, wanted_tensors = await adapter(files, outcome), await adapter(files, expected)
    assert all(torch.allclose(made[name], each, atol=1e-6) for name, each in wanted_tensors.items())


async def test_a_fine_tune_killed_after_its_last_step_only_hands_over(
    files: Files, work: FinetuneWork
) -> None:
    data, told, again = await stored(files, dataset()), Recorder(), Recorder()
    expected = await work.perform(job(data), told)
    outcome = await work.perform(job(data, told.checkpoint), again)
    assert again.told == []
    assert outcome.output == expected.output
    made, wanted = await adapter(files, outcome), await adapter(files, expected)
    assert all(torch.equal(made[name], each) for name, each in wanted.items())


async def test_cancelling_keeps_a_checkpoint_and_the_adapter(files: Files, work: FinetuneWork) -> None:
    whole = Recorder()
    await work.perform(job(await stored(files, dataset())), whole)
    data, told = await stored(files, dataset()), Recorder()

    async def cancel() -> None:
        await work.cancel("s1")

    tasks: list[asyncio.Task[None]] = []
    told.at = lambda step: tasks.append(asyncio.create_task(cancel())) if step == 4 else None
    outcome = await work.perform(job(data), told)
    assert outcome.cancelled
    assert told.told[-1].step in (4, 5)  # the step that was computed meanwhile is kept too
    assert told.told[-1].checkpoint
    assert outcome.output.startswith(f"{told.told[-1].step} of 8 steps")
    infos = [await files.info(file) for file in outcome.files]
    assert [each.name for each in infos] == ["adapter_model.safetensors", "adapter_config.json"]
    saved = load(await content(files, told.checkpoint[0]))
    assert any(
        torch.equal(
            each, saved["adapter.base_model.model." + name[17:].replace(".weight", ".default.weight")]
        )
        for name, each in (await adapter(files, outcome)).items()
    )
    assert [step for step, _ in told.losses] == list(range(1, told.told[-1].step + 1))
    resumed = Recorder()
    await work.perform(job(data, told.checkpoint), resumed)
    assert dict(told.losses) | dict(resumed.losses) == pytest.approx(dict(whole.losses), abs=1e-5)


async def test_a_fine_tune_that_must_give_way_keeps_a_checkpoint_and_goes_on(
    files: Files, work: FinetuneWork
) -> None:
    data, told = await stored(files, dataset()), Recorder()
    tasks: list[asyncio.Task[None]] = []

    def at(step: int) -> None:
        if step == 4:
            tasks.append(asyncio.create_task(work.give_way("s1")))

    told.at = at
    outcome = await work.perform(job(data, checkpoint_steps=100), told)
    assert (outcome.error, outcome.cancelled, len(outcome.files)) == (None, False, 2)
    first, last = (each.step for each in told.told if each.checkpoint)
    assert first in (5, 6), "the step that was computed then, or the one after it"
    assert last == STEPS
    assert [step for step, _ in told.losses] == list(range(1, STEPS + 1))
    assert [step for step, _ in told.held_out] == [0, STEPS], "measuring would take the time that chats wait"
    given = next(each.checkpoint for each in told.told if each.checkpoint)
    moved = Recorder()
    await work.perform(job(data, given, checkpoint_steps=100), moved)
    assert moved.losses[0][0] == first + 1
    assert dict(moved.losses) == pytest.approx(dict(told.losses[first:]), abs=1e-5)


async def test_a_checkpoint_that_found_no_room_is_made_at_the_next_step(
    files: Files, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, refusals = files.put, [LogFull("no room")]

    async def refusing(source: Any, **about: Any) -> str:
        if about["purpose"] == "checkpoint" and refusals:
            raise refusals.pop()
        return await put(source, **about)

    monkeypatch.setattr(files, "put", refusing)
    monkeypatch.setattr(course, "PATIENCE_S", 0.0)
    told = Recorder()
    tasks: list[asyncio.Task[None]] = []
    told.at = lambda step: tasks.append(asyncio.create_task(work.give_way("s1"))) if step == 2 else None
    await work.perform(job(await stored(files, dataset()), checkpoint_steps=100), told)
    assert not refusals
    first, last = (each.step for each in told.told if each.checkpoint)
    assert first in (4, 5)
    assert last == STEPS


async def test_who_does_not_train_has_nothing_to_keep(files: Files, work: FinetuneWork) -> None:
    await work.give_way("nobody")
    told = Recorder()
    await work.perform(job(await stored(files, dataset()), checkpoint_steps=100), told)
    assert [each.step for each in told.told if each.checkpoint] == [STEPS]


async def test_a_fine_tune_that_was_taken_away_stores_nothing_more(files: Files, work: FinetuneWork) -> None:
    data, told = await stored(files, dataset()), Recorder()

    def at(step: int) -> None:
        if step == 3:
            for place in work._line:
                place.asked.to_stop = True
        if len(told.told) > 4:  # it says once more where it is, before it stores that
            raise NotOurs("moved")

    told.at = at
    before = len(await files.list("ann"))
    with pytest.raises(NotOurs):
        await work.perform(job(data, checkpoint_steps=100), told)
    assert len(await files.list("ann")) == before


async def test_what_takes_long_shows_that_it_moves(files: Files, work: FinetuneWork) -> None:
    told = Recorder()
    given = job(await stored(files, dataset()), batch_size=1, gradient_accumulation=16, max_steps=1)
    await work.perform(given, told)
    assert told.signs > 10 + 8, "each example that is read, each part of a step"


async def test_cancelling_does_not_wait_for_the_end_of_a_step(
    files: Files, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, parts, loss = asyncio.get_running_loop(), [0], Trainer._loss

    def counted(trainer: Trainer, indexes: Any) -> Any:
        parts[0] += torch.is_grad_enabled()
        if parts[0] == 3:
            asyncio.run_coroutine_threadsafe(work.cancel("s1"), loop).result(PATIENCE_S)
        return loss(trainer, indexes)

    monkeypatch.setattr(Trainer, "_loss", counted)
    told = Recorder()
    given = job(await stored(files, dataset()), batch_size=1, gradient_accumulation=16, max_steps=1)
    assert await work.perform(given, told) == Outcome(cancelled=True)
    assert parts[0] == 3, "the part that was computed was the last"
    assert not any(each.checkpoint for each in told.told)


async def test_cancelling_before_the_first_step_leaves_nothing(files: Files, work: FinetuneWork) -> None:
    told = Recorder()
    data = await stored(files, dataset())
    performing = asyncio.create_task(work.perform(job(data), told))
    await asyncio.sleep(0)  # it has begun
    await work.cancel("s1")
    assert await performing == Outcome(cancelled=True)
    assert not any(each.checkpoint for each in told.told)
    await work.cancel("s1")  # harmless when there is nothing to stop


class Gate:
    """Holds back the computation of one step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.begun = threading.Event()
        self.release = threading.Event()
        self.computed: list[int] = []
        advance = Trainer.advance

        def gated(trainer: Trainer) -> Any:
            if trainer.step + 1 == at:
                self.begun.set()
                assert self.release.wait(PATIENCE_S)
            self.computed.append(trainer.step + 1)
            return advance(trainer)

        monkeypatch.setattr(Trainer, "advance", gated)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, PATIENCE_S)


async def nothing_computes(work: FinetuneWork) -> None:
    """The thread has nothing to do, and the base is as it was."""
    assert await asyncio.wait_for(work._tools.thread.run(lambda: "free"), PATIENCE_S) == "free"
    base = work._tools.base._model
    assert all(
        torch.equal(one, other) for one, other in zip(base.parameters(), llama().parameters(), strict=True)
    )


async def test_a_turn_that_is_anothers_now_computes_no_further_step(
    files: Files, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    gate = Gate(monkeypatch, at=99)
    told = Recorder(at=fail_at(3, lambda: NotOurs("gone")))
    with pytest.raises(NotOurs):
        await work.perform(job(await stored(files, dataset())), told)
    await nothing_computes(work)
    assert gate.computed == [1, 2, 3]
    assert os.listdir(scratch) == []


async def test_a_cancelled_task_ends_when_its_computation_has(
    files: Files, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    gate = Gate(monkeypatch, at=2)
    performing = asyncio.create_task(work.perform(job(await stored(files, dataset())), Recorder()))
    await gate.wait()
    for _ in range(3):  # however impatient
        performing.cancel()
        await asyncio.wait([performing], timeout=0.05)
    assert not performing.done()
    gate.release.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(performing, PATIENCE_S)
    await nothing_computes(work)
    assert gate.computed == [1, 2]
    assert os.listdir(scratch) == []


async def test_closing_stops_what_is_computed(
    files: Files, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, at=2)
    work = await ready(files, model)
    performing = asyncio.create_task(work.perform(job(await stored(files, dataset())), Recorder()))
    await gate.wait()
    closing = asyncio.create_task(work.close())
    await asyncio.wait([closing], timeout=0.05)
    assert not closing.done()
    gate.release.set()
    await asyncio.wait_for(closing, PATIENCE_S)
    assert performing.cancelled()
    assert gate.computed == [1, 2]
    assert work._tools.base._model is None


async def test_a_second_fine_tune_waits_for_the_first(
    files: Files, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, at=1)
    data = await stored(files, dataset())
    order: list[str] = []
    first, second, third = (
        Recorder(at=lambda step, name=name: order.append(name))  # type: ignore[misc]
        for name in ("first", "second", "third")
    )
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        one = group.create_task(work.perform(job(data, session="s1"), first))
        await gate.wait()
        two = group.create_task(work.perform(job(data, session="s2"), second))
        three = group.create_task(work.perform(job(data, session="s3"), third))
        await asyncio.sleep(0)  # they have begun
        await work.cancel("s2")
        assert await two == Outcome(cancelled=True)
        gate.release.set()
    assert order == ["first"] * (STEPS + 1) + ["third"] * (STEPS + 1)
    assert one.result().output == three.result().output


async def test_jobs_on_one_base_do_not_influence_each_other(
    files: Files, model: Model, work: FinetuneWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, expected = await uninterrupted(files, model)
    await work.perform(job(await stored(files, dataset(7)), seed=5, lora_rank=2), Recorder())
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "advance", lambda trainer: (_ for _ in ()).throw(ValueError("odd")))
        assert (await work.perform(job(await stored(files, dataset())), Recorder())).error is not None
    told = Recorder()
    outcome = await work.perform(job(await stored(files, dataset())), told)
    assert told.losses == alone.losses
    made, wanted = await adapter(files, outcome), await adapter(files, expected)
    assert all(torch.equal(made[name], each) for name, each in wanted.items())
    await nothing_computes(work)
