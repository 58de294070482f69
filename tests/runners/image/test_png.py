"""Pictures as files: what they say, how small previews are, and what is never unpacked."""

from __future__ import annotations

import io
import os
import struct
import zlib

import pytest
from PIL import Image

from helix_es.core.errors import Rejected
from helix_runners.image import png

GRADIENT = Image.linear_gradient("L").resize((64, 48)).convert("RGB")


def test_a_file_says_how_it_was_made_and_comes_back_the_same() -> None:
    said = {"prompt": "größe 🚢\n second line", "seed": "7", "negative_prompt": ""}
    data = png.encoded(GRADIENT, said)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert {name: str(image.info[name]) for name in said} == said
    assert png.decoded(data, 64).tobytes() == GRADIENT.tobytes()


@pytest.mark.parametrize("noise", [True, False])
def test_a_preview_is_small_whatever_it_shows(noise: bool) -> None:
    image = Image.frombytes("RGB", (96, 96), os.urandom(96 * 96 * 3)) if noise else GRADIENT
    data = png.preview(image)
    assert len(data) < png.PREVIEW_BYTES
    assert png.decoded(data, 96).size == image.size


def huge(width: int, height: int) -> bytes:
    """A small file that says it is large."""
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return png.SIGNATURE + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


GOOD = png.encoded(GRADIENT, {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        png.SIGNATURE,
        GOOD[:60],
        GOOD[:-40],
        huge(65, 8),
        huge(8, 65),
        huge(0, 8),
        huge(60_000, 60_000),
        huge(64, 64),
        GOOD[:20] + b"\xff" * 200,
    ],
    ids=["empty", "text", "signature", "head", "cut", "wide", "high", "none", "bomb", "bare", "rubbish"],
)
def test_what_is_no_picture_of_that_size_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        png.decoded(data, 64)
    assert refused.value.code == "invalid_picture"


@pytest.mark.parametrize("form", ["JPEG", "BMP", "GIF", "TIFF"])
def test_other_forms_are_refused(form: str) -> None:
    out = io.BytesIO()
    GRADIENT.save(out, form)
    with pytest.raises(Rejected, match="not a PNG"):
        png.decoded(out.getvalue(), 64)


def test_transparency_and_palettes_become_plain_colours() -> None:
    for image in (GRADIENT.convert("RGBA"), GRADIENT.quantize(8), GRADIENT.convert("L")):
        out = io.BytesIO()
        image.save(out, "PNG")
        assert png.decoded(out.getvalue(), 64).mode == "RGB"
