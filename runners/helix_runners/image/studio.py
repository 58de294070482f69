"""All pictures in progress on one pipeline: each is an ordinary diffusers call that hands over after every step."""

from __future__ import annotations

import gc
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

from helix_es.core.errors import EngineError
from helix_runners.image.painting import Cancelled, End, Painting
from helix_runners.image.picture import Painted, Step, Wanted
from helix_runners.image.preview import Previews

log = structlog.get_logger(__name__)

OUT_OF_MEMORY = "out_of_memory"
MOST_CHARACTERS = 8000  # of a prompt that are split into tokens: models read 77 of those
LEAST_PART = 1.0001  # of a step, so that rounding down leaves one


class _Casting:
    """The original warns that it is deprecated, each time."""

    vae: torch.nn.Module

    def upcast_vae(self) -> None:
        self.vae.to(dtype=torch.float32)


class _FromNoise(_Casting, StableDiffusionXLPipeline):
    pass


class _FromPicture(_Casting, StableDiffusionXLImg2ImgPipeline):
    pass


class Studio:
    """Mutable, of one thread, in which gradients are off for good: a call that is left in the middle has switched
    them off itself, and would else switch them on again in the middle of another."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._vae_dtype = pipeline.vae.dtype
        latents = pipeline.default_sample_size
        sides = (latents, latents) if isinstance(latents, int) else latents
        self._own_pixels: int = sides[0] * sides[1] * pipeline.vae_scale_factor**2
        self._easels: deque[_Easel] = deque()
        self.failed_in_a_row = 0
        """Pictures that could not be computed since one could, where the request was not the reason."""
        self.pictures = 0
        """Made since start."""

    def __len__(self) -> int:
        return len(self._easels)

    def begin(self, painting: Painting) -> None:
        """Put `painting` behind those that are there."""
        self._easels.append(_Easel(self._view, painting))

    def step(self) -> tuple[Painting, Step | End]:
        """Compute one step of the picture whose turn it is; return what came of it."""
        easel = self._easels[0]
        item = self._advanced(easel)
        if isinstance(item, Step):
            self._easels.rotate(-1)
        else:
            self._easels.popleft()
        return easel.painting, item

    def abandon(self) -> list[Painting]:
        """Compute none of them any further; return them."""
        left = [easel.painting for easel in self._easels]
        for easel in self._easels:
            easel.drop()
        self._easels.clear()
        return left

    def _view(self, wanted: Wanted) -> Any:
        """A pipeline with a scheduler of its own on the one set of weights."""
        base = self._pipeline
        fresh = type(base.scheduler).from_config(base.scheduler.config)
        kind: Any = _FromNoise if wanted.start is None else _FromPicture
        view = kind(
            **{**base.components, "scheduler": fresh},
            force_zeros_for_empty_prompt=base.config.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
        view.set_progress_bar_config(disable=True)
        return view

    def _advanced(self, easel: _Easel) -> Step | End:
        if easel.painting.cancelled:
            easel.drop()
            return Cancelled()
        try:
            item = easel.advance()
        except Exception as error:  # whatever torch raises ends this picture, and no other
            failure = self._failure(error, easel.painting.wanted)
        else:
            if isinstance(item, Painted):
                self.failed_in_a_row = 0
                self.pictures += 1
            return item
        if failure.code == OUT_OF_MEMORY:  # only now are the error's frames gone, which held the tensors
            gc.collect()
            torch.cuda.empty_cache()
        return failure

    def _failure(self, error: Exception, wanted: Wanted) -> EngineError:
        where = traceback.extract_tb(error.__traceback__)[-1]
        log.warning("picture_failed", error=repr(error), at=f"{where.filename}:{where.lineno}")
        self._pipeline.vae.to(dtype=self._vae_dtype)  # it may have failed between casting up and back
        if not _is_out_of_memory(error):
            self.failed_in_a_row += 1
            return EngineError(f"the picture could not be computed: {type(error).__name__}: {error}")
        if wanted.width * wanted.height <= self._own_pixels:  # what the model was made for must be possible
            self.failed_in_a_row += 1
        return EngineError(
            f"the GPU has no memory for a picture of {wanted.width} x {wanted.height}: ask for a smaller one",
            code=OUT_OF_MEMORY,
        )


class _Easel:
    """A pipeline's call, in a greenlet that goes back to its parent whenever a step is done."""

    def __init__(self, view: Callable[[Wanted], Any], painting: Painting) -> None:
        self.painting = painting
        self._make_view = view
        self._truncated = False
        self._hub = getcurrent()
        self._greenlet = greenlet(self._paint, parent=self._hub)

    def advance(self) -> Step | Painted:
        """Compute the next step. Raises what the pipeline raises."""
        item: Step | Painted = self._greenlet.switch()
        return item

    def drop(self) -> None:
        """Unwind the call where it stands."""
        self._greenlet.throw()

    def _paint(self) -> Painted:
        wanted = self.painting.wanted
        self._view = self._make_view(wanted)
        self._previews = Previews(self._view)
        self._truncated = any(self._is_too_long(text) for text in (wanted.prompt, wanted.negative_prompt))
        made = self._view(
            wanted.prompt[:MOST_CHARACTERS],
            negative_prompt=wanted.negative_prompt[:MOST_CHARACTERS] or None,
            num_inference_steps=wanted.steps,
            guidance_scale=wanted.guidance,
            # on the processor, so that a seed makes the same picture wherever it is computed
            generator=torch.Generator("cpu").manual_seed(wanted.seed),
            callback_on_step_end=self._step_done,
            **self._beginning(),
        )
        return Painted(image=made.images[0], truncated=self._truncated)

    def _beginning(self) -> dict[str, Any]:
        wanted = self.painting.wanted
        if wanted.start is None:
            return {"width": wanted.width, "height": wanted.height}
        return {"image": wanted.start, "strength": min(1.0, max(wanted.strength, LEAST_PART / wanted.steps))}

    def _is_too_long(self, text: str) -> bool:
        if len(text) > MOST_CHARACTERS:
            return True
        readers = (self._view.tokenizer, self._view.tokenizer_2)
        return any(len(reader(text).input_ids) > reader.model_max_length for reader in readers)

    def _step_done(self, _view: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Called by the pipeline after each step; returns when it is this picture's turn again."""
        latents: torch.Tensor = tensors["latents"]
        steps = self._view.num_timesteps
        last = index + 1 == steps
        if not bool(torch.isfinite(latents).all()):
            raise ArithmeticError("the model gave no numbers; try dtype float32 or bfloat16")
        shown = b"" if last else self._previews.look(latents)
        self._hub.switch(Step(step=index + 1, steps=steps, preview=shown, truncated=self._truncated))
        return {}


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
