"""The compiled training step.

Each thread has units of its own in every hidden layer, from one step to the next. Between barriers
threads exchange what each adds to the logits, the output layer's deltas, and in networks of several
hidden layers their activations and what each adds to the deltas of the layer below.
"""

from __future__ import annotations

import numpy as np

from stages.engine.backward import (
    add_partial_deltas,
    cross_entropy_derivative,
    find_maxima,
    hidden_to_hidden,
    output_to_hidden,
    quantise_columns,
    quantise_rows,
)
from stages.engine.compiler import entry_kernel, kernel
from stages.engine.descent import (
    check_bounds,
    clear_sums,
    enforce_bounds,
    quantise_layer,
    quantise_weights,
    rows_of,
    update,
)
from stages.engine.forward import forward
from stages.engine.layout import BLOCK_ROWS, TILE
from stages.engine.parallel import RUNNING, STATUS, barrier
from stages.engine.products import (
    ZERO,
    add_rows,
    combine_rows,
    compress,
    copy,
    fill,
    is_wide,
    matrix,
    prefetch_images,
    scatter_rows,
    tiles_at_once,
    tiles_of,
    transpose_images,
    transpose_units,
    units_of,
    widest,
)
from stages.engine.vectors import atomic_load, combine


@kernel
def accumulate(total, found, earlier, plan, n):
    """Compute the gradient of a batch so far, float32: `training.accumulated`.

    `earlier` is that of the batch's earlier micro-batches, and becomes that of the next one.
    """
    if plan.first[n]:
        copy(total, found)
    else:
        for j in range(len(found)):
            total[j] = np.float32(earlier[j] + found[j])
    if not plan.last[n]:
        copy(earlier, total[: len(found)])


@kernel
def pixel_gradients(network, buffers, count, top, bottom, block, rank):
    """Find the gradients of some rows of this thread's part of the first W from the images."""
    stride = network.stride[0, rank]
    fill(block, 0, (bottom - top) * stride, ZERO)
    scatter_rows(
        block, stride, network.columns[0, rank], buffers.pixels[rank], buffers.brightness[rank],
        buffers.image_bounds[rank], top // TILE, tiles_of(bottom), count, buffers.per_unit,
        network.hidden[0, rank],
    )  # fmt: skip


@kernel
def column_gradients(network, buffers, layer, count, top, bottom, block, rank):
    """Find the gradients of some rows of this thread's part of a W from its sparse columns."""
    stride, columns = network.stride[layer, rank], network.columns[layer, rank]
    combine_rows(
        block, 0, buffers.per_unit, network.hidden[layer, rank], stride, columns,
        buffers.column_indices, buffers.column_values, buffers.column_bounds[layer],
        tiles_of(count), top, bottom, False,
    )  # fmt: skip
    for row in range(bottom - top):
        fill(block, row * stride + columns, (row + 1) * stride, ZERO)


@kernel
def output_gradients(network, buffers, count, top, bottom, block, rank):
    """Find the gradients of some rows of this thread's part of the last W, float64.

    Behind them, `block` holds them transposed, as they are found: a row for each class.
    """
    output, rows, column = len(network.inputs) - 1, bottom - top, 0
    stride, between = network.stride[output, rank], network.stride[output - 1, rank]
    begin, deltas = network.hidden[output - 1, rank] + top, buffers.output_deltas.reshape(-1)
    (classes, samples), size = buffers.output_deltas.shape, rows * stride
    while column < rows:
        width = widest(rows - column)
        for first in range(0, count, TILE):
            last, o = min(first + TILE, count), begin + first * between + column
            for c in range(classes):
                here, k = size + c * TILE + column, c * samples
                combine(
                    width, block, here, buffers.activations, o, between, None, deltas, k + first,
                    k + last, first > 0,
                )  # fmt: skip
        column += width
    fill(block, 0, size, 0.0)
    for row in range(rows):
        for c in range(classes):
            block[row * stride + c] = block[size + c * TILE + row]


@kernel
def learn_weights(network, parameters, buffers, options, plan, n, layer, rank):
    """Find the gradient of this thread's part of a layer's W, and update it if the batch ends."""
    count = plan.stop[n] - plan.start[n]
    output, stride, W = len(network.inputs) - 1, network.stride[layer, rank], network.W[layer, rank]
    block, wide_block = buffers.block[rank], buffers.wide_block[rank]
    rows, at_once = rows_of(network, layer, rank), TILE
    if layer == 0:
        at_once *= tiles_at_once(network.columns[0, rank])
    elif layer < output:
        at_once = BLOCK_ROWS
    if plan.last[n]:
        clear_sums(network, parameters, layer, rank)
    for top in range(0, rows, at_once):
        bottom = min(top + at_once, rows)
        first, last = W + top * stride, W + bottom * stride
        size, earlier = last - first, parameters.gradient[first:last]
        if layer == output:
            output_gradients(network, buffers, count, top, bottom, wide_block, rank)
            accumulate(block, wide_block[:size], earlier, plan, n)
        elif layer > 0 or is_wide(network, options):
            column_gradients(network, buffers, layer, count, top, bottom, block, rank)
        else:
            pixel_gradients(network, buffers, count, top, bottom, block, rank)
        if layer < output and not (plan.first[n] and plan.last[n]):
            accumulate(block, block[:size], earlier, plan, n)
        if plan.last[n]:
            update(parameters, block, options, plan, n, first, last, np.bool_(True))
            quantise_weights(network, parameters, options, layer, rank, top, bottom)
    if plan.last[n]:
        check_bounds(network, parameters, buffers, options, layer, rank)


