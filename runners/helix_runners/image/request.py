"""From a turn to the pictures that it wants: its parameters, the model's defaults and limits, the picture before."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import msgspec
from PIL import Image

from helix_es.core.catalogue import Picture
from helix_es.core.errors import Rejected
from helix_es.core.params import SIDE_STEP, ImageParams, parsed
from helix_runners.image.picture import Wanted
from helix_runners.work import Job

LEAST_SIDE = 16  # pixels, as ImageParams has it


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A turn's parameters, checked."""

    params: ImageParams
    picture: Picture
    """The model's."""
    seed: int
    """Of the first picture; each further one has the next."""


def checked(job: Job, picture: Picture) -> Request:
    """Return what `job` asks of a model with the defaults and limits of `picture`.

    Raises Rejected("invalid_params"), with the name, what was found and what is allowed.
    """
    params = parsed(job.params, ImageParams)
    for name, most in (
        ("width", picture.most_side),
        ("height", picture.most_side),
        ("steps", picture.most_steps),
        ("count", picture.most_count),
    ):
        found = getattr(params, name)
        if found is not None and found > most:
            raise Rejected("invalid_params", f"params.{name}: at most {most} with this model, found {found}")
    derived = zlib.crc32(f"{job.session}:{job.turn.turn}".encode())
    return Request(params=params, picture=picture, seed=derived if params.seed is None else params.seed)


def wanted(request: Request, prompt: str, index: int, before: Image.Image | None) -> Wanted:
    """Return the picture `index` (from 0) of a turn, which goes on from `before` if that is given."""
    params, default = request.params, request.picture
    own_width, own_height = (default.width, default.height) if before is None else before.size
    width, height = params.width or _possible(own_width), params.height or _possible(own_height)
    if before is not None and before.size != (width, height):
        before = before.resize((width, height), Image.Resampling.LANCZOS)
    return Wanted(
        prompt=prompt,
        negative_prompt=params.negative_prompt,
        width=width,
        height=height,
        steps=params.steps or default.steps,
        guidance=default.guidance if params.guidance is None else params.guidance,
        seed=request.seed + index,
        start=before,
        strength=params.strength if before is not None else 1.0,
    )


def _possible(side: int) -> int:
    """The picture before may be of a worker that counts otherwise."""
    return max(LEAST_SIDE, side - side % SIDE_STEP)


def about(picture: Wanted, job: Job, model: str, *, truncated: bool) -> Mapping[str, str]:
    """Return what a picture's file says of how it was made: enough to make it again."""
    said = {
        "Software": "Helix ES",
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "seed": str(picture.seed),
        "steps": str(picture.steps),
        "guidance": f"{picture.guidance:g}",
        "size": f"{picture.width}x{picture.height}",
        "model": model,
        "session": job.session,
        "turn": str(job.turn.turn),
    }
    if picture.start is not None:
        said["strength"] = f"{picture.strength:g}"
        said["from"] = str(job.state.picture_before(job.turn.turn))
    if truncated:
        said["truncated"] = "true"
    return said
