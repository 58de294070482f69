"""Procedural pictures with captions: the whole training data of the `scenes` pipeline.

Everything sits on a grid of CELL pixels, the edge of one latent: a shape moved by a cell is the same latents moved by
one, so a small network learns a handful of templates instead of every sub-pixel position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

SIDE = 64
"""Width and height of a picture, pixels."""
CELL = 4
"""Pixels to a latent, in each direction."""
SUPERSAMPLED = 4
"""Pictures are drawn this much larger and shrunk, for smooth edges."""

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 210, 50),
    "green": (46, 160, 67),
    "blue": (40, 90, 210),
    "purple": (130, 60, 180),
    "pink": (245, 130, 180),
    "white": (245, 245, 245),
    "black": (20, 20, 24),
    "brown": (120, 75, 40),
    "gray": (130, 130, 135),
}
# stars and hearts twice: their outlines are the hardest to learn
SHAPES = ("circle", "square", "triangle", "diamond", "star", "star", "heart", "heart")
NUMBERS = {1: ("a", "a", "one"), 2: ("two",), 3: ("three",)}
SIZES = {"small ": 8.0, "": 16.0, "big ": 24.0}
"""Radius of a single shape, pixels."""
COLUMNS: dict[int, tuple[int, ...]] = {1: (32,), 2: (20, 44), 3: (12, 32, 52)}
"""Where the centres of one, two or three things are, pixels from the left."""
FIELDS = ("green", "yellow", "brown", "purple")
SKIES = ("blue", "gray", "orange", "black")
TIMES: dict[str, tuple[Colour, Colour, Colour, str]] = {
    "sunset": ((90, 50, 120), (250, 140, 70), (255, 215, 90), "sun"),
    "morning": ((110, 180, 245), (215, 235, 250), (255, 225, 70), "sun"),
    "night": ((8, 10, 35), (30, 40, 90), (235, 235, 225), "moon"),
}
"""Top of the sky, its bottom, the light and what it is called."""
DOOR: Colour = (60, 40, 30)
GRASS: Colour = (70, 150, 70)
OPENINGS = ("a picture of ", "draw ", "paint ", "now ", "make it ", "please draw ", "the same with ")
"""What people write before the caption itself."""


@dataclass(frozen=True)
class Scene:
    """A picture, SIDE pixels square, and what it shows."""

    image: Image.Image
    caption: str


class Canvas:
    """A supersampled picture on which all coordinates are pixels of the finished one."""

    def __init__(self, random: Random) -> None:
        self._image = Image.new("RGB", (SIDE * SUPERSAMPLED, SIDE * SUPERSAMPLED))
        self._draw = ImageDraw.Draw(self._image)
        self._random = random

    def shade(self, colour: Colour, spread: int = 6) -> Colour:
        """Return the colour, each channel off by up to `spread`, so that no colour is one exact value."""
        red, green, blue = (max(0, min(255, c + self._random.randint(-spread, spread))) for c in colour)
        return red, green, blue

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle."""
        s = SUPERSAMPLED
        self._draw.rectangle((left * s, top * s, right * s - 1, bottom * s - 1), fill=colour)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon."""
        self._draw.polygon([(x * SUPERSAMPLED, y * SUPERSAMPLED) for x, y in points], fill=colour)

    def gradient(self, top: int, bottom: int, first: Colour, last: Colour) -> None:
        """Fill the rows from `top` to `bottom` with colours between `first` and `last`."""
        rows = (bottom - top) * SUPERSAMPLED
        for row in range(rows):
            share = row / rows
            red, green, blue = (int(a + (b - a) * share) for a, b in zip(first, last, strict=True))
            y = top * SUPERSAMPLED + row
            self._draw.line(((0, y), (SIDE * SUPERSAMPLED, y)), fill=(red, green, blue))

    def shape(self, kind: str, x: float, y: float, radius: float, colour: Colour) -> None:
        """Fill one of SHAPES around (x, y)."""
        self.polygon([(x + radius * dx, y + radius * dy) for dx, dy in outline(kind)], colour)

    def finished(self) -> Image.Image:
        """Return the picture in its final size."""
        return self._image.resize((SIDE, SIDE), Image.Resampling.BOX)


def outline(kind: str) -> list[tuple[float, float]]:
    """Return the corners of a shape of radius 1 around the origin, y downwards."""
    match kind:
        case "square":
            return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
        case "triangle":
            return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
        case "diamond":
            return [(0.0, -1.1), (0.8, 0.0), (0.0, 1.1), (-0.8, 0.0)]
        case "star":
            turns = [(-math.pi / 2 + i * math.pi / 5, 0.48 if i % 2 else 1.15) for i in range(10)]
            return [(r * math.cos(a), r * math.sin(a)) for a, r in turns]
        case "heart":
            return [_heart(2 * math.pi * i / 60) for i in range(60)]
        case _:
            return [(math.cos(math.pi * i / 30), math.sin(math.pi * i / 30)) for i in range(60)]


def _heart(angle: float) -> tuple[float, float]:
    height = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
    return 16 * math.sin(angle) ** 3 / 15.5, -height / 15.5


def draw(random: Random) -> Scene:
    """Return a random scene; the same `random` gives the same one."""
    kind = random.choices((_shapes, _landscape, _house), weights=(70, 18, 12))[0]
    canvas = Canvas(random)
    caption = kind(canvas, random)
    if random.random() < 0.12:
        caption = random.choice(OPENINGS) + caption
    return Scene(canvas.finished(), caption)


def _shapes(canvas: Canvas, random: Random) -> str:
    background, colour = random.sample(list(COLOURS), 2)
    kind, number = random.choice(SHAPES), random.choice((1, 1, 1, 2, 3))
    size = random.choice(list(SIZES)) if number == 1 else ""
    radius = SIZES[size] if number == 1 else {2: 10.5, 3: 8.5}[number]
    canvas.box(0, 0, SIDE, SIDE, canvas.shade(COLOURS[background]))
    # one shape has three places and a row of them three heights: with nine, outlines of neighbouring places blend
    across = _nudge(random) if number == 1 and size != "big " else 0
    y = SIDE // 2 + (_nudge(random) if number > 1 else 0)
    fill = canvas.shade(COLOURS[colour])
    for x in COLUMNS[number]:
        canvas.shape(kind, x + across, y, radius, fill)
    what = f"{size}{colour} {_plural(kind, number)}"
    return _count(number, what, random) + _tail(
        f" on {_article(background, random)} {background} background", random
    )


def _landscape(canvas: Canvas, random: Random) -> str:
    time = random.choice(list(TIMES))
    zenith, skyline, light, name = TIMES[time]
    number, field = random.choice((1, 2, 3)), random.choice(FIELDS)
    horizon = random.choice((36, 40, 44))
    canvas.gradient(0, horizon, canvas.shade(zenith), canvas.shade(skyline))
    red, green, blue = COLOURS[field]
    canvas.gradient(
        horizon, SIDE, canvas.shade((red, green, blue)), (red * 3 // 5, green * 3 // 5, blue * 3 // 5)
    )
    fill = canvas.shade(light)
    across = _nudge(random) if number == 1 else 0
    for x in COLUMNS[number]:
        canvas.shape("circle", x + across, random.choice((16, 20, 24)), 7.0, fill)
    return f"a {time} with {_count(number, _plural(name, number), random)}" + _tail(
        f" over {field} fields", random
    )


def _house(canvas: Canvas, random: Random) -> str:
    wall, roof = random.choice(list(COLOURS)), random.choice(list(COLOURS))
    sky, ground = random.choice(SKIES), 48
    red, green, blue = COLOURS[sky]
    low = (min(255, red + 60), min(255, green + 60), min(255, blue + 60))
    canvas.gradient(0, ground, canvas.shade((red, green, blue)), low)
    canvas.box(0, ground, SIDE, SIDE, canvas.shade(GRASS))
    x = SIDE // 2 + _nudge(random)
    canvas.box(x - 16, 28, x + 16, 52, canvas.shade(COLOURS[wall]))
    canvas.polygon([(x - 20, 28), (x + 20, 28), (x, 12)], canvas.shade(COLOURS[roof]))
    canvas.box(x - 4, 40, x + 4, 52, DOOR)
    caption = f"{_article(wall, random)} {wall} house with {_article(roof, random)} {roof} roof"
    return caption + _tail(f" under {_article(sky, random)} {sky} sky", random)


def _nudge(random: Random) -> int:
    return random.choice((-CELL, 0, CELL))


def _plural(noun: str, number: int) -> str:
    return noun if number == 1 else noun + "s"


def _count(number: int, what: str, random: Random) -> str:
    word = random.choice(NUMBERS[number])
    return f"{_article(what, random) if word == 'a' else word} {what}"


def _article(word: str, random: Random) -> str:
    # both are learnt, since people mistype
    return "an" if word.startswith(("a", "e", "i", "o", "u")) and random.random() < 0.7 else "a"


def _tail(words: str, random: Random) -> str:
    # short prompts are common: what is not said is then left to chance
    return "" if random.random() < 0.12 else words
