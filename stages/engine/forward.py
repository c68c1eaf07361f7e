"""From pixels to probabilities, each thread taking some samples through all layers."""

from __future__ import annotations

import numpy as np

from stages.core import elementary, exact
from stages.engine.compiler import kernel
from stages.engine.products import (
    ZERO,
    combine_rows,
    compress_activations,
    compress_pixels,
    matrix,
)

ANCHOR32 = exact.ANCHORS[np.dtype(np.float32)]
ANCHOR64 = exact.ANCHORS[np.dtype(np.float64)]
EXPONENTIAL_ANCHOR = ANCHOR64 * exact.EXPONENTIAL_QUANTUM
EXPONENTIAL_ANCHOR_OF_MANY = ANCHOR64 * exact.EXPONENTIAL_QUANTUM_OF_MANY
FEW_CLASSES = exact.FEW_CLASSES
EXP_TABLE = elementary.EXP_TABLE
LOWEST = elementary.LOWEST
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
    r = (LOWEST if x < LOWEST else x) * -STEPS_PER_UNIT
    k = np.rint(r)
    r = k - r
    series = r * (0.5 / STEPS_PER_UNIT**2)
    series += 1.0 / STEPS_PER_UNIT
    series *= r
    series += 1.0
    return series * EXP_TABLE[min(max(np.int64(k), 0), len(EXP_TABLE) - 1)]


@kernel
def softmax(logits, b, samples, n, quantise):
    """Turn a sample's logits, without their bias, into probabilities; note its loss's terms."""
    best, total = 0, 0.0
    anchor = 0.0
    if quantise:
        anchor = EXPONENTIAL_ANCHOR if len(logits) <= FEW_CLASSES else EXPONENTIAL_ANCHOR_OF_MANY
    for c in range(len(logits)):
        logits[c] += np.float64(b[c])
        if logits[c] > logits[best]:
            best = c
    samples.predictions[n] = best
    largest = logits[best]
    samples.shifted[n] = logits[samples.labels[n]] - largest
    for c in range(len(logits)):
        logits[c] = (exponential(logits[c] - largest) + anchor) - anchor
        total += logits[c]
    samples.total[n] = total
    for c in range(len(logits)):
        logits[c] /= total


@kernel
def forward(network, w, buffers, options, samples, start, first, last, mask_row):
    """Take the samples `first` to `last` of a micro-batch from pixels to probabilities.

    `w` are the parameters, W quantised; `start` is the micro-batch's place in the epoch's order,
    `mask_row` the one of its first sample among the masks.
    """
    indices, values, keep_zeros = buffers.indices, buffers.values, options.keep_zeros
    for i in range(first, last):
        image = samples.images[samples.rows[start + i]]
        begin = i * len(image)
        end = begin + len(image)
        count = compress_pixels(image, indices[begin:end], values[begin:end], keep_zeros)
        buffers.starts[0, i], buffers.stops[0, i] = begin, begin + count
    mask, output = 0, len(network.inputs) - 1
    for layer in range(output):
        stride, units = network.stride[layer], network.outputs[layer]
        o = buffers.hidden[layer] + first * stride
        combine_rows(
            buffers.activations, o, w, network.W[layer], stride, network.columns[layer], indices,
            values, buffers.starts[layer], buffers.stops[layer], first, last,
        )  # fmt: skip
        b = w[network.b[layer] : network.b[layer] + units]
        saturation, quantum = network.saturation[layer + 1], network.quantum[layer + 1]
        activations = matrix(buffers.activations, o, last - first, stride)
        for i in range(first, last):
            a = activations[i - first, :units]
            activate(a, b, saturation, quantum)
            if options.dropout:
                keep_units(a, samples.masks[mask_row + i, mask : mask + units])
            begin = network.sparse[layer + 1] + i * units
            end = begin + units
            count = compress_activations(a, indices[begin:end], values[begin:end], keep_zeros)
            buffers.starts[layer + 1, i], buffers.stops[layer + 1, i] = begin, begin + count
        mask += units
    stride, classes = network.stride[output], network.outputs[output]
    combine_rows(
        buffers.logits, first * stride, w, network.W[output], stride, stride, indices, values,
        buffers.starts[output], buffers.stops[output], first, last,
    )  # fmt: skip
    logits = matrix(buffers.logits, first * stride, last - first, stride)
    b = w[network.b[output] : network.b[output] + classes]
    for i in range(first, last):
        softmax(logits[i - first, :classes], b, samples, start + i, options.quantise)
