"""Products that visit only what is not zero: an image's bright pixels, a sample's active units.

A layer's inputs are kept as sparse rows (the inputs of each sample), and transposed into sparse
columns (the samples of each input) for the gradient. All sums here are exact.
"""

from __future__ import annotations

import numpy as np

from stages.core.exact import PIXELS
from stages.engine.compiler import exact_kernel, kernel
from stages.engine.layout import TILE
from stages.engine.vectors import row_combination

ZERO = np.float32(0.0)
PIXEL_QUANTUM = np.float32(PIXELS.quantum)

combine_64, combine_32, combine_16 = map(row_combination, (64, 32, 16))


@kernel
def combine_rows(out, o, matrix, m, stride, columns, indices, factors, bounds, tiles, first, last):
    """Multiply sparse rows with a matrix: row r of `out` = factors[k] * matrix row indices[k].

    `out`, from offset `o`, and `matrix`, from offset `m`, have the same stride, and `columns` is a
    multiple of LANES. Rows `first` to `last` of the sparse ones become rows 0, 1, ... of `out`.
    All of them take a tile of the matrix, TILE rows of up to 64 columns, before any takes the
    next, so that it stays in the first cache.
    """
    column = 0
    while column < columns:
        left, here = columns - column, m + column
        for tile in range(tiles):
            there, more = o + column, tile > 0
            if left >= 64:
                for r in range(first, last):
                    combine_64(
                        out, there, matrix, here, stride, indices, factors, bounds[r, tile],
                        bounds[r, tile + 1], more,
                    )  # fmt: skip
                    there += stride
            elif left >= 32:
                for r in range(first, last):
                    combine_32(
                        out, there, matrix, here, stride, indices, factors, bounds[r, tile],
                        bounds[r, tile + 1], more,
                    )  # fmt: skip
                    there += stride
            else:
                for r in range(first, last):
                    combine_16(
                        out, there, matrix, here, stride, indices, factors, bounds[r, tile],
                        bounds[r, tile + 1], more,
                    )  # fmt: skip
                    there += stride
        column += 64 if left >= 64 else 32 if left >= 32 else 16


@kernel
def fill(array, first, last, value):
    """Set a part of a flat array; like `copy`, a loop, which Numba compiles sooner than a slice."""
    for k in range(first, last):
        array[k] = value


@kernel
def copy(target, source):
    """Copy a row."""
    for k in range(len(source)):
        target[k] = source[k]


@kernel
def matrix(flat, offset, rows, columns):
    """Return a part of a flat array as a matrix."""
    return flat[offset : offset + rows * columns].reshape(rows, columns)


@kernel
def tiles_of(rows):
    """Return how many tiles the rows of a matrix make."""
    return (rows + TILE - 1) // TILE


@kernel
def compress(dense, begin, indices, values, bounds, keep_zeros):
    """Write what is not zero as a sparse row from place `begin` on; return where it ends."""
    place = np.uint64(begin)
    for tile in range(tiles_of(len(dense))):
        bounds[tile] = place
        for i in range(tile * TILE, min((tile + 1) * TILE, len(dense))):
            indices[place] = i
            values[place] = dense[i]
            place += np.uint64((dense[i] != 0) | keep_zeros)
    bounds[tiles_of(len(dense))] = place
    return np.int64(place)


@kernel
def gather_pixels(images, row, begin, indices, values, bounds):
    """Copy an image's sparse row to place `begin`, its pixels as value / 256."""
    source = images.bounds[row]
    shift, end = begin - source[0], begin + source[-1] - source[0]
    copy(indices[begin:end], images.pixels[source[0] : source[-1]])
    scale(values[begin:end], images.brightness[source[0] : source[-1]])
    for tile in range(len(source)):
        bounds[tile] = source[tile] + shift


@kernel
def scale(values, brightness):
    """Turn pixels into inputs of the network."""
    for k in range(len(values)):
        values[k] = np.float32(brightness[k]) * PIXEL_QUANTUM


@kernel
def first_at_least(indices, start, stop, value):
    """Return where a sorted sparse row first has an index of at least `value`."""
    while start < stop:
        middle = (start + stop) >> 1
        if indices[middle] < value:
            start = middle + 1
        else:
            stop = middle
    return start


@kernel
def transpose(buffers, layer, count, first, last):
    """Turn the sparse rows of a layer's inputs into sparse columns, of inputs `first` to `last`."""
    bounds, places = buffers.column_bounds, buffers.column_places
    indices, values = buffers.indices, buffers.values
    for tile in range(first // TILE, tiles_of(last)):
        left, right = max(first, tile * TILE), min(last, (tile + 1) * TILE)
        for column in range(left, right):
            places[column] = column * count
        for i in range(count):
            if i % TILE == 0:
                copy(bounds[left:right, i // TILE], places[left:right])
            begin, end = buffers.bounds[layer, i, tile], buffers.bounds[layer, i, tile + 1]
            if left > tile * TILE:
                begin = first_at_least(indices, begin, end, left)
            if right < (tile + 1) * TILE:
                end = first_at_least(indices, begin, end, right)
            for k in range(begin, end):
                here = places[indices[k]]
                buffers.column_indices[here] = i
                buffers.column_values[here] = values[k]
                places[indices[k]] = here + 1
        copy(bounds[left:right, tiles_of(count)], places[left:right])


@exact_kernel
def dot(a, b):
    """Return the dot product of two rows."""
    total = ZERO
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@exact_kernel
def add_rows(sums, rows):
    """Add all rows of a matrix, four at a time."""
    four = len(rows) // 4 * 4
    for i in range(0, four, 4):
        a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for j in range(len(sums)):
            sums[j] += (a[j] + b[j]) + (c[j] + d[j])
    for i in range(four, len(rows)):
        for j in range(len(sums)):
            sums[j] += rows[i, j]


@exact_kernel
def add_magnitudes(sums, rows):
    """Add the absolute values of all rows of a matrix, four rows at a time."""
    four = len(rows) // 4 * 4
    for i in range(0, four, 4):
        a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for j in range(len(sums)):
            sums[j] += (abs(a[j]) + abs(b[j])) + (abs(c[j]) + abs(d[j]))
    for i in range(four, len(rows)):
        for j in range(len(sums)):
            sums[j] += abs(rows[i, j])
