"""Pictures as PNG files: with their parameters inside, small enough for a message, and read with care."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping

from PIL import Image, PngImagePlugin

from helix_es.core.errors import Rejected

PREVIEW_BYTES = 12_000  # a preview travels in a message of its own, for everyone who watches
PREVIEW_COLOURS = 64  # of at most 96 x 96 pixels, one byte each: 9 kB even where nothing can be compressed
HEADER = struct.Struct(">8s4x4sII")  # signature, length and name of the first chunk, width, height
SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_BYTES = 1 << 20  # of a file beside its pixels


def encoded(image: Image.Image, about: Mapping[str, str]) -> bytes:
    """Return `image` as a PNG that says `about` in its text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in about.items():
        info.add_text(key, value)
    out = io.BytesIO()
    image.save(out, "PNG", pnginfo=info)
    return out.getvalue()


def preview(image: Image.Image) -> bytes:
    """Return a PNG of less than PREVIEW_BYTES; `image` is at most 96 x 96."""
    data = encoded(image, {})
    if len(data) < PREVIEW_BYTES:
        return data
    return encoded(image.quantize(PREVIEW_COLOURS), {})  # noise compresses badly


def most_bytes(most_side: int) -> int:
    """Return what a PNG with sides of at most `most_side` pixels can need."""
    return 4 * most_side * most_side + TEXT_BYTES


def decoded(data: bytes, most_side: int) -> Image.Image:
    """Return the RGB picture that `data` holds.

    Raises Rejected("invalid_picture") for all but a whole PNG with sides of at most `most_side` pixels; the size is
    looked at before anything is unpacked.
    """
    try:
        signature, chunk, width, height = HEADER.unpack_from(data)
        if signature != SIGNATURE or chunk != b"IHDR":
            raise Rejected("invalid_picture", "the picture to go on from is not a PNG")
        if not (0 < width <= most_side and 0 < height <= most_side):
            raise Rejected(
                "invalid_picture",
                f"the picture to go on from has {width} x {height} pixels; "
                f"with this model, a side has at most {most_side}",
            )
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise Rejected("invalid_picture", f"the picture to go on from cannot be read: {error}") from error
