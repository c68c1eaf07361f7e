"""Image files as grey levels, whatever Pillow reads."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.core import Array
from stages.pipeline.command import InputError

SIZE = 800
"""Pixels of the longer side above which an image is reduced by a whole factor."""
SEE_THROUGH = 128
"""Opacity of 255 below which a pixel is taken for background."""
PLAIN_COLOUR = 32
"""Grey levels within which opaque pixels are all ink."""


def load_image(path: Path) -> Image.Image:
    """Read an image, upright as its EXIF orientation says, and reduced to at most twice `SIZE`.

    Raises:
        InputError: the file is missing, no image, damaged or a decompression bomb.
    """
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if not path.is_file():
            raise InputError(f"{path}: not a file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _read(path)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image that Pillow reads") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(
            f"{path}: a decompression bomb: more than {Image.MAX_IMAGE_PIXELS:,} pixels"
        ) from None
    except Exception as error:  # Pillow's decoders raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: damaged image: {reason}") from None


def _read(path: Path) -> Image.Image:
    image: Image.Image
    with Image.open(path) as image:
        if image.format == "EPS":  # which Pillow hands to another program
            raise InputError(f"{path}: a PostScript file, not an image")
        image.draft("RGB", (SIZE, SIZE))  # a JPEG need not be unpacked whole
        image.load()
        with suppress(Exception):  # damaged metadata is no reason to refuse an image
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "LAB":
        image = image.getchannel("L")
    elif image.mode.startswith("I;16"):
        image = image.convert("I")
    factor = max(image.size) // SIZE
    return image.reduce(factor) if factor > 1 else image


def grey_levels(image: Image.Image) -> Array:
    """Return an image's levels (height, width) float32, from 0 to 255.

    Where it is transparent, the paper goes on: as the opaque part's median, or, if all of that is
    ink, in the tone farther from it.
    """
    if image.mode[0] in "IF":  # 16 or 32 bits
        levels = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
        levels = levels - min(float(levels.min()), 0.0)
        largest = float(levels.max())
        return levels * np.float32(255 / max(largest, 255 if largest <= 255 else 65535))
    if image.has_transparency_data:
        grey, opacity = (
            np.asarray(band, np.float32) for band in image.convert("RGBA").convert("LA").split()
        )
        opaque = grey[opacity >= SEE_THROUGH]
        if not opaque.size:
            return np.zeros_like(grey)
        paper = float(np.median(opaque))
        if float(np.ptp(opaque)) < PLAIN_COLOUR:
            paper = 255.0 if paper < 255 / 2 else 0.0
        return paper + (grey - paper) * opacity / 255
    return np.asarray(image.convert("L"), np.float32)
