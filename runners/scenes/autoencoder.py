"""Pictures to latents and back: an encoder built from a principal component analysis, and a decoder trained against it.

The latents of a cell are the leading components of its 4 x 4 pixels. That is linear, so AutoencoderTiny's encoder can
hold it exactly, without training: its two strided convolutions gather the pixels of a cell into 48 channels and its
last one projects them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoint import Progress, load, save
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import Conv2d
from torch.nn.functional import unfold

from scenes import CELL

LATENTS = 6
"""Channels of a latent: six components keep 98 % of the variance."""
PIXELS = 3 * CELL * CELL
"""Values in a cell, and channels of the encoder that gathers them."""
SAMPLE = 1500
"""Pictures the components are computed from: 384,000 cells, more change nothing."""
NOISE = 0.08
"""Deviation added to latents while the decoder learns, since the denoiser's are never exact."""
RATE = 3e-3


@dataclass(frozen=True)
class Projection:
    """The leading components of cells: latents are `(cell - mean) @ components`."""

    mean: Tensor
    """(48,) float32."""
    components: Tensor
    """(48, LATENTS) float32; scaled so that latents have deviation 1 overall."""


def principal(pictures: Tensor) -> Projection:
    """Return the projection of pictures (n, 3, side, side) in -1..1."""
    cells = unfold(pictures, CELL, stride=CELL).transpose(1, 2).reshape(-1, PIXELS)
    mean = cells.mean(0)
    variances, vectors = torch.linalg.eigh((cells - mean).T @ (cells - mean) / len(cells))
    variances, vectors = variances.flip(0)[:LATENTS], vectors.flip(1)[:, :LATENTS]
    # partly whitened: fully, and the noise of small components would count as much as the colour of a cell
    components = vectors / variances.sqrt().pow(0.75)
    return Projection(mean, components / ((cells - mean) @ components).std())


def blank(width: int = 32) -> AutoencoderTiny:
    """Return an autoencoder with an encoder that can hold a projection and a decoder `width` channels wide."""
    return AutoencoderTiny(
        encoder_block_out_channels=(PIXELS,) * 3,
        num_encoder_blocks=(0, 0, 0),
        decoder_block_out_channels=(width,) * 3,
        num_decoder_blocks=(2, 1, 1),
        latent_channels=LATENTS,
        upsampling_scaling_factor=2,
    )


@torch.no_grad()
def build_encoder(vae: AutoencoderTiny, projection: Projection) -> None:
    """Write the projection into the encoder of `vae`, made by `blank`."""
    copy, halve, quarter, project = (layer for layer in vae.encoder.layers if isinstance(layer, Conv2d))
    for layer in (copy, halve, quarter, project):
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    for channel in range(3):
        copy.weight[channel, channel, 1, 1] = 1
    _gather(halve, 3)
    _gather(quarter, 12)
    # unfold counts colour, row, column; two gathers count the fine position, then the coarse one
    order = [_position(colour, y, x) for colour in range(3) for y in range(CELL) for x in range(CELL)]
    # the encoder sees (picture + 1) / 2
    matrix = projection.components.T
    project.weight[:, order, 1, 1] = 2 * matrix
    if project.bias is not None:
        project.bias.copy_(-matrix @ (projection.mean + 1))


def _gather(layer: Conv2d, channels: int) -> None:
    """Make a strided convolution put the four pixels under it into four groups of channels."""
    for row in range(2):
        for column in range(2):
            for channel in range(channels):
                # the kernel's centre is on the even pixel
                layer.weight[(row * 2 + column) * channels + channel, channel, 1 + row, 1 + column] = 1


def _position(colour: int, y: int, x: int) -> int:
    fine, coarse = (y % 2) * 2 + x % 2, (y // 2) * 2 + x // 2
    return coarse * 12 + fine * 3 + colour


@torch.no_grad()
def encode(vae: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Return the latents (n, LATENTS, side / 4, side / 4) of uint8 pictures (n, 3, side, side)."""
    return torch.cat([vae.encode(as_float(some)).latents for some in pictures.split(250)])


def as_float(pictures: Tensor) -> Tensor:
    """Return uint8 pictures as float32 in -1..1."""
    return pictures.float() / 127.5 - 1


def train_decoder(vae: AutoencoderTiny, pictures: Tensor, *, minutes: float, batch: int, work: Path) -> None:
    """Train the decoder of `vae` on uint8 pictures for that long, going on from a checkpoint in `work`."""
    latents = encode(vae, pictures)
    weights = list(vae.decoder.parameters())
    optimiser = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    progress = Progress("decoder", minutes)
    checkpoint = work / "decoder.safetensors"
    load(checkpoint, vae.decoder, optimiser, progress)
    while progress.share < 1:
        for group in optimiser.param_groups:
            group["lr"] = progress.rate(RATE)
        chosen = torch.randint(0, len(pictures), (batch,))
        picture, latent = as_float(pictures[chosen]), latents[chosen]
        made = vae.decode(latent + NOISE * torch.randn_like(latent)).sample
        loss = (made - picture).abs().mean() + _edges(made, picture)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        if progress.advance(loss.item()):
            save(checkpoint, vae.decoder, optimiser, progress)
    save(checkpoint, vae.decoder, optimiser, progress)


def _edges(made: Tensor, picture: Tensor) -> Tensor:
    """Return how far the differences between neighbouring pixels are off: blurred edges cost."""
    across = (made.diff(dim=3) - picture.diff(dim=3)).abs().mean()
    down: Tensor = (made.diff(dim=2) - picture.diff(dim=2)).abs().mean()
    return across + down
