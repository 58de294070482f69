"""What a picture looks like before it is done, from its latents."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.nn.functional import interpolate

from helix_runners.image import png

SIDE = 96
"""Pixels of a preview's longer side, at most."""
EVERY_S = 0.2


class Previews:
    """The previews of one picture: at most five a second."""

    def __init__(self, view: Any) -> None:
        """`view`: the pipeline that makes the picture."""
        self._view = view
        self._made_at = time.monotonic() - EVERY_S
        self._before: tuple[torch.Tensor, float] | None = None
        vae = view.vae
        # in half precision such a decoder overflows, and upcasting it costs more than a preview is worth
        self._possible = not (vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False))

    def look(self, latents: torch.Tensor) -> bytes:
        """Return a small PNG of what `latents`, of the step just done, will become; empty if it is too early."""
        if not self._possible:
            return b""
        sigma = _noise(self._view.scheduler)
        before, self._before = self._before, (latents, sigma)
        if time.monotonic() - self._made_at < EVERY_S:
            return b""
        clean = _clean(latents, sigma, before)
        if clean is None:
            return b""
        small = _shrunk(clean, SIDE // self._view.vae_scale_factor)
        decoded = self._view.vae.decode(self._unscaled(small).to(latents.dtype), return_dict=False)[0]
        shown = png.preview(self._view.image_processor.postprocess(decoded, output_type="pil")[0])
        self._made_at = time.monotonic()
        return shown

    def _unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """As the pipeline does it before it decodes."""
        config = self._view.vae.config
        scaled: torch.Tensor = latents / config.scaling_factor
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or deviation is None:
            return scaled
        shape = (1, -1, 1, 1)
        return scaled * scaled.new_tensor(deviation).view(shape) + scaled.new_tensor(mean).view(shape)


def _noise(scheduler: Any) -> float:
    """Return how much noise of variance 1 is in the latents; 0 where latents are kept at variance 1 throughout."""
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    if sigmas is None or index is None or float(scheduler.init_noise_sigma) <= 1.0:
        return 0.0
    return float(sigmas[index])


def _clean(
    latents: torch.Tensor, sigma: float, before: tuple[torch.Tensor, float] | None
) -> torch.Tensor | None:
    """Go on to where there is no noise, in the direction of the last step; None while there is no direction."""
    here = latents.float()
    if sigma == 0:
        return here
    if before is None or before[1] == sigma:
        return None
    there, sigma_before = before
    return here - sigma * (here - there.float()) / (sigma - sigma_before)


def _shrunk(latents: torch.Tensor, most: int) -> torch.Tensor:
    height, width = latents.shape[-2:]
    ratio = min(1.0, most / max(height, width))
    return interpolate(latents, (max(1, int(height * ratio)), max(1, int(width * ratio))), mode="area")
