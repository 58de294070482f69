"""The pipeline as a folder: reading it, writing it whole or not at all, and looking at what it makes."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from denoiser import Denoiser, schedule
from diffusers import AutoencoderTiny, StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPTokenizer

from scenes import SIDE

STEPS = 20
GUIDANCE = 3.0
STRENGTH = 0.7
"""How far a second picture may leave the first: below, old colours shine through; from 0.8 on, things move."""
PROMPTS = (
    "a red circle on a blue background",
    "two yellow stars on a black background",
    "a pink heart on a white background",
    "three green triangles on an orange background",
    "a big white star on a purple background",
    "one small orange diamond on a gray background",
    "a sunset with two suns",
    "a sunset with two suns over green fields",
    "a night with two moons over green fields",
    "a morning with three suns over yellow fields",
    "a red house with a blue roof under a gray sky",
    "a yellow house with a brown roof under a black sky",
    "two red hearts on a black background",
    "a blue square on a yellow background",
    "three white hearts on a red background",
    "one yellow star on a blue background",
)
EDITS = (
    ("a red circle on a blue background", "a green circle on a blue background"),
    ("a sunset with two suns over green fields", "a night with two moons over green fields"),
    ("a red house with a blue roof under a gray sky", "a yellow house with a blue roof under a black sky"),
    ("a white star on a purple background", "a yellow star on a black background"),
)
EDIT_STRENGTHS = (0.5, 0.6, 0.7, 0.8)
GAP = 2
ENLARGED = 3


def read(folder: Path) -> StableDiffusionXLPipeline:
    """Return the pipeline in that folder, in float32."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write(folder: Path, vae: AutoencoderTiny, model: Denoiser, tokenizer: CLIPTokenizer) -> None:
    """Put the pipeline there in float16; a model card that is there stays."""
    half = copy.deepcopy(model).half()
    pipeline = StableDiffusionXLPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=half.first,
        text_encoder_2=half.second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=half.unet,
        scheduler=schedule(),
        add_watermarker=False,
    )
    fresh, stale = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    for file in fresh.rglob("*.safetensors"):
        # safetensors writes for the owner alone, but a package is read by whoever runs it
        file.chmod(0o644)
    if (folder / "README.md").exists():
        shutil.copy(folder / "README.md", fresh)
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def sheet(pipeline: StableDiffusionXLPipeline) -> Image.Image:
    """Return two pictures of each of PROMPTS, then for each of EDITS the first picture and its changes."""
    pictures = [_first(pipeline, prompt, seed) for prompt in PROMPTS for seed in (1, 2)]
    editor = StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    editor.set_progress_bar_config(disable=True)
    for before, after in EDITS:
        start = _first(pipeline, before, 3)
        pictures.append(start)
        # what encoding and decoding alone do to it
        pictures.append(_again(editor, start, before, 1 / STEPS))
        pictures += [_again(editor, start, after, strength) for strength in EDIT_STRENGTHS]
        pictures += [_again(editor, start, after, STRENGTH, seed) for seed in (5, 6)]
    return contact(pictures, columns=8)


def contact(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Return the pictures side by side, enlarged without smoothing."""
    pitch, rows = SIDE + GAP, -(-len(pictures) // columns)
    joined = Image.new("RGB", (columns * pitch, rows * pitch))
    for index, picture in enumerate(pictures):
        joined.paste(picture, (index % columns * pitch, index // columns * pitch))
    return joined.resize((joined.width * ENLARGED, joined.height * ENLARGED), Image.Resampling.NEAREST)


def _first(pipeline: StableDiffusionXLPipeline, prompt: str, seed: int) -> Image.Image:
    made = pipeline(
        prompt,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=SIDE,
        width=SIDE,
        generator=torch.Generator().manual_seed(seed),
    )
    picture: Image.Image = made.images[0]
    return picture


def _again(
    editor: StableDiffusionXLImg2ImgPipeline, start: Image.Image, prompt: str, strength: float, seed: int = 4
) -> Image.Image:
    made = editor(
        prompt,
        image=start,
        strength=strength,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(seed),
    )
    picture: Image.Image = made.images[0]
    return picture
