"""Products that visit only what is not zero: an image's bright pixels, a sample's active units.

A layer's inputs are kept as sparse rows (the inputs of each sample); for the gradient they are
transposed into sparse columns (the samples of each input), unless a first layer is too narrow to
pay for it. All sums here are exact.
"""

from __future__ import annotations

import numpy as np

from stages.core.exact import PIXELS
from stages.engine.compiler import exact_kernel, inlined_kernel, kernel
from stages.engine.layout import CACHE_LINE, NARROW, TILE
from stages.engine.vectors import WIDTHS, combine, prefetch, scatter

ZERO = np.float32(0.0)
PIXEL_QUANTUM = np.float32(PIXELS.quantum)


@kernel
def combine_rows(
    out, o, matrix, m, stride, columns, indices, factors, bounds, tiles, first, last, more
):
    """Multiply sparse rows with a matrix: row r of `out` = factors[k] * matrix row indices[k].

    `out`, from offset `o`, and `matrix`, from offset `m`, have the same stride, and `columns` is a
    multiple of LANES. Rows `first` to `last` of the sparse ones become rows 0, 1, ... of `out`, or
    are added to these if there is `more`. All of them take a tile of the matrix, TILE rows of up to
    64 columns, before any takes the next, so that it stays in the first cache.
    """
    column, step = 0, tiles_at_once(columns)
    while column < columns:
        width, here = widest(columns - column), m + column
        for tile in range(0, tiles, step):
            there, again, end = o + column, more or tile > 0, min(tile + step, tiles)
            for r in range(first, last):
                start, stop = bounds[r, tile], bounds[r, end]
                combine(
                    width, out, there, matrix, here, stride, indices, factors, start, stop, again
                )
                there += stride
        column += width


@kernel
def widest(columns):
    """Return how many of some columns are taken at once."""
    for width in WIDTHS:
        if columns >= width:
            return width
    return WIDTHS[-1]


@kernel
def tiles_at_once(columns):
    """Return how many tiles the first cache holds of a matrix of few columns."""
    return NARROW // columns if 0 < columns < NARROW else 1


@kernel
def scatter_rows(out, stride, columns, indices, factors, bounds, tile, end, count, added, a):
    """Add the products of some tiles of sparse rows with other rows: the gradient of a matrix.

    Row indices[k] of the tiles, in `out`, gets factors[k] * row r of `added`, from offset `a`, for
    every k of the sparse row r of `count`. Both have the same stride.
    """
    column, o = 0, -tile * TILE * stride
    while column < columns:
        width, here = widest(columns - column), a + column
        for r in range(count):
            start, stop = bounds[r, tile], bounds[r, end]
            scatter(width, out, o + column, stride, indices, factors, start, stop, added, here)
            here += stride
        column += width


@kernel
def fill(array, first, last, value):
    """Set a part of a flat array; like `copy`, a loop, which Numba compiles sooner than a slice."""
    for k in range(first, last):
        array[k] = value


@kernel
def copy(target, source):
    """Copy a row, converted to the target's type."""
    for k in range(len(source)):
        target[k] = source[k]


@inlined_kernel
def matrix(flat, offset, rows, columns):
    """Return a part of a flat array as a matrix."""
    return flat[offset : offset + rows * columns].reshape(rows, columns)


@kernel
def tiles_of(rows):
    """Return how many tiles the rows of a matrix make."""
    return (rows + TILE - 1) // TILE


@kernel
def units_of(network, layer, rank):
    """Return how many units of a hidden layer this thread has."""
    return network.edges[layer, rank + 1] - network.edges[layer, rank]


@kernel
def compress(dense, first, begin, indices, values, bounds, keep_zeros):
    """Write what is not zero as a sparse row from place `begin` on; return where it ends.

    The indices are those of a whole row of which `dense` is the part from `first` on.
    """
    place = np.uint64(begin)
    for tile in range(tiles_of(len(dense))):
        bounds[tile] = place
        for i in range(tile * TILE, min((tile + 1) * TILE, len(dense))):
            indices[place] = first + i
            values[place] = dense[i]
            place += np.uint64((dense[i] != 0) | keep_zeros)
    bounds[tiles_of(len(dense))] = place
    return np.int64(place)


