"""Simulated pictures and fine-tunes: steps that take their time, a curve, checkpoints to go on from."""

from __future__ import annotations

from helix_es.core.catalogue import Picture
from helix_es.core.params import ImageParams, TrainParams, parsed
from helix_runners.output import Speaker
from helix_runners.simulated.doing import Doing
from helix_runners.simulated.service import jittered, loss
from helix_runners.work import Outcome

EPOCH_STEPS = 10  # of a simulated fine-tune: no dataset is read
MOST_STEPS = 1000


async def draw(doing: Doing, speaker: Speaker) -> Outcome:
    """Return the picture. Raises Rejected for parameters that cannot be."""
    params = parsed(doing.told.params, ImageParams)
    usual = doing.tools.models[doing.event.model].image or Picture()
    steps = min(params.steps or usual.steps, MOST_STEPS)
    for step in range(1, steps + 1):
        await _step(doing)
        error = doing.failure(step / steps)
        if doing.attempt.stopped or error is not None:
            return Outcome(error=error, cancelled=doing.attempt.stopped)
        await speaker.step(step, steps)
    made = await doing.tools.patiently(lambda: doing.tools.makings.picture(doing.told.owner))
    return Outcome(files=[made] * params.count, first_token_ms=doing.elapsed_ms())


async def train(doing: Doing, speaker: Speaker) -> Outcome:
    """Learn nothing, from the last checkpoint on. Raises Rejected for parameters that cannot be."""
    params = parsed(doing.told.params, TrainParams)
    event, told, makings = doing.event, doing.told, doing.tools.makings
    steps = min(params.max_steps or MOST_STEPS, params.epochs * EPOCH_STEPS, MOST_STEPS)
    begun = await doing.tools.patiently(lambda: makings.step_of(event.session, told.checkpoint))
    losses: list[tuple[int, float]] = []
    for step in range(min(begun, steps) + 1, steps + 1):
        await _step(doing)
        error = doing.failure(step / steps)
        if doing.attempt.stopped or error is not None:
            return Outcome(output=_said(step - 1, steps), error=error, cancelled=doing.attempt.stopped)
        losses.append((step, loss(step, steps)))
        files = await _checkpoint(doing, step) if _due(doing, step, steps) else []
        detail = {"loss": losses[-1][1], "losses": list(losses), "simulated": True}
        if await speaker.step(step, steps, detail, checkpoint=files):
            losses.clear()
    return Outcome(output=_said(steps, steps))


def _due(doing: Doing, step: int, steps: int) -> bool:
    regular = step % doing.tools.service.checkpoint_every == 0 and step < steps
    return regular or doing.attempt.yielding


async def _checkpoint(doing: Doing, step: int) -> list[str]:
    doing.attempt.yielding = False
    stored = doing.tools.makings.checkpoint
    return [await doing.tools.patiently(lambda: stored(doing.event.session, doing.told.owner, step))]


def _said(step: int, steps: int) -> str:
    return f"simulated: {step} of {steps} steps, nothing was learnt"


async def _step(doing: Doing) -> None:
    tools = doing.tools
    await doing.attempt.pause(jittered(tools.service.step_s(doing.crowd), tools.random))
