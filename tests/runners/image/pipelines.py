"""A small pipeline with random weights, built as SDXL is, in both of the forms that SDXL is published in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from helix_runners.image.weights import SCENES

SIDE = 64
TOKENS = 24
WIDTH = 32  # of a text encoder
CHANNELS = (8, 16, 16)
VAE_CHANNELS = (4, 8, 8, 8)


def tiny(seed: int = 0) -> Any:
    """Return the pipeline, on the processor in float32."""
    torch.manual_seed(seed)
    tokenizer = CLIPTokenizer.from_pretrained(SCENES / "tokenizer", local_files_only=True)
    one, two = _texts(12, len(tokenizer)), _texts(20, len(tokenizer))
    pipeline: Any = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(one),
        text_encoder_2=CLIPTextModelWithProjection(two),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=_unet(one.hidden_size + two.hidden_size, two.projection_dim),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        ),
        add_watermarker=False,
    )
    return pipeline


def _vae() -> Any:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=VAE_CHANNELS,
        layers_per_block=2,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=0.13025,
        force_upcast=True,
    )


def _unet(text: int, pooled: int) -> Any:
    return UNet2DConditionModel(
        sample_size=SIDE // 8,
        layers_per_block=2,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + pooled,
        cross_attention_dim=text,
        norm_num_groups=4,
    )


def _texts(width: int, words: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=width,
    )


# The single file has the names of the code that SDXL was trained with; here, from ours to those.
NAMES = {
    "unet": (
        (r"(resnets\.\d)\.norm1", r"\1.in_layers.0"),
        (r"(resnets\.\d)\.conv1", r"\1.in_layers.2"),
        (r"(resnets\.\d)\.norm2", r"\1.out_layers.0"),
        (r"(resnets\.\d)\.conv2", r"\1.out_layers.3"),
        (r"(resnets\.\d)\.time_emb_proj", r"\1.emb_layers.1"),
        (r"(resnets\.\d)\.conv_shortcut", r"\1.skip_connection"),
        (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
        (r"^add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
        (r"^conv_in", "input_blocks.0.0"),
        (r"^conv_norm_out", "out.0"),
        (r"^conv_out", "out.2"),
        (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op"),
        (r"^down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.0"),
        (
            r"^down_blocks\.(\d)\.attentions\.(\d)",
            lambda m: f"input_blocks.{3 * int(m[1]) + int(m[2]) + 1}.1",
        ),
        (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^up_blocks\.(\d)\.upsamplers\.0", lambda m: f"output_blocks.{3 * int(m[1]) + 2}.2"),
        (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0"),
        (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1"),
    ),
    "vae": (
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"attn_1\.group_norm", "attn_1.norm"),
        (r"attn_1\.to_([qkv])", r"attn_1.\1"),
        (r"attn_1\.to_out\.0", "attn_1.proj_out"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ),
    "open_clip": (
        (r"^text_model\.encoder\.layers", "transformer.resblocks"),
        (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
        (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
        (r"^text_model\.final_layer_norm", "ln_final"),
        (r"^text_projection\.weight", "text_projection"),
        (r"layer_norm(\d)", r"ln_\1"),
        (r"\.fc1\.", ".c_fc."),
        (r"\.fc2\.", ".c_proj."),
        (r"self_attn", "attn"),
    ),
}


def save_single_file(pipeline: Any, path: Path) -> None:
    """Write all weights into one file, as SDXL's authors do."""
    weights = {
        "model.diffusion_model.": _renamed(pipeline.unet, "unet"),
        "first_stage_model.": _vae_weights(pipeline.vae),
        "conditioner.embedders.0.transformer.text_model.": pipeline.text_encoder.state_dict(),
        "conditioner.embedders.1.model.": _open_clip(pipeline.text_encoder_2),
    }
    whole = {prefix + name: tensor for prefix, part in weights.items() for name, tensor in part.items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in whole.items()}, path)


def _renamed(model: Any, kind: str) -> dict[str, torch.Tensor]:
    found = {}
    for ours, tensor in model.state_dict().items():
        name = ours
        for pattern, theirs in NAMES[kind]:
            name = re.sub(pattern, theirs, name)
        found[name] = tensor
    return found


def _vae_weights(vae: Any) -> dict[str, torch.Tensor]:
    """Attention was written as convolutions there."""
    return {
        name: tensor[..., None, None] if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name) else tensor
        for name, tensor in _renamed(vae, "vae").items()
    }


def _open_clip(encoder: Any) -> dict[str, torch.Tensor]:
    """Query, key and value were one matrix there, and the projection was the other way round."""
    found = _renamed(encoder, "open_clip")
    for name in [name for name in found if ".q_proj." in name]:
        parts = [found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        found[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    found["text_projection"] = found["text_projection"].T
    return found
