"""From pixels to probabilities: each thread computes its units, then some samples' softmax."""

from __future__ import annotations

import numpy as np

from stages.core import elementary, exact
from stages.engine.compiler import kernel
from stages.engine.layout import LANES, TILE
from stages.engine.parallel import RUNNING, barrier
from stages.engine.products import (
    ZERO,
    combine_rows,
    compress,
    copy,
    fill,
    gather_images,
    tiles_of,
    units_of,
)
from stages.engine.vectors import combine

ANCHOR32 = exact.ANCHORS[np.dtype(np.float32)]
ANCHOR64 = exact.ANCHORS[np.dtype(np.float64)]
EXPONENTIAL_ANCHOR = ANCHOR64 * exact.EXPONENTIAL_QUANTUM
EXPONENTIAL_ANCHOR_OF_MANY = ANCHOR64 * exact.EXPONENTIAL_QUANTUM_OF_MANY
STEPS_PER_UNIT = float(elementary.STEPS_PER_UNIT)


@kernel
def activate(z, b, saturation, quantum):
    """Turn a sample's z, without its bias, into activations: bias, relu, round_to; in place."""
    anchor = ANCHOR32 * quantum
    for unit in range(len(z)):
        value = z[unit] + b[unit]
        # Written so that what is not a number stays so, as in NumPy.
        value = ZERO if value < ZERO else value
        value = saturation if value > saturation else value
        z[unit] = (value + anchor) - anchor


@kernel
def keep_units(a, mask):
    """Set the activations of dropped units to 0."""
    for unit in range(len(a)):
        a[unit] *= np.float32(mask[unit])


@kernel
def exponential(x):
    """Return e**x for x <= 0: `elementary.exp`."""
    r = (elementary.LOWEST if x < elementary.LOWEST else x) * -STEPS_PER_UNIT
    k = np.rint(r)
    r = k - r
    series = r * (0.5 / STEPS_PER_UNIT**2)
    series += 1.0 / STEPS_PER_UNIT
    series *= r
    series += 1.0
    table = elementary.EXP_TABLE
    return series * table[min(max(np.int64(k), 0), len(table) - 1)]


@kernel
def softmax(logits, b, samples, n, quantise):
    """Turn a sample's logits, without their bias, into probabilities; note its loss's terms."""
    best, total = 0, 0.0
    anchor = 0.0
    if quantise:
        anchor = (
            EXPONENTIAL_ANCHOR if len(logits) <= exact.FEW_CLASSES else EXPONENTIAL_ANCHOR_OF_MANY
        )
    for c in range(len(logits)):
        logits[c] += np.float64(b[c])
        if logits[c] > logits[best]:
            best = c
    samples.predictions[n] = best
    largest = logits[best]
    samples.shifted[n] = logits[samples.labels[n]] - largest
    for c in range(len(logits)):
        logits[c] = (exponential(logits[c] - largest) + anchor) - anchor
    for c in range(len(logits)):
        total += logits[c]
    samples.total[n] = total
    for c in range(len(logits)):
        logits[c] /= total


@kernel
def compute_units(network, w, buffers, options, samples, start, count, mask_row, layer, rank):
    """Compute a hidden layer's activations of this thread's units, for `count` samples."""
    if layer == 0:
        gather_images(buffers, samples, start, count, rank)
    for top in range(0, count, TILE):
        bottom = min(top + TILE, count)
        multiply_inputs(network, w, buffers, options, top, bottom, layer, rank)
        activate_units(network, w, buffers, options, samples, top, bottom, mask_row, layer, rank)


