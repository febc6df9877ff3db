"""Renders scenes for the tests of the benchmark: drawn subjects on drawn grounds (backgrounds), without photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from trial.collage.content import Content, captions, cutout, ground
from trial.collage.scenes import Collage, Placed, random_collage, render

SIDE, BASE = 512, 128
"""Sides of the renderings and of their base images, in pixels."""
COLOURS = ((219, 36, 31), (235, 204, 36), (230, 230, 224), (168, 46, 194))
GROUNDS = ((56, 122, 61), (41, 82, 158), (112, 74, 43), (97, 99, 102))


def _subject(number: int) -> Image.Image:
    """Draws subject `number`: a disc, a triangle, a square or a cross, in bands with two shades of one colour."""
    image = Image.new("RGBA", (320, 320))
    draw = ImageDraw.Draw(image)
    shades = [tuple(round(share * level) for level in COLOURS[number // 4 % 4]) for share in (1.0, 0.85)]
    for step, inset in enumerate(range(10, 130, 12)):
        colour, low, high = shades[step % 2], inset, 320 - inset
        box, corners = (low, low, high, high), [(160, low), (high, high), (low, high)]
        bars = (low, 110, high, 210), (110, low, 210, high)
        if number % 4 == 0:
            draw.ellipse(box, fill=colour)
        elif number % 4 == 1:
            draw.polygon(corners, fill=colour)
        for bar in ((box,), bars)[number % 4 == 3] if number % 4 > 1 else ():
            draw.rectangle(bar, fill=colour)
    return image


def _ground(number: int) -> Image.Image:
    """Draws ground `number`: a texture with detail of eight sizes, on one color."""
    rng = np.random.default_rng(number)
    side, picture = 768, np.full((768, 768, 3), GROUNDS[number % 4], np.float32)
    for octave in range(1, 9):
        cells = Image.fromarray(rng.normal(0, 9, (2**octave, 2**octave)).astype(np.float32))
        picture += np.asarray(cells.resize((side, side), Image.Resampling.BICUBIC))[..., None]
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def content(textured: bool) -> Content:
    """Creates as many subjects and grounds as the collages have. Without `textured`, each ground has one color."""
    subjects, grounds = captions()
    photographs = [
        _ground(number) if textured else Image.new("RGB", (768, 768), GROUNDS[number % 4])
        for number in range(len(grounds))
    ]
    return Content(
        tuple(cutout(name, _subject(number)) for number, name in enumerate(subjects)),
        tuple(ground(name, photograph, 700) for name, photograph in zip(grounds, photographs)),
    )


CONTENT, PLAIN = content(True), content(False)
"""The subjects and grounds, with textured grounds and with grounds of one color."""


def scene(number: int) -> Collage:
    """Creates scene `number`: a ground, and one subject at a random place."""
    label = (number % len(CONTENT.subjects), number % len(CONTENT.grounds))
    return random_collage(CONTENT, np.random.default_rng((7, number)), label, size=0.5)


def rendered(found: Collage) -> np.ndarray:
    """Renders a scene (SIDE, SIDE, 3) on a ground of one color, and adds texture.

    The texture becomes weaker with every octave. It is not rounded to 8 bits, so that its finest detail remains.
    """
    rng = np.random.default_rng(int(1e6 * found.left))
    view = render(PLAIN, found, SIDE)
    for octave in range(1, 10):
        cells = Image.fromarray(rng.normal(0, 1, (2**octave, 2**octave)).astype(np.float32))
        texture = np.asarray(cells.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        view += 0.09 * 2.0 ** (-0.7 * octave) * texture[..., None] * (1.0 + 0.3 * rng.standard_normal(3))
    return view.clip(0.0, 1.0).astype(np.float32)


def with_extras(number: int, count: int) -> np.ndarray:
    """Renders scene `number` with `count` small copies of its subject, in the corners farthest from the subject."""
    found = scene(number)
    subject = found.subjects[0]
    corners = [(x, y) for x in (0.1, 0.9) for y in (0.1, 0.9)]
    corners.sort(key=lambda place: -np.hypot(place[0] - subject.x, place[1] - subject.y))
    extras = tuple(Placed(subject.subject, x, y, 0.14) for x, y in corners[:count])
    return rendered(Collage(found.ground, (subject, *extras), found.left, found.top, found.mirrored))
