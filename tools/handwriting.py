"""Images of handwriting prepared as MNIST's were, in NumPy alone.

LeCun and others (1998) scaled each digit, its proportions kept, into a box of 20 x 20 pixels and
put its centre of mass at the middle of 28 x 28. Photos first need their ink told from their paper
and, as MNIST's digits are all of one scanner, edges and strokes like MNIST's.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from stages.core import Array
from stages.core.data import require_pixels

LEAST_CONTRAST = 10.0
"""Grey levels of 255 between paper and ink."""
LEAST_SIGNAL = 5.0
"""The same in standard deviations of the paper's noise, whose own peaks come to 3."""
SPECK = 1 / 20
"""Of the ink of the largest connected part."""
THINNEST, THICKEST = 1.8, 3.2
"""Stroke widths that stay as they are, in 20ths of the digit's longer side: the middle 80 % of
those in MNIST's training images."""
WORKING_SIZE = 100
"""Pixels of the digit's longer side while edges and strokes are worked on."""
CELLS = 64
"""Along the image's longer side, in which connected parts are told apart."""


class NoInkError(ValueError):
    """An image on which nothing is written."""


def prepared(grey: Array, shape: tuple[int, int]) -> Array:
    """Return what a network trained on MNIST can read of an image.

    What is prepared already, as MNIST's own files are, stays as it is, or is inverted. For others:

    1. Pixels that were enlarged to squares become pixels again.
    2. `separated` tells ink from paper, dark on light or light on dark.
    3. `_without_specks` leaves out what is not part of the digit.
    4. A digit that is far larger or smaller than in MNIST is brought to one size by Lanczos
       interpolation, and its edges are made steep.
    5. Strokes far thinner or thicker than MNIST's are thickened or thinned.
    6. `centred` brings it to MNIST's size and place.

    Args:
        grey: (height, width), at least a pixel, levels from 0 to 255.
        shape: of the frame, (height, width).

    Returns:
        `shape` uint8, from 0, paper, to 255, ink.

    Raises:
        NoInkError: the image is blank.
    """
    if grey.shape == shape:
        for ink in (grey, 255 - grey):
            digit = np.rint(ink).astype(np.uint8)
            if not digit[0].any() and digit.any() and (centred(digit, shape) == ink).all():
                return digit
    ink = _without_specks(separated(_without_squares(grey)))
    wanted = 5 * min(shape) // 7
    box = _box(ink > 0.5)
    length = _length(box)
    width = stroke_width(ink[box]) * 20 / length
    if not (wanted <= length < 2 * wanted and THINNEST <= width <= THICKEST):
        if length > WORKING_SIZE and width < THINNEST:  # a fine line would fade when reduced
            ink = _with_strokes(ink, THINNEST * length / 20, length)
            box = _box(ink > 0.5)
        ink = _steepened(_resized(ink, box, WORKING_SIZE / _length(box)))
        ink = _with_strokes(ink, THINNEST * WORKING_SIZE / 20, THICKEST * WORKING_SIZE / 20)
    digit = centred(np.rint(255 * ink).astype(np.uint8), shape)
    if not digit.any():
        raise NoInkError
    return digit


def _without_squares(grey: Array) -> Array:
    """Return one pixel for each square of equal ones that all of an image consists of."""
    down = np.flatnonzero((grey[1:] != grey[:-1]).any(axis=1)) + 1
    across = np.flatnonzero((grey[:, 1:] != grey[:, :-1]).any(axis=0)) + 1
    size = int(np.gcd.reduce([*grey.shape, *down, *across]))
    return grey[::size, ::size]


def separated(grey: Array) -> Array:
    """Tell ink from paper.

    The paper's grey is a quadratic surface through the image's border, its outliers left out, then
    through all of the image that lies near it. Ink is what stands out from its noise on one side,
    whichever has more. Ink is full at the median of what exceeds half of the mean of itself.

    Args:
        grey: (height, width), levels from 0 to 255.

    Returns:
        (height, width) from 0, paper, to 1, ink.

    Raises:
        NoInkError: nothing stands out.
    """
    grey = np.asarray(grey, np.float32)
    if max(grey.shape) > 2 * WORKING_SIZE:
        grey = _smoothed(grey)
    paper, noise = _paper(grey)
    ink: Array = grey - paper
    distance = np.abs(ink)
    if float((ink * (distance > distance.max() / 3)).sum()) < 0:
        ink = -ink
    np.maximum(ink, 0, out=ink)
    threshold = float(ink.max()) / 2
    if threshold * 2 < LEAST_CONTRAST:
        raise NoInkError
    for _ in range(20):  # Ridler and Calvard (1978), with the paper's mean known: 0
        inked = ink[ink > threshold]
        previous, threshold = threshold, float(inked.mean()) / 2
        if abs(threshold - previous) < 0.5:
            break
    full = float(np.median(inked))
    if full < max(LEAST_CONTRAST, LEAST_SIGNAL * noise):
        raise NoInkError
    ink[ink < min(4 * noise, full / 2)] = 0
    return np.minimum(ink / full, 1)


