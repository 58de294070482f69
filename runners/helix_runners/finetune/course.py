"""One fine-tune from its dataset to its adapter: prepare, go on from a checkpoint, learn, keep, hand over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog
import torch

from helix_es.core.errors import HelixError, LogFull, Rejected, Unavailable
from helix_es.core.events import Usage
from helix_es.core.params import TrainParams
from helix_es.jetstream.files import FilePurpose, Files
from helix_runners.finetune import checkpoint
from helix_runners.finetune.base import DEFAULT, Base
from helix_runners.finetune.failures import TrainingFailed
from helix_runners.finetune.plan import Plan
from helix_runners.finetune.report import Report
from helix_runners.finetune.sequences import Material, read_material
from helix_runners.finetune.thread import Stopped, TorchThread
from helix_runners.finetune.trainer import Misfit, Trainer
from helix_runners.work import Job, Outcome, Output

log = structlog.get_logger(__name__)

PATIENCE_S = 60.0  # a broker elects a leader in 5 to 9 s, and starts again in less than this
AGAIN_S = 0.5
BYTES = "application/octet-stream"
ADAPTER_FILES = (("adapter_model.safetensors", BYTES), ("adapter_config.json", "application/json"))

Result = TypeVar("Result")


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What every fine-tune of a runner works with."""

    files: Files
    thread: TorchThread
    base: Base


@dataclass(eq=False)
class Asked:
    """What is asked of a fine-tune while it is on its way."""

    to_stop: bool = False
    """Soon; what was learnt until then is kept."""
    to_keep: bool = False
    """A checkpoint at the next step, since another GPU is to go on from it."""


