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
from stages.engine.forward import PIXEL_QUANTUM, forward
from stages.engine.layout import BLOCK
from stages.engine.parallel import RUNNING, STATUS, barrier
from stages.engine.products import add_rows, combine_rows, transpose
from stages.engine.vectors import atomic_load


@kernel
def accumulate(gradient, found, first):
    """Set or add to the gradient, rounded to float32: `training.accumulated`."""
    if first:
        for j in range(len(gradient)):
            gradient[j] = np.float32(found[j])
    else:
        for j in range(len(gradient)):
            gradient[j] = np.float32(gradient[j] + found[j])


@kernel
def learn_weights(network, parameters, buffers, options, plan, n, layer, rank):
    """Find the gradient of this thread's rows of W, and update them if the batch ends."""
    first, last = network.rows[layer, rank], network.rows[layer, rank + 1]
    output, stride = len(network.inputs) - 1, network.stride[layer]
    if plan.last[n]:
        clear_sums(network, parameters, layer, rank)
    rows = max(1, BLOCK // stride)
    gradient, block, wide = parameters.gradient, buffers.block[rank], buffers.wide_block[rank]
    for top in range(first, last, rows):
        bottom = min(top + rows, last)
        start = network.W[layer] + top * stride
        stop = network.W[layer] + bottom * stride
        if layer == output:
            combine_rows(
                wide, 0, stride, buffers.logits, 0, stride, buffers.column_indices,
                buffers.column_values, buffers.column_starts, buffers.column_stops, top, bottom,
            )  # fmt: skip
            accumulate(gradient[start:stop], wide, plan.first[n])
        else:
            combine_rows(
                block, 0, stride, buffers.per_unit, buffers.hidden[layer], stride,
                buffers.column_indices, buffers.column_values, buffers.column_starts,
                buffers.column_stops, top, bottom,
            )  # fmt: skip
            if layer == 0:
                block[: stop - start] *= PIXEL_QUANTUM
            accumulate(gradient[start:stop], block, plan.first[n])
        if plan.last[n]:
            update(parameters, options, plan, n, start, stop, True)
            quantise_weights(network, parameters, options, layer, rank, top, bottom)


@kernel
def learn_biases(network, parameters, buffers, options, plan, n, layer, first, last):
    """Find the gradient of the biases of units `first` to `last`, and update them at batch end."""
    count, stride = plan.stop[n] - plan.start[n], network.stride[layer]
    start, stop = network.b[layer] + first, network.b[layer] + last
    gradient = parameters.gradient[start:stop]
    if layer == len(network.inputs) - 1:
        wide_sums = np.zeros(last - first)
        add_rows(wide_sums, buffers.logits, first, stride, count)
        accumulate(gradient, wide_sums, plan.first[n])
    else:
        sums = np.zeros(last - first, np.float32)
        add_rows(sums, buffers.per_unit, buffers.hidden[layer] + first, stride, count)
        accumulate(gradient, sums, plan.first[n])
    if plan.last[n]:
        update(parameters, options, plan, n, start, stop, False)


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
        for i in range(mine, end):
            cross_entropy_derivative(
                buffers.logits, i * network.stride[output], samples.targets,
                samples.labels[start + i], options.quantise,
            )  # fmt: skip
        mask_row += count
        if barrier(control, threads) != RUNNING:
            break
        if rank == 0:
            units = network.outputs[output]
            learn_biases(network, parameters, buffers, options, plan, n, output, 0, units)
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
    while position < end:
        stop = min(last, first + end - position)
        forward(network, w, buffers, options, samples, position - first, first, stop, 0)
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
            parameters.quantised[start:stop] = parameters.w[start:stop]
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
