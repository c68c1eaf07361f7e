"""Products that visit only what is not zero: an image's bright pixels, a sample's active units.

A layer's inputs are kept as sparse rows (the inputs of each sample), and transposed into sparse
columns (the samples of each input) for the gradient. All sums here are exact.
"""

from __future__ import annotations

import numpy as np

from stages.core.exact import PIXELS
from stages.engine.compiler import exact_kernel, kernel
from stages.engine.vectors import row_combination

ZERO = np.float32(0.0)
PIXEL_QUANTUM = np.float32(PIXELS.quantum)

combine_64, combine_32, combine_16 = map(row_combination, (64, 32, 16))


@kernel
def combine_rows(out, o, matrix, m, stride, columns, indices, factors, starts, stops, first, last):
    """Multiply sparse rows with a matrix: row r of `out` = factors[k] * matrix row indices[k].

    `out`, from offset `o`, and `matrix`, from offset `m`, have the same stride, and `columns` is a
    multiple of LANES. Rows `first` to `last` of the sparse ones become rows 0, 1, ... of `out`.
    """
    column = 0
    while column < columns:
        left, here, there = columns - column, o + column, m + column
        if left >= 64:
            for r in range(first, last):
                combine_64(out, here, matrix, there, stride, indices, factors, starts[r], stops[r])
                here += stride
            column += 64
        elif left >= 32:
            for r in range(first, last):
                combine_32(out, here, matrix, there, stride, indices, factors, starts[r], stops[r])
                here += stride
            column += 32
        else:
            for r in range(first, last):
                combine_16(out, here, matrix, there, stride, indices, factors, starts[r], stops[r])
                here += stride
            column += 16


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
def compress_pixels(image, indices, values, keep_zeros):
    """Write an image's bright pixels, as value / 256, as a sparse row; return how many they are."""
    whole, count = len(image) // 8 * 8, np.uint64(0)
    words = image[:whole].view(np.uint64)
    for word in range(len(words)):
        if words[word] != 0 or keep_zeros:
            for k in range(8):
                pixel = word * 8 + k
                indices[count] = pixel
                values[count] = np.float32(image[pixel]) * PIXEL_QUANTUM
                count += np.uint64((image[pixel] != 0) | keep_zeros)
    for pixel in range(whole, len(image)):
        indices[count] = pixel
        values[count] = np.float32(image[pixel]) * PIXEL_QUANTUM
        count += np.uint64((image[pixel] != 0) | keep_zeros)
    return np.int64(count)


@kernel
def compress_activations(a, indices, values, keep_zeros):
    """Write a sample's active units as a sparse row, and return how many they are."""
    count = np.uint64(0)
    for unit in range(len(a)):
        indices[count] = unit
        values[count] = a[unit]
        count += np.uint64((a[unit] != ZERO) | keep_zeros)
    return np.int64(count)


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
    starts, stops = buffers.column_starts, buffers.column_stops
    fill(stops, first, last, 0)
    ranges = np.empty((count, 2), np.int64)
    for i in range(count):
        begin, end = buffers.starts[layer, i], buffers.stops[layer, i]
        ranges[i, 0] = first_at_least(buffers.indices, begin, end, first)
        ranges[i, 1] = first_at_least(buffers.indices, begin, end, last)
        for k in range(ranges[i, 0], ranges[i, 1]):
            stops[buffers.indices[k]] += 1
    place = first * count
    for column in range(first, last):
        starts[column] = place
        place += stops[column]
        stops[column] = starts[column]
    for i in range(count):
        for k in range(ranges[i, 0], ranges[i, 1]):
            column = buffers.indices[k]
            here = stops[column]
            buffers.column_indices[here] = i
            buffers.column_values[here] = buffers.values[k]
            stops[column] = here + 1


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
