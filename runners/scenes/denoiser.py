"""The denoiser and its two text encoders: their shapes, their loss, their training."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoint import Progress, load, save
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from words import LENGTH

from scenes import CELL, SIDE

WIDTH = 64
"""Of each text encoder."""
UNPROMPTED = 0.1
"""Share of pictures learnt without their caption, for classifier-free guidance."""
OUTLINE = 2.0
"""How much more a latent counts at an outline, where all the mistakes that one sees are."""
FLAT = 0.12
"""Deviation of the pixels of a cell (of a range of 2) up to which it is no outline; gradients stay below."""
AVERAGED = 0.996
"""Decay of the average of the weights, a step."""


@dataclass(frozen=True)
class Examples:
    """What the denoiser learns from."""

    latents: Tensor
    """(n, LATENTS, 16, 16) float32."""
    weights: Tensor
    """(n, 1, 16, 16) float32, 1 on average for each picture."""
    tokens: Tensor
    """(n, LENGTH) int64."""


class Denoiser(nn.Module):
    """The trained parts of the pipeline."""

    def __init__(
        self, unet: UNet2DConditionModel, first: CLIPTextModel, second: CLIPTextModelWithProjection
    ) -> None:
        super().__init__()
        self.unet = unet
        self.first = first
        self.second = second

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor, prompted: Tensor) -> Tensor:
        """Return the velocity at `times`; where `prompted` is 0 the text is zeros, as the pipeline has it."""
        one = self.first(tokens, output_hidden_states=True)
        two = self.second(tokens, output_hidden_states=True)
        # SDXL reads the last but one layer of both
        words = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1) * prompted[:, None, None]
        sizes = torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE], dtype=torch.float32).repeat(len(tokens), 1)
        conditions = {"text_embeds": two.text_embeds * prompted[:, None], "time_ids": sizes}
        velocity: Tensor = self.unet(noisy, times, words, added_cond_kwargs=conditions).sample
        return velocity


def blank(vocabulary: int, latents: int) -> Denoiser:
    """Return an untrained denoiser of 2.9 million weights."""
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_act="gelu",
        projection_dim=WIDTH,
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // CELL,
        in_channels=latents,
        out_channels=latents,
        layers_per_block=1,
        block_out_channels=(48, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
        norm_num_groups=8,
    )
    return Denoiser(unet, CLIPTextModel(text), CLIPTextModelWithProjection(copy.copy(text)))


def schedule() -> EulerDiscreteScheduler:
    """Return the noise schedule: down to pure noise, so that dark and bright pictures are both within reach."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def outline_weights(pictures: Tensor) -> Tensor:
    """Return how much each latent of uint8 pictures (n, 3, side, side) counts in the loss."""
    cells = pictures.float().div(127.5).unfold(2, CELL, CELL).unfold(3, CELL, CELL)
    busy = (cells.std(dim=(-1, -2)).amax(dim=1, keepdim=True) > FLAT).float()
    weights = 1 + OUTLINE * max_pool2d(busy, 3, stride=1, padding=1)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)


def loss_of(model: Denoiser, examples: Examples, chosen: Tensor, signal: Tensor) -> Tensor:
    """Return the weighted error of the velocities of the chosen examples; `signal` is the cumulated alphas."""
    latents = examples.latents[chosen]
    count = len(latents)
    # one time from each of `count` equal parts, so that every batch sees all levels of noise
    times = ((torch.arange(count) + torch.rand(count)) / count * len(signal)).long()
    alpha = signal[times][:, None, None, None]
    noise = torch.randn_like(latents)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    prompted = (torch.rand(count) > UNPROMPTED).float()
    error = (model(noisy, times, examples.tokens[chosen], prompted) - velocity).square()
    return (error * examples.weights[chosen]).mean()


def train(
    model: Denoiser, examples: Examples, progress: Progress, *, batch: int, rate: float, work: Path
) -> Denoiser:
    """Train for the time of `progress`, going on from a checkpoint in `work`; return the averaged weights."""
    both = nn.ModuleDict({"now": model, "average": copy.deepcopy(model)})
    now: list[Tensor] = list(model.parameters())
    average: list[Tensor] = list(both["average"].parameters())
    optimiser = torch.optim.AdamW(now, lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    checkpoint = work / "denoiser.safetensors"
    load(checkpoint, both, optimiser, progress)
    signal = schedule().alphas_cumprod.float()
    while progress.share < 1:
        for group in optimiser.param_groups:
            group["lr"] = progress.rate(rate, hold=0.3)
        loss = loss_of(model, examples, torch.randint(0, len(examples.latents), (batch,)), signal)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(now, 1.0)
        optimiser.step()
        with torch.no_grad():
            kept = min(AVERAGED, (1 + progress.step) / (10 + progress.step))
            torch._foreach_lerp_(average, now, 1 - kept)
        if progress.advance(loss.item()):
            save(checkpoint, both, optimiser, progress)
    save(checkpoint, both, optimiser, progress)
    averaged = both["average"]
    if not isinstance(averaged, Denoiser):
        raise TypeError("the average is a denoiser")
    return averaged
