"""The compiled training step, divided among threads in two ways.

Forward, each thread takes some samples through all layers. Backward, each takes some rows of every
W: it computes the deltas of the units that feed these rows, then the rows' gradients, and updates
them at once. Barriers separate the two.
"""

from __future__ import annotations

import numpy as np

from stages.engine.backward import (
    cross_entropy_derivative,
    hidden_to_hidden,
    output_to_hidden,
    quantise_columns,
    quantise_rows,
)
from stages.engine.compiler import entry_kernel, kernel
from stages.engine.descent import clear_sums, enforce_bounds, quantise_weights, update
from stages.engine.forward import forward
from stages.engine.layout import BLOCK
from stages.engine.parallel import RUNNING, STATUS, barrier
from stages.engine.products import ZERO, add_rows, combine_rows, copy, fill, matrix, transpose
from stages.engine.vectors import atomic_load


@kernel
def accumulated(gradient, found, plan, n):
    """Return the gradient of a batch so far, float32: `training.accumulated`.

    Only a batch of several micro-batches needs the room for it.
    """
    if plan.first[n] and plan.last[n]:
        return found
    if plan.first[n]:
        copy(gradient, found)
    else:
        for j in range(len(found)):
            gradient[j] += found[j]
    return gradient


@kernel
def accumulated_wide(gradient, found, first):
    """Return the same from what was found in float64, rounded once."""
    for j in range(len(found)):
        gradient[j] = np.float32(found[j] if first else gradient[j] + found[j])
    return gradient