def _smoothed(grey: Array) -> Array:
    """Return the mean of each pixel and its eight neighbours."""
    bordered = np.pad(grey, 1, mode="edge")
    rows = bordered[:-2] + bordered[1:-1] + bordered[2:]
    smooth: Array = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    return smooth


def _paper(grey: Array) -> tuple[Array | float, float]:
    """Return the paper's grey at each pixel and the standard deviation of its noise."""
    step = max(1, max(grey.shape) // CELLS)
    sample = grey[::step, ::step]
    border = _border(sample.shape)
    paper = float(np.median(sample[border]))
    if float(np.median(np.abs(sample[border] - paper))) == 0:  # drawn on a screen, or a clean scan
        return paper, 0.0
    terms = _terms(grey.shape)
    matrix = np.stack(
        [np.broadcast_to(term, grey.shape)[::step, ::step] for term in terms], axis=-1
    )
    distance, used = np.abs(sample - paper), border
    for among in (border, border, border, *[np.ones(sample.shape, bool)] * 3):
        spread = 1.4826 * float(np.median(distance[used]))
        used = among & (distance <= max(3 * spread, 1.0))
        weights, *_ = np.linalg.lstsq(matrix[used], sample[used], rcond=None)
        distance = np.abs(sample - matrix @ weights)
    noise = 1.4826 * float(np.median(distance[used]))
    return sum(weight * term for weight, term in zip(weights, terms, strict=True)), noise


def _border(shape: tuple[int, ...]) -> Array:
    """Return where the outermost sixteenth of an image is, at least a pixel wide."""
    wide = max(1, min(shape) // 16)
    border: Array = np.ones(shape, bool)
    border[wide:-wide, wide:-wide] = False
    return border


def _terms(shape: tuple[int, ...]) -> list[Array]:
    """Return 1, x, y, x**2, x * y and y**2 over an image, from -1 to 1, broadcastable."""
    y, x = ((2 * np.arange(size, dtype=np.float32) + 1) / np.float32(size) - 1 for size in shape)
    y = y[:, np.newaxis]
    return [np.ones((1, 1), np.float32), x, y, x * x, x * y, y * y]


def _without_specks(ink: Array) -> Array:
    """Return the ink of the large connected parts: no specks, no dark table beside the sheet.

    Parts are told apart in cells of 1 / `CELLS` of the image, so small gaps in a stroke connect. A
    part in a corner of the image is no digit unless there is nothing else.
    """
    cell = -(-max(ink.shape) // CELLS)
    touching, inside = (_counted(ink > level, cell) for level in (0.25, 0.5))
    parts = _connected(touching > 0)
    if len(parts) == 1:
        return ink
    sized = [(int(inside[part].sum()), part) for part in parts]
    sized = [(size, part) for size, part in sized if size]
    corners = [0, 0, -1, -1], [0, -1, 0, -1]
    sized = [(size, part) for size, part in sized if not part[corners].any()] or sized
    largest = max(size for size, _ in sized)
    kept = np.logical_or.reduce([part for size, part in sized if size >= SPECK * largest])
    for axis in (0, 1):  # with the soft edges in the cells around
        kept = _spread(kept, axis, np.maximum)
    whole = kept.repeat(cell, axis=0).repeat(cell, axis=1)
    cleaned: Array = ink * whole[: ink.shape[0], : ink.shape[1]]
    return cleaned


def _counted(inked: Array, cell: int) -> Array:
    """Return how many pixels are true in each square cell."""
    rows, columns = (np.arange(0, size, cell) for size in inked.shape)
    counts: Array = np.add.reduceat(np.add.reduceat(inked, rows, 0, int), columns, 1)
    return counts


def _connected(cells: Array) -> list[Array]:
    """Return each part of the cells that touch, at corners too, as cells that are true.

    All cells are the bits of one integer, which a part floods step by step.
    """
    height, width = cells.shape
    stride = width + 1  # an empty column, so that no row's end touches the next one's start
    bits = np.zeros((height, stride), bool)
    bits[:, :width] = cells
    left = int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")
    parts = []
    while left:
        part, flooded = 0, left & -left
        while part != flooded:
            part = flooded
            flooded |= part << 1 | part >> 1
            flooded = (flooded | flooded << stride | flooded >> stride) & left
        left ^= part
        content = np.frombuffer(part.to_bytes(-(-bits.size // 8), "little"), np.uint8)
        found = np.unpackbits(content, count=bits.size, bitorder="little")
        parts.append(found.reshape(bits.shape)[:, :width].astype(bool))
    return parts


def _box(inked: Array) -> tuple[slice, slice]:
    """Return the box around all that is true."""
    rows, columns = (np.flatnonzero(inked.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _length(box: tuple[slice, slice]) -> int:
    length: int = max(side.stop - side.start for side in box)
    return length


def _resized(ink: Array, box: tuple[slice, slice], scale: float) -> Array:
    """Return the ink in a box and a margin around it, `scale` times as large, between 0 and 1.

    Lanczos interpolation with three lobes; to reduce, they are as much wider.
    """
    margin = int(np.ceil(3 / min(scale, 1)))
    padded = np.pad(ink, margin)
    matrices = []
    for side in box:
        size = side.stop - side.start + 2 * margin
        new = round(size * scale)
        places = (np.arange(new)[:, np.newaxis] + 0.5) / scale - 0.5
        distance = (places - np.arange(size)) * min(scale, 1)
        lobes = np.sinc(distance) * np.sinc(distance / 3) * (np.abs(distance) < 3)
        matrices.append((lobes / lobes.sum(axis=1, keepdims=True)).astype(np.float32))
    rows, columns = (slice(side.start, side.stop + 2 * margin) for side in box)
    down, across = matrices
    resized: Array = down @ padded[rows, columns] @ across.T
    return resized.clip(0, 1)


def _steepened(ink: Array) -> Array:
    """Return ink with the edges of a scan: three times as steep, where they were half ink."""
    steep: Array = (3 * ink - 1).clip(0, 1)
    return steep


def stroke_width(ink: Array) -> float:
    """Return the mean width of strokes in pixels: twice their area over the length of their edges.

    Args:
        ink: (height, width) from 0 to 1. The edges' length is the sum of the gradients, which how
            soft they are does not change.
    """
    bordered = np.zeros((ink.shape[0] + 2, ink.shape[1] + 2), np.float32)
    bordered[1:-1, 1:-1] = ink
    down, across = np.diff(bordered, axis=0)[:, :-1], np.diff(bordered, axis=1)[:-1]
    edges = float(np.hypot(down, across).sum())
    return 2 * float(ink.sum()) / edges if edges else 0.0


def _with_strokes(ink: Array, thinnest: float, thickest: float) -> Array:
    """Return ink whose mean stroke width, in pixels, is brought between the two.

    Strokes grow or shrink by a pixel at a time on either side, along the axes and along both in
    turn, which comes near to a circle; the last step is a fraction.
    """
    for _ in range(2):  # crossings and narrow gaps make the first try inexact
        width = stroke_width(ink)
        step = (min(max(width, thinnest), thickest) - width) / 2
        if step == 0:
            break
        pick = np.maximum if step > 0 else np.minimum
        ink = np.pad(ink, int(np.ceil(max(step, 0))))
        for count in range(int(abs(step))):
            ink = _spread_both(ink, pick, diagonal=count % 2 == 1)
        ink = ink + (_spread_both(ink, pick, diagonal=False) - ink) * (abs(step) % 1)
    return ink


def _spread_both(values: Array, pick: np.ufunc, *, diagonal: bool) -> Array:
    """Return of each pixel and its four or eight neighbours the largest or smallest."""
    down = _spread(values, 0, pick)
    return _spread(down, 1, pick) if diagonal else pick(down, _spread(values, 1, pick))


def _spread(values: Array, axis: int, pick: np.ufunc) -> Array:
    """Return of each pixel and its two neighbours along an axis the largest or smallest."""
    values = values.swapaxes(0, axis)
    spread = values.copy()
    pick(spread[1:], values[:-1], out=spread[1:])
    pick(spread[:-1], values[1:], out=spread[:-1])
    return spread.swapaxes(0, axis)


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


@lru_cache(maxsize=64)  # digits of MNIST's size have few of them
def _overlaps(size: int, length: int, side: int) -> Array:
    """Return how far each new pixel covers each of `size` ink pixels: (new pixels, size).

    In float64, which is exact here and which BLAS multiplies. It is shared: not to be changed.
    """
    new = np.arange(-(-side * size // length))[:, np.newaxis]
    old = np.arange(size)
    ends = np.minimum(length * (new + 1), side * (old + 1))
    starts = np.maximum(length * new, side * old)
    overlaps: Array = np.maximum(ends - starts, 0).astype(np.float64)
    return overlaps