@kernel
def learn_biases(network, parameters, buffers, options, plan, n, layer, rank):
    """Find the gradient of this thread's biases of a layer, and update them if the batch ends."""
    count, stride = plan.stop[n] - plan.start[n], network.stride[layer, rank]
    output, start, units = len(network.inputs) - 1, network.b[layer], network.outputs[layer]
    if layer < output:
        start += network.edges[layer, rank]
        units = units_of(network, layer, rank)
    stop, block, sums = start + units, buffers.block[rank], buffers.wide_block[rank, :units]
    fill(sums, 0, units, 0.0)
    if layer == output:
        add_rows(sums, buffers.logits[:count])
    else:
        add_rows(sums, matrix(buffers.per_unit, network.hidden[layer, rank], count, stride))
    accumulate(block, sums, parameters.gradient[start:stop], plan, n)
    if plan.last[n]:
        update(parameters, block, options, plan, n, start, stop, np.bool_(False))


@kernel
def backward(network, parameters, buffers, options, samples, plan, n, rank):
    """From the output layer's deltas to all gradients of this thread; return whether all run."""
    control, threads, output = buffers.control, options.threads, len(network.inputs) - 1
    count = plan.stop[n] - plan.start[n]
    if n + 1 < len(plan.start):
        prefetch_images(samples, plan.start[n + 1], plan.stop[n + 1])
    output_to_hidden(network, parameters.quantised, buffers, count, rank)
    learn_weights(network, parameters, buffers, options, plan, n, output, rank)
    if rank == 0:
        learn_biases(network, parameters, buffers, options, plan, n, output, rank)
    for layer in range(output - 1, -1, -1):
        quantise_columns(network, buffers, options, layer, count, rank)
        learn_biases(network, parameters, buffers, options, plan, n, layer, rank)
        if layer > 0:
            find_maxima(network, buffers, layer, count, rank)
            transpose_units(network, buffers, layer, count, rank)
            if barrier(control, threads) != RUNNING:
                return False
            quantise_rows(network, parameters, buffers, options, layer, count, rank)
            hidden_to_hidden(network, parameters.quantised, buffers, layer, count, rank)
            if barrier(control, threads) != RUNNING:
                return False
        learn_weights(network, parameters, buffers, options, plan, n, layer, rank)
        if layer > 0:
            add_partial_deltas(network, buffers, layer - 1, count, rank)
    return True


@entry_kernel
def learn(network, parameters, buffers, options, samples, plan, rank):
    """Take this thread through the micro-batches of a plan; return the status.

    It begins when all threads have done what they do before, and ends when all have done.
    """
    control, threads, mask_row = buffers.control, options.threads, 0
    if barrier(control, threads) != RUNNING:
        return atomic_load(control, STATUS)
    for n in range(len(plan.start)):
        start, count = plan.start[n], plan.stop[n] - plan.start[n]
        if plan.first[n]:
            enforce_bounds(network, parameters, buffers, options, rank)
        if not forward(
            network, parameters.quantised, buffers, options, samples, start, count, mask_row, rank
        ):
            break
        for i in range(count * rank // threads, count * (rank + 1) // threads):
            targets = samples.targets[samples.labels[start + i]]
            cross_entropy_derivative(buffers.logits[i], targets, options.quantise)
            copy(buffers.output_deltas[:, i], buffers.logits[i, : len(targets)])
        if is_wide(network, options):
            transpose_images(network, buffers, options, count, rank)
        mask_row += count
        if barrier(control, threads) != RUNNING:
            break
        if not backward(network, parameters, buffers, options, samples, plan, n, rank):
            break
        if barrier(control, threads) != RUNNING:
            break
    return atomic_load(control, STATUS)


@entry_kernel
def score(network, w, buffers, options, samples, rank):
    """Classify all samples, a micro-batch at a time."""
    count, at_once = len(samples.rows), len(buffers.logits)
    no_mask = np.int64(0)  # the literal 0 has a type of its own
    for start in range(0, count, at_once):
        some = min(at_once, count - start)
        if (
            not forward(network, w, buffers, options, samples, start, some, no_mask, rank)
            or barrier(buffers.control, options.threads) != RUNNING
        ):
            break


@entry_kernel
def compress_images(dense, order, start, stop, images, keep_zeros):
    """Write the images `order[start]`, ... of `dense`, (images, pixels) uint8, as sparse rows.

    `images` is a ring: image n becomes the row n % rows.
    """
    rows = len(images.bounds)
    place = start % rows * dense.shape[1]
    for n in range(start, stop):
        place = compress(
            dense[order[n]], 0, place, images.pixels, images.brightness, images.bounds[n % rows],
            keep_zeros,
        )  # fmt: skip


@entry_kernel
def quantise(network, parameters, buffers, options, rank):
    """Quantise this thread's part of every W, within their bounds."""
    for layer in range(len(network.inputs)):
        quantise_layer(network, parameters, buffers, options, layer, rank)
        if rank == 0:
            start, stop = network.b[layer], network.b[layer] + network.outputs[layer]
            copy(parameters.quantised[start:stop], parameters.w[start:stop])
    if barrier(buffers.control, options.threads) == RUNNING:
        enforce_bounds(network, parameters, buffers, options, rank)
