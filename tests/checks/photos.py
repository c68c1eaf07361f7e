"""Digits turned into photos: what somebody's phone makes of a digit on a sheet of paper."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from stages.core import Array

SCALE = 10
ORIENTATION = 0x0112  # the EXIF tag
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How pixels are stored under each orientation so that a viewer who heeds it sees them upright."""


def photo(digit: Array, generator: np.random.Generator) -> bytes:
    """Return a JPEG file of a digit (height, width) uint8, white on black.

    The digit is 10 times larger and lies anywhere on a sheet up to twice its size. The paper is
    light and the ink dark, or in every second photo the other way round; the light on it falls off
    to one side and to the corners by up to a third. Then come the sensor's noise, a JPEG of quality
    60 to 95 and one of the eight EXIF orientations.
    """
    size = SCALE * np.array(digit.shape)
    enlarged = Image.fromarray(digit).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    height, width = sheet = (size * generator.uniform(1, 2, 2)).astype(int)
    top, left = generator.integers(0, sheet - size + 1)
    ink = np.zeros(sheet)
    ink[top : top + size[0], left : left + size[1]] = np.asarray(enlarged) / 255

    paper, pen = generator.uniform(150, 235), generator.uniform(10, 70)
    if generator.random() < 0.5:
        paper, pen = pen, paper
    y, x = np.linspace(-1, 1, height)[:, np.newaxis], np.linspace(-1, 1, width)
    angle, slope, vignette = generator.uniform((0, 0, 0), (2 * np.pi, 0.25, 0.1))
    light = 1 - slope * (np.cos(angle) * x + np.sin(angle) * y) - vignette * (x**2 + y**2)
    grey = (paper + (pen - paper) * ink) * light
    grey = grey + generator.normal(0, generator.uniform(2, 10), sheet)
    colours = grey[..., np.newaxis] * generator.uniform(0.9, 1.05, 3)  # the lamp's tint

    orientation = int(generator.integers(1, 9))
    image = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    transposition = STORED[orientation]
    if transposition is not None:
        image = image.transpose(transposition)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(generator.integers(60, 96)), exif=exif)
    return file.getvalue()