@kernel
def multiply_inputs(network, w, buffers, options, top, bottom, layer, rank):
    """Multiply a layer's inputs of the samples `top` to `bottom` with this thread's part of W."""
    W, stride = network.W[layer, rank], network.stride[layer, rank]
    columns, o = network.columns[layer, rank], network.hidden[layer, rank] + top * stride
    if layer == 0:
        combine_rows(
            buffers.activations, o, w, W, stride, columns, buffers.pixels[rank],
            buffers.brightness[rank], buffers.image_bounds[rank], tiles_of(network.inputs[0]), top,
            bottom, False,
        )  # fmt: skip
        return
    more = False
    for other in range(options.threads):
        tiles = tiles_of(units_of(network, layer - 1, other))
        combine_rows(
            buffers.activations, o, w, W, stride, columns, buffers.indices, buffers.values,
            buffers.bounds[layer, other], tiles, top, bottom, more,
        )  # fmt: skip
        more |= tiles > 0  # a thread may have no units


@kernel
def activate_units(network, w, buffers, options, samples, top, bottom, mask_row, layer, rank):
    """Turn products into activations, and for another hidden layer into sparse rows as well."""
    first, last = network.edges[layer, rank], network.edges[layer, rank + 1]
    o, stride = network.hidden[layer, rank], network.stride[layer, rank]
    b = w[network.b[layer] + first : network.b[layer] + last]
    saturation, quantum = network.saturation[layer + 1], network.quantum[layer + 1]
    mask = first
    for lower in range(layer):
        mask += network.outputs[lower]
    for i in range(top, bottom):
        a = buffers.activations[o + i * stride : o + i * stride + last - first]
        activate(a, b, saturation, quantum)
        if options.dropout:
            keep_units(a, samples.masks[mask_row + i, mask : mask + last - first])
        if layer + 1 < len(network.inputs) - 1:
            begin = network.sparse[layer + 1] + i * network.outputs[layer] + first
            compress(
                a, first, begin, buffers.indices, buffers.values,
                buffers.bounds[layer + 1, rank, i], options.keep_zeros,
            )  # fmt: skip


@kernel
def compute_logits(network, w, buffers, count, rank):
    """Compute what this thread's units add to the logits of `count` samples."""
    output = len(network.inputs) - 1
    stride, W = network.stride[output, rank], network.W[output, rank]
    units = units_of(network, output - 1, rank)
    o, between = network.hidden[output - 1, rank], network.stride[output - 1, rank]
    logits, weights = buffers.partial_logits[rank].reshape(-1), buffers.wide_weights[rank]
    a = buffers.wide_block[rank, :TILE]
    copy(weights, w[W : W + units * stride])
    for top in range(0, max(units, 1), TILE):  # without units the logits become 0
        size = min(TILE, units - top)
        for i in range(count):
            begin = o + i * between + top
            copy(a, buffers.activations[begin : begin + size])
            for column in range(0, stride, LANES):
                here = i * stride + column
                combine(
                    LANES, logits, here, weights, top * stride + column, stride, None, a, 0, size,
                    top > 0,
                )  # fmt: skip


@kernel
def forward(network, w, buffers, options, samples, start, count, mask_row, rank):
    """Take some samples from pixels to probabilities; return whether all threads still run.

    `w` are the parameters, W quantised; the samples are `count` of the epoch's order from `start`
    on, `mask_row` is the first one's row among the masks. Each thread returns with the
    probabilities of some of the samples computed, `count * rank // threads` and following.
    """
    control, threads, output = buffers.control, options.threads, len(network.inputs) - 1
    for layer in range(output):
        compute_units(network, w, buffers, options, samples, start, count, mask_row, layer, rank)
        if layer + 1 < output and barrier(control, threads) != RUNNING:
            return False
    compute_logits(network, w, buffers, count, rank)
    if barrier(control, threads) != RUNNING:
        return False
    classes = network.outputs[output]
    b = w[network.b[output] : network.b[output] + classes]
    for i in range(count * rank // threads, count * (rank + 1) // threads):
        logits = buffers.logits[i, :classes]
        fill(logits, 0, classes, 0.0)
        for other in range(threads):
            for c in range(classes):
                logits[c] += buffers.partial_logits[other, i, c]
        softmax(logits, b, samples, start + i, options.quantise)
    return True
