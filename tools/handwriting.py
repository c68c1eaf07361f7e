"""Images of handwriting prepared as MNIST's were, in NumPy alone.

LeCun and others (1998) scaled each digit, its proportions kept, into a box of 20 x 20 pixels and
put its centre of mass at the middle of 28 x 28.
"""

from __future__ import annotations

import numpy as np

from stages.core import Array
from stages.core.data import require_pixels


def centred(ink: Array, shape: tuple[int, int]) -> Array:
    """Scale a digit to MNIST's size and put its centre of mass at the middle of the frame.

    All is defined in integers below 2**53, so any language gives the same bytes; // rounds down:

    1. Crop the ink to the box of the pixels that are not 0; its longer side has `length` pixels.
    2. That side becomes `side` = 5 * min(shape) // 7 pixels, 20 of 28, and the other one is scaled
       alike. With 1 / side of an ink pixel as unit, ink pixel k covers [side * k, side * (k + 1))
       along an axis, and new pixel i covers [length * i, length * (i + 1)); their overlap is a
       whole number. An axis of n ink pixels gets the -(-side * n // length) new pixels that
       touch ink, from the box's top left corner on.
    3. `total` of a new pixel is the sum of all ink pixels, each times its overlaps along both axes.
       The new pixel is the average over its area, beyond the box 0, rounded half up:
       (2 * total + length**2) // (2 * length**2).
    4. Of the new pixels v, `mass` = sum of v and, along each axis, `moment` = sum of
       v * (2 * i + 1). The pixel that holds the centre of mass, moment // (2 * mass), moves to
       `middle` = the frame's size // 2: along that axis the new pixels start at
       middle - moment // (2 * mass), or at the nearest place where all lie in the frame.

    This is MNIST's own rule: of its training images, 99.98 % stay as they are.

    Args:
        ink: (height, width) uint8, from 0, paper, to 255, ink.
        shape: of the frame, (height, width).

    Returns:
        `shape` uint8. Without ink, or if all of it rounds to 0, the frame is empty.

    Raises:
        TypeError: the ink is not uint8.
    """
    require_pixels(ink)
    frame: Array = np.zeros(shape, np.uint8)
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    if not len(rows):
        return frame
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    length, side = max(box.shape), 5 * min(shape) // 7
    down, across = (_overlaps(size, length, side) for size in box.shape)
    total = (down @ box @ across.T).astype(np.int64)
    scaled = (2 * total + length**2) // (2 * length**2)

    mass = int(scaled.sum())
    if mass == 0:
        return frame
    places = []
    for axis, size in enumerate(shape):
        new = scaled.shape[axis]
        moment = int((scaled.sum(1 - axis) * (2 * np.arange(new) + 1)).sum())
        start = min(max(size // 2 - moment // (2 * mass), 0), size - new)
        places.append(slice(start, start + new))
    frame[tuple(places)] = scaled
    return frame


def _overlaps(size: int, length: int, side: int) -> Array:
    """Return how far each new pixel covers each of `size` ink pixels: (new pixels, size).

    In float64, which is exact here and which BLAS multiplies.
    """
    new = np.arange(-(-side * size // length))[:, np.newaxis]
    old = np.arange(size)
    ends = np.minimum(length * (new + 1), side * (old + 1))
    starts = np.maximum(length * new, side * old)
    overlaps: Array = np.maximum(ends - starts, 0).astype(np.float64)
    return overlaps
