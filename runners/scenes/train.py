"""Trains the `scenes` pipeline on procedural pictures: decoder, denoiser, then the folder and a sheet of it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from random import Random

import autoencoder
import denoiser
import numpy
import pipeline
import torch
import words
from autoencoder import as_float, build_encoder, encode, principal, train_decoder
from checkpoint import Progress
from denoiser import Denoiser, Examples, outline_weights
from diffusers import AutoencoderTiny
from torch import Tensor
from transformers import CLIPTokenizer

from scenes import draw

SHIPPED = Path(__file__).resolve().parent.parent / "helix_runners" / "image" / "scenes"


def arguments() -> argparse.Namespace:
    """Return the command line, read."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="With --from and no minutes, only the sheet is made. Interrupted, the same command goes on.",
    )
    parser.add_argument("--from", dest="start", type=Path, metavar="FOLDER", help="go on from this pipeline")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the pipeline here, in float16")
    parser.add_argument(
        "--work", type=Path, default=Path(".scenes"), metavar="DIR", help="checkpoints (%(default)s)"
    )
    parser.add_argument(
        "--decoder-minutes", type=float, default=0.0, metavar="M", help="train the decoder this long"
    )
    parser.add_argument(
        "--minutes", type=float, default=0.0, metavar="M", help="train the denoiser this long"
    )
    parser.add_argument("--pictures", type=int, default=24_000, metavar="N", help="to draw (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="pictures a step (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=1.5e-3, metavar="R", help="denoiser's learning rate (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of pictures and training (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="(%(default)s)")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="make a contact sheet of fixed prompts")
    return parser.parse_args()


def drawn(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Return pictures (count, 3, side, side) uint8 and their captions."""
    random, begun_s = Random(seed), time.monotonic()
    drawings = [draw(random) for _ in range(count)]
    pixels = numpy.stack([numpy.asarray(drawing.image) for drawing in drawings])
    print(f"{count} pictures drawn in {time.monotonic() - begun_s:.0f} s", flush=True)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), [
        drawing.caption for drawing in drawings
    ]


def parts(
    start: Path | None, pictures: Tensor, captions: list[str]
) -> tuple[AutoencoderTiny, Denoiser, CLIPTokenizer]:
    """Return what there is to train: of a pipeline's folder, or new."""
    if start is not None:
        whole = pipeline.read(start)
        return whole.vae, Denoiser(whole.unet, whole.text_encoder, whole.text_encoder_2), whole.tokenizer
    vae = autoencoder.blank()
    build_encoder(vae, principal(as_float(pictures[: autoencoder.SAMPLE])))
    tokenizer = words.learn(captions)
    return vae, denoiser.blank(len(tokenizer), autoencoder.LATENTS), tokenizer


def main() -> None:
    """Run the stages that the command line asks for."""
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.minutes or options.decoder_minutes or options.start is None:
        pictures, captions = drawn(options.pictures, options.seed)
        vae, model, tokenizer = parts(options.start, pictures, captions)
        if options.decoder_minutes:
            train_decoder(
                vae, pictures, minutes=options.decoder_minutes, batch=options.batch, work=options.work
            )
        if options.minutes:
            examples = Examples(
                encode(vae, pictures), outline_weights(pictures), words.tokens(tokenizer, captions)
            )
            progress = Progress("denoiser", options.minutes)
            model = denoiser.train(
                model, examples, progress, batch=options.batch, rate=options.rate, work=options.work
            )
        if options.out is not None:
            pipeline.write(options.out, vae.eval(), model.eval(), tokenizer)
            for stage in ("decoder", "denoiser"):
                # a next training begins anew, from what was written
                (options.work / f"{stage}.safetensors").unlink(missing_ok=True)
    if options.sheet is not None:
        pipeline.sheet(pipeline.read(options.out or options.start or SHIPPED)).save(options.sheet)


if __name__ == "__main__":
    main()