class Course:
    """A fine-tune that is on its way. All torch work is done in the one thread, this waits for it."""

    def __init__(self, job: Job, params: TrainParams, tools: Tools, folder: Path) -> None:
        """`folder`: an empty one of its own, for as long as it takes."""
        self._job = job
        self._params = params
        self._files = tools.files
        self._thread = tools.thread
        self._base = tools.base
        self._folder = folder
        self._material = Material()
        self._trainer: Trainer | None = None
        self._asked = Asked()
        self._alive: Callable[[], None] = lambda: None
        self._kept = 0
        """The step of the last checkpoint."""
        self._about = checkpoint.About(
            identity=checkpoint.identity(tools.base.name, job.state.dataset or "", params),
            adapter={},
            step=0,
            tokens=0,
            losses=[],
            held_out=[],
        )

    def detail(self) -> dict[str, Any]:
        """Return where it is, for heartbeats."""
        trainer, losses = self._trainer, self._about.losses
        if trainer is None:
            return {"doing": "preparing"}
        where = {"step": trainer.step, "steps": trainer.plan.steps, "loss": losses[-1] if losses else None}
        return {"doing": "training", **where}  # not whose it is: everybody may look at the floor

    async def run(self, output: Output, asked: Asked) -> Outcome:
        """Return how it ended; soon, once `asked` says so.

        Raises TrainingFailed, and what `output` raises; nothing computes after that.
        """
        self._asked, self._alive = asked, output.alive
        try:
            return await self._all(output)
        except Stopped:  # asked to before there was a first step
            return Outcome(cancelled=True)
        finally:
            self._trainer = None
            await self._thread.run(self._base.release)

    def _check(self) -> None:
        """Called between the parts of whatever takes long. Raises Stopped if it is in vain."""
        self._alive()
        self._thread.check()
        if self._asked.to_stop:
            raise Stopped

    async def _all(self, output: Output) -> Outcome:
        trainer = self._trainer = await self._prepared()
        report = Report(output, trainer.plan.steps)
        await self._go_on(trainer, report)
        await self._learn(trainer, report)
        if not trainer.step:
            return Outcome(cancelled=True)
        return await self._handed_over(trainer)

    # -- before

    async def _prepared(self) -> Trainer:
        path = self._folder / "dataset.jsonl"
        dataset = self._job.state.dataset
        if dataset is None:
            raise TrainingFailed("dataset_invalid", "the session names no dataset")
        try:
            await persistently(lambda: self._files.fetch(dataset, path))
        except Rejected as error:
            raise TrainingFailed("dataset_invalid", str(error)) from error
        return await self._thread.run(lambda: self._opened(path))

    def _opened(self, path: Path) -> Trainer:
        params, base = self._params, self._base
        most = min(params.sequence_tokens, base.context_tokens)
        self._material = read_material(path, base.tokenizer, most, self._check)
        path.unlink()
        torch.manual_seed(params.seed)
        model = base.adapt(params)
        config = msgspec.to_builtins(model.peft_config[DEFAULT].to_dict(), enc_hook=str)
        self._about = msgspec.structs.replace(self._about, adapter=config)
        return Trainer(
            model,
            self._material.sequences,
            Plan(self._material.examples, params),
            batch_size=params.batch_size,
            check=self._check,
        )

    async def _go_on(self, trainer: Trainer, report: Report) -> None:
        """Begin after the last checkpoint, whoever made it; one that does not fit costs time, not the fine-tune."""
        if self._material.cut:
            report.note(examples_cut=self._material.cut, examples_left_out=self._material.left_out)
        files = self._job.turn.checkpoint
        if files:
            path = self._folder / "found.safetensors"
            try:
                await persistently(lambda: self._files.fetch(files[0], path))
                await self._thread.run(lambda: self._restore(trainer, path))
                self._kept = trainer.step
                report.note(resumed_step=trainer.step)
                return
            except (HelixError, TrainingFailed) as error:
                log.warning("checkpoint_not_used", session=self._job.session, error=str(error))
                report.note(warning=f"begun anew, checkpoint {files[0]} was not used: {error}")
        await self._measure(trainer, report)
        await report.tell(0)

    def _restore(self, trainer: Trainer, path: Path) -> None:
        try:
            about, tensors = checkpoint.read(path, self._about.identity)
            trainer.restore(about.step, tensors)
        except Misfit as error:
            raise TrainingFailed("checkpoint_unfit", str(error)) from error
        finally:
            path.unlink()
        self._about = about

    # -- on the way

    async def _learn(self, trainer: Trainer, report: Report) -> None:
        steps, every, asked = trainer.plan.steps, self._params.checkpoint_steps, self._asked
        while trainer.step < steps and not asked.to_stop:
            begun = time.monotonic()
            try:
                done = await self._thread.run(trainer.advance)
            except Stopped:  # in the middle of a step: what was whole before it is kept
                break
            report.done(done, time.monotonic() - begun)
            self._about = msgspec.structs.replace(
                self._about,
                step=done.step,
                tokens=self._about.tokens + done.tokens,
                losses=[*self._about.losses[:1], done.loss],
            )
            if done.step == steps or (done.step % every == 0 and not asked.to_stop):
                await self._measure(trainer, report)
                await self._keep_and_tell(trainer, report)
            elif asked.to_keep and not asked.to_stop:
                await self._keep_and_tell(trainer, report)
            elif not asked.to_stop:
                await report.tell(done.step)
        if trainer.step > self._kept:  # asked to stop, or the last checkpoint could not be stored
            await report.tell(trainer.step)  # ends here if nobody wants to hear of it any more
            await self._keep_and_tell(trainer, report)

    async def _keep_and_tell(self, trainer: Trainer, report: Report) -> None:
        # taken back first: who asks while this one is on its way gets another
        wanted, self._asked.to_keep = self._asked.to_keep, False
        kept = await self._keep(trainer, report)
        if wanted and not kept:
            self._asked.to_keep = True
        await report.tell(trainer.step, kept)

    async def _measure(self, trainer: Trainer, report: Report) -> None:
        try:
            loss = await self._thread.run(trainer.held_out_loss)
        except Stopped:
            if not trainer.step:
                raise
            return
        if loss is not None:
            report.measured(trainer.step, loss)
            held_out = [*self._about.held_out[:1], loss]
            self._about = msgspec.structs.replace(self._about, held_out=held_out)

    async def _keep(self, trainer: Trainer, report: Report) -> list[str]:
        """Store a checkpoint and return its file, or nothing if there is no room for it: learning goes on."""
        path = self._folder / f"checkpoint-{trainer.step}.safetensors"
        await self._thread.run(lambda: checkpoint.write(path, self._about, trainer.state()))
        try:
            file = await self._put(path, "checkpoint", BYTES)
        except (Unavailable, LogFull) as error:
            log.warning("checkpoint_not_stored", session=self._job.session, error=str(error))
            report.note(warning=f"the checkpoint of step {trainer.step} was not stored: {error}")
            return []
        finally:
            path.unlink()
        self._kept = trainer.step
        return [file]

    async def _put(self, path: Path, purpose: FilePurpose, media: str) -> str:
        async def attempt() -> str:
            with path.open("rb") as source:
                return await self._files.put(
                    source,
                    owner=self._job.state.owner,
                    name=path.name,
                    media=media,
                    purpose=purpose,
                    session=self._job.session,
                )

        return await persistently(attempt)

    # -- after

    async def _handed_over(self, trainer: Trainer) -> Outcome:
        folder = self._folder / "adapter"
        await self._thread.run(lambda: trainer.save(str(folder)))
        try:
            files = [await self._put(folder / name, "adapter", media) for name, media in ADAPTER_FILES]
        except (Unavailable, LogFull) as error:
            raise TrainingFailed(error.code, f"the adapter was not stored: {error}") from error
        return Outcome(
            files=files,
            output=self._sentence(trainer),
            cancelled=trainer.step < trainer.plan.steps,
            usage=Usage(prompt_tokens=self._about.tokens),
        )

    def _sentence(self, trainer: Trainer) -> str:
        about, plan = self._about, trainer.plan
        count = len(set(self._material.examples))
        first, last = about.losses[0], about.losses[-1]
        said = f"{trainer.step} of {plan.steps} steps over {count} examples: loss {first:.3f} to {last:.3f}"
        if about.held_out:
            said += f", held out {about.held_out[0]:.3f} to {about.held_out[-1]:.3f}"
        return f"{said}."


async def persistently(attempt: Callable[[], Awaitable[Result]]) -> Result:
    """Return what `attempt` gives, trying again for a minute while the store cannot be reached or is full."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await attempt()
        except (Unavailable, LogFull) as error:
            if time.monotonic() > deadline:
                raise
            log.warning("store_not_reached", code=error.code, error=str(error))
            await asyncio.sleep(AGAIN_S)