@kernel
def learn_weights(network, parameters, buffers, options, plan, n, layer, rank):
    """Find the gradient of this thread's rows of W, and update them if the batch ends."""
    first, last = network.rows[layer, rank], network.rows[layer, rank + 1]
    output, stride = len(network.inputs) - 1, network.stride[layer]
    if plan.last[n]:
        clear_sums(network, parameters, layer, rank)
    rows, columns = max(1, BLOCK // stride), network.columns[layer]
    indices, values = buffers.column_indices, buffers.column_values
    starts, stops = buffers.column_starts, buffers.column_stops
    for top in range(first, last, rows):
        bottom = min(top + rows, last)
        start = network.W[layer] + top * stride
        stop = network.W[layer] + bottom * stride
        gradient = parameters.gradient[start:stop]
        if layer == output:
            wide = buffers.wide_block[rank, : stop - start]
            combine_rows(
                wide, 0, buffers.logits, 0, stride, stride, indices, values, starts, stops,
                top, bottom,
            )  # fmt: skip
            gradient = accumulated_wide(gradient, wide, plan.first[n])
        else:
            block = buffers.block[rank, : stop - start]
            combine_rows(
                block, 0, buffers.per_unit, buffers.hidden[layer], stride, columns, indices, values,
                starts, stops, top, bottom,
            )  # fmt: skip
            for row in range(bottom - top):
                fill(block, row * stride + columns, (row + 1) * stride, ZERO)
            gradient = accumulated(gradient, block, plan, n)
        if plan.last[n]:
            update(parameters, gradient, options, plan, n, start, stop, np.bool_(True))
            quantise_weights(network, parameters, options, layer, rank, top, bottom)


@kernel
def learn_biases(network, parameters, buffers, options, plan, n, layer, first, last):
    """Find the gradient of the biases of units `first` to `last`, and update them at batch end."""
    count, stride = plan.stop[n] - plan.start[n], network.stride[layer]
    start, stop = network.b[layer] + first, network.b[layer] + last
    gradient = parameters.gradient[start:stop]
    if layer == len(network.inputs) - 1:
        deltas, wide_sums = matrix(buffers.logits, 0, count, stride), np.zeros(last - first)
        add_rows(wide_sums, deltas[:, first:last])
        gradient = accumulated_wide(gradient, wide_sums, plan.first[n])
    else:
        per_unit = matrix(buffers.per_unit, buffers.hidden[layer], count, stride)
        sums = np.zeros(last - first, np.float32)
        add_rows(sums, per_unit[:, first:last])
        gradient = accumulated(gradient, sums, plan, n)
    if plan.last[n]:
        update(parameters, gradient, options, plan, n, start, stop, np.bool_(False))


@entry_kernel
def learn(network, parameters, buffers, options, samples, plan, rank):
    """Take all threads through the micro-batches of a plan; return the status."""
    control, threads = buffers.control, options.threads
    output = len(network.inputs) - 1
    mask_row = 0
    for n in range(len(plan.start)):
        start, count = plan.start[n], plan.stop[n] - plan.start[n]
        mine, end = count * rank // threads, count * (rank + 1) // threads
        if plan.first[n]:
            enforce_bounds(network, parameters, buffers, options, rank)
        forward(
            network, parameters.quantised, buffers, options, samples, start, mine, end, mask_row
        )
        deltas = matrix(buffers.logits, 0, count, network.stride[output])
        for i in range(mine, end):
            targets = samples.targets[samples.labels[start + i]]
            cross_entropy_derivative(deltas[i], targets, options.quantise)
        mask_row += count
        if barrier(control, threads) != RUNNING:
            break
        if rank == 0:
            units = network.outputs[output]
            learn_biases(network, parameters, buffers, options, plan, n, output, rank, units)
        for layer in range(output, -1, -1):
            first, last = network.rows[layer, rank], network.rows[layer, rank + 1]
            transpose(buffers, layer, count, first, last)
            if layer > 0:
                if layer == output:
                    output_to_hidden(network, parameters.quantised, buffers, count, first, last)
                else:
                    hidden_to_hidden(
                        network, parameters.quantised, buffers, layer, count, first, last
                    )
                quantise_columns(network, buffers, options, layer - 1, count, first, last)
                learn_biases(network, parameters, buffers, options, plan, n, layer - 1, first, last)
            learn_weights(network, parameters, buffers, options, plan, n, layer, rank)
            if barrier(control, threads) != RUNNING:
                break
            if layer > 1:
                quantise_rows(network, parameters, buffers, options, layer - 1, mine, end)
                if barrier(control, threads) != RUNNING:
                    break
        if atomic_load(control, STATUS) != RUNNING:
            break
    return atomic_load(control, STATUS)


@entry_kernel
def score(network, w, buffers, options, samples, rank):
    """Classify this thread's part of the samples, in its own rows of the buffers."""
    threads, rows, count = options.threads, buffers.starts.shape[1], len(samples.rows)
    first, last = rows * rank // threads, rows * (rank + 1) // threads
    position, end = count * rank // threads, count * (rank + 1) // threads
    no_mask = rows - rows  # unlike the literal 0, of a variable's type: `forward` is compiled once
    while position < end:
        stop = min(last, first + end - position)
        forward(network, w, buffers, options, samples, position - first, first, stop, no_mask)
        position += stop - first


@entry_kernel
def begin(network, parameters, buffers, options, rank):
    """Quantise this thread's rows of every W."""
    for layer in range(len(network.inputs)):
        clear_sums(network, parameters, layer, rank)
        first, last = network.rows[layer, rank], network.rows[layer, rank + 1]
        quantise_weights(network, parameters, options, layer, rank, first, last)
        if rank == 0:
            start, stop = network.b[layer], network.b[layer] + network.stride[layer]
            copy(parameters.quantised[start:stop], parameters.w[start:stop])
    barrier(buffers.control, options.threads)
    enforce_bounds(network, parameters, buffers, options, rank)


@entry_kernel
def enforce(network, parameters, buffers, options, rank):
    """Bring the weights within their bounds, as the next step would."""
    enforce_bounds(network, parameters, buffers, options, rank)


@entry_kernel
def meet(control, threads):
    """Wait for all threads; return the status."""
    return barrier(control, threads)
