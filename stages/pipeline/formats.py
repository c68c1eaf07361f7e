"""The formats of images and labels: IDX, .npy, .npz and pictures such as PNG.

Nothing is unpickled, no file is read or unpacked beyond `LARGEST_FILE` bytes, and whatever is wrong
with a file becomes one line that names it.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stages.pipeline.command import InputError
from stages.pipeline.datasets import LARGEST_SIDE
from stages.pipeline.files import check_regular

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Pixels = NDArray[np.uint8]

LARGEST_FILE = 2**31
PICTURES = (".png", ".bmp", ".gif", ".jpg", ".jpeg", ".pgm", ".ppm")
FORMATS = ("PNG", "BMP", "GIF", "JPEG", "PPM")
IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801  # unsigned bytes in 3 dimensions and in 1


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged file makes a library raise into one line that names the file."""
    try:
        if not path.is_dir():
            check_regular(path)
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise InputError(f"{path}: not {kind} ({reason})") from None


def read_array(path: Path, member: str, magic: int) -> NDArray[Any]:
    """Read an array from a file.

    Args:
        path: of an IDX, .npy or .npz file.
        member: the array's name in an .npz file; "" for the only one.
        magic: what an IDX file must hold, `IMAGES_MAGIC` or `LABELS_MAGIC`.

    Raises:
        InputError: the file is damaged, too large, or holds something else.
    """
    if path.suffix == ".npz":
        return _read_archive(path, member)
    if member:
        raise InputError(f"{path}: no .npz file, so {member!r} cannot be an array in it")
    opening = gzip.open if path.suffix == ".gz" else open
    with reading(path, "a readable file"), opening(path, "rb") as file:
        content = _bounded(file.read(LARGEST_FILE + 1), path)
    if path.suffix == ".npy":
        return _array_in(content, path)
    return _idx(content, path, magic)


def _bounded(content: bytes, name: object) -> bytes:
    if len(content) > LARGEST_FILE:
        raise InputError(f"{name}: more than {LARGEST_FILE:,} bytes: too large")
    return content


def _read_archive(path: Path, member: str) -> NDArray[Any]:
    with reading(path, "a readable .npz archive"), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        if not member and len(names) == 1:
            member = names[0]
        if member not in names:
            raise InputError(
                f"{path}: {f'no array {member!r}' if member else 'no array named'}: must be "
                f"{path.name}:ARRAY, one of {', '.join(names[:9]) or 'none, it is empty'}"
            )
        with archive.open(f"{member}.npy") as file:
            content = _bounded(file.read(LARGEST_FILE + 1), path)
    return _array_in(content, f"{path}:{member}")


def _array_in(content: bytes, name: object) -> NDArray[Any]:
    """Return the array in a .npy file, which is as long as its header says and holds no object."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, columns_first, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version[0]}.{version[1]}")
        if dtype.hasobject or dtype.kind not in "biuf":
            raise ValueError(f"it holds {dtype.name}, not numbers")
        size = dtype.itemsize * math.prod(shape)
        if size != len(content) - file.tell():
            raise ValueError(f"{len(content) - file.tell():,} bytes instead of {size:,}")
        if size == 0:
            raise ValueError("it is empty")
    except Exception as error:  # NumPy's parser of headers raises whatever Python's does
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise InputError(f"{name}: not a readable .npy array ({reason})") from None
    order: Literal["C", "F"] = "F" if columns_first else "C"
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order=order)


def _idx(content: bytes, path: Path, magic: int) -> Pixels:
    """Return the array in an IDX file: a magic number, the lengths, then unsigned bytes."""
    wanted, other = ("images", "labels") if magic == IMAGES_MAGIC else ("labels", "images")
    found = int.from_bytes(content[:4], "big") if len(content) >= 4 else -1
    if found in (IMAGES_MAGIC, LABELS_MAGIC) and found != magic:
        raise InputError(f"{path}: holds {other}, must hold {wanted} (magic number {found})")
    if found != magic:
        number = found if found >= 0 else "missing"
        raise InputError(
            f"{path}: not an IDX file of {wanted} (magic number {number}, must be {magic}), nor "
            ".npy, .npz or a folder"
        )
    dimensions = magic & 0xFF
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise InputError(f"{path}: cut short: its header ends after {len(content)} bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    size = math.prod(shape)
    if size != len(content) - start:
        what = "cut short" if size > len(content) - start else "too long"
        raise InputError(
            f"{path}: {what}: {len(content) - start:,} bytes of data, must be {size:,}"
        )
    if size == 0:
        raise InputError(f"{path}: empty: must hold at least one of the {wanted}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def check_size(height: int, width: int, path: Path) -> None:
    """Refuse images that are too large.

    Raises:
        InputError: a side has more than `LARGEST_SIDE` pixels, or none.
    """
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise InputError(
            f"{path}: {height} x {width} pixels; must be at most {LARGEST_SIDE} x {LARGEST_SIDE}"
        )


def grey(colour: Pixels) -> Pixels:
    """Return the luma (ITU-R BT.601) of pixels (..., 3): the same integers on every machine."""
    weights = np.array([299, 587, 114], np.uint32)
    luma: Pixels = ((colour * weights).sum(axis=-1) // 1000).astype(np.uint8)
    return luma


def read_picture(path: Path) -> tuple[Pixels, bool]:
    """Read a picture; return its pixels (height, width), and whether it was in colour.

    Raises:
        InputError: the file is no picture, damaged, too large or an animation.
    """
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"{path}: no image: its name must end with {', '.join(PICTURES)}")
    from PIL import Image  # only who has pictures waits for it

    with warnings.catch_warnings(), reading(path, "a readable image"):
        warnings.simplefilter("ignore")  # about sizes, which are checked here
        with Image.open(path, formats=FORMATS) as image:
            check_size(image.height, image.width, path)
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                raise InputError(f"{path}: {frames} frames; must be a single image")
            return _pixels(image, path)


def _pixels(image: Picture, path: Path) -> tuple[Pixels, bool]:
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return np.asarray(image.convert("L")), False
    if image.mode not in ("1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise InputError(f"{path}: pixels of mode {image.mode}; must be 8-bit grey or colour")
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise InputError(f"{path}: transparent in places; must be opaque")
    red_green_blue = np.asarray(image.convert("RGB"))
    coloured = bool((red_green_blue != red_green_blue[..., :1]).any())
    return grey(red_green_blue), coloured