@kernel
def gather_images(buffers, samples, start, count, rank):
    """Copy the images of a micro-batch to this thread's sparse rows, pixels as value / 256."""
    images, place = samples.images, 0
    pixels, values = buffers.pixels[rank], buffers.brightness[rank]
    for i in range(count):
        source = images.bounds[samples.rows[start + i]]
        first, last = source[0], source[len(source) - 1]
        bounds, end = buffers.image_bounds[rank, i], place + last - first
        copy(pixels[place:end], images.pixels[first:last])
        scale(values[place:end], images.brightness[first:last])
        for tile in range(len(source)):
            bounds[tile] = place + source[tile] - first
        place = end


@kernel
def scale(values, brightness):
    """Turn pixels into inputs of the network."""
    for k in range(len(values)):
        values[k] = np.float32(brightness[k]) * PIXEL_QUANTUM


@kernel
def prefetch_images(samples, start, stop):
    """Begin to load the images of a micro-batch."""
    images = samples.images
    for n in range(start, stop):
        bounds = images.bounds[samples.rows[n]]
        first, last = bounds[0], bounds[len(bounds) - 1]
        for k in range(first, last, CACHE_LINE // 2):
            prefetch(images.pixels, k)
        for k in range(first, last, CACHE_LINE):
            prefetch(images.brightness, k)


@kernel
def transpose(network, buffers, layer, count, first, last, indices, values, bounds, tile, rank):
    """Turn the columns `first` to `last` of some sparse rows of a layer's inputs into sparse ones.

    `bounds` are those of the rows, in which column `first` begins a tile.
    """
    column_bounds, places = buffers.column_bounds[layer], buffers.places[rank]
    for left in range(first, last, TILE):
        right = min(left + TILE, last)
        for column in range(left, right):
            places[column] = network.sparse[layer] + column * count
        for i in range(count):
            if i % TILE == 0:
                copy(column_bounds[left:right, i // TILE], places[left:right])
            for k in range(bounds[i, tile], bounds[i, tile + 1]):
                here = np.uint64(places[indices[k]])
                buffers.column_indices[here] = i
                buffers.column_values[here] = values[k]
                places[indices[k]] = here + np.uint64(1)
        copy(column_bounds[left:right, tiles_of(count)], places[left:right])
        tile += 1


@kernel
def transpose_units(network, buffers, layer, count, rank):
    """Transpose this thread's part of the inputs of a layer between hidden ones."""
    first, last = network.edges[layer - 1, rank], network.edges[layer - 1, rank + 1]
    bounds = buffers.bounds[layer, rank]
    transpose(
        network, buffers, layer, count, first, last, buffers.indices, buffers.values, bounds, 0,
        rank,
    )  # fmt: skip


@kernel
def transpose_images(network, buffers, options, count, rank):
    """Transpose some tiles of the images, this thread's part."""
    pixels, threads = network.inputs[0], options.threads
    tile, end = tiles_of(pixels) * rank // threads, tiles_of(pixels) * (rank + 1) // threads
    transpose(
        network, buffers, 0, count, tile * TILE, min(end * TILE, pixels), buffers.pixels[rank],
        buffers.brightness[rank], buffers.image_bounds[rank], tile, rank,
    )  # fmt: skip


@kernel
def is_wide(network, options):
    """Return whether the gradient of the first W pays for the images' transposition."""
    return network.outputs[0] > options.threads * NARROW


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
    """Add the absolute values of all rows of a matrix, in the sums' type, four rows at a time."""
    number, four = sums.dtype.type, len(rows) // 4 * 4
    for i in range(0, four, 4):
        a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for j in range(len(sums)):
            first = number(abs(a[j])) + number(abs(b[j]))
            sums[j] += first + (number(abs(c[j])) + number(abs(d[j])))
    for i in range(four, len(rows)):
        for j in range(len(sums)):
            sums[j] += number(abs(rows[i, j]))
