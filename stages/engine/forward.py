"""From pixels to probabilities, each thread taking some samples through all layers."""

from __future__ import annotations

import numpy as np

from stages.core import elementary, exact
from stages.engine.compiler import kernel
from stages.engine.products import ZERO, combine_rows, compress_activations, compress_pixels

ANCHOR32 = np.float32(1.5 * 2**23)
ANCHOR64 = 1.5 * 2**52
EXPONENTIAL_ANCHOR = ANCHOR64 * exact.EXPONENTIAL_QUANTUM
PIXEL_QUANTUM = np.float32(exact.PIXELS.quantum)
EXP_TABLE = elementary.EXP_TABLE
STEPS_PER_UNIT = float(elementary.STEPS_PER_UNIT)


@kernel
def activate(z, o, units, scale, b, bias, saturation, quantum):
    """Turn a sample's z, without its bias, into activations: bias, relu, round_to; in place."""
    anchor = ANCHOR32 * quantum
    for unit in range(units):
        value = z[o + unit] * scale + b[bias + unit]
        # Written so that what is not a number stays so, as in NumPy.
        value = ZERO if value < ZERO else saturation if value > saturation else value
        z[o + unit] = (value + anchor) - anchor


@kernel
def keep_units(a, o, units, mask, m):
    """Set the activations of dropped units to 0."""
    for unit in range(units):
        a[o + unit] *= np.float32(mask[m + unit])


@kernel
def softmax(logits, o, classes, b, bias, samples, n, quantise):
    """Turn a sample's logits, without their bias, into probabilities; note its loss's terms."""
    label, best = samples.labels[n], 0
    for c in range(classes):
        logits[o + c] += np.float64(b[bias + c])
        if logits[o + c] > logits[o + best]:
            best = c
    samples.predictions[n] = best
    largest, total = logits[o + best], 0.0
    samples.shifted[n] = logits[o + label] - largest
    for c in range(classes):
        shifted = logits[o + c] - largest
        r = (elementary.LOWEST if shifted < elementary.LOWEST else shifted) * -STEPS_PER_UNIT
        k = np.rint(r)
        r = k - r
        series = r * (0.5 / STEPS_PER_UNIT**2)
        series += 1.0 / STEPS_PER_UNIT
        series *= r
        series += 1.0
        series *= EXP_TABLE[min(max(np.int64(k), 0), len(EXP_TABLE) - 1)]
        if quantise:
            series = (series + EXPONENTIAL_ANCHOR) - EXPONENTIAL_ANCHOR
        logits[o + c] = series
        total += series
    samples.total[n] = total
    for c in range(classes):
        logits[o + c] /= total


@kernel
def forward(network, w, buffers, options, samples, start, first, last, mask_row):
    """Take the samples `first` to `last` of a micro-batch from pixels to probabilities.

    `w` are the parameters, W quantised; `start` is the micro-batch's place in the epoch's order,
    `mask_row` the one of its first sample among the masks.
    """
    layers = len(network.inputs)
    for i in range(first, last):
        begin = i * network.inputs[0]
        buffers.starts[0, i] = begin
        buffers.stops[0, i] = compress_pixels(
            samples.images[samples.rows[start + i]],
            buffers.indices, buffers.values, begin, options.skip_zeros,
        )  # fmt: skip
    mask = 0
    for layer in range(layers - 1):
        stride, units = network.stride[layer], network.outputs[layer]
        o = buffers.hidden[layer]
        combine_rows(
            buffers.activations, o + first * stride, stride, w, network.W[layer], stride,
            buffers.indices, buffers.values, buffers.starts[layer], buffers.stops[layer],
            first, last,
        )  # fmt: skip
        scale = PIXEL_QUANTUM if layer == 0 else np.float32(1.0)
        for i in range(first, last):
            here = o + i * stride
            activate(
                buffers.activations, here, units, scale, w, network.b[layer],
                network.saturation[layer + 1], network.quantum[layer + 1],
            )  # fmt: skip
            if options.dropout:
                keep_units(buffers.activations, here, units, samples.masks[mask_row + i], mask)
            begin = network.sparse[layer + 1] + i * units
            buffers.starts[layer + 1, i] = begin
            buffers.stops[layer + 1, i] = compress_activations(
                buffers.activations, here, units, buffers.indices, buffers.values, begin,
                options.skip_zeros,
            )  # fmt: skip
        mask += units
    output, stride = layers - 1, network.stride[layers - 1]
    combine_rows(
        buffers.logits, first * stride, stride, w, network.W[output], stride, buffers.indices,
        buffers.values, buffers.starts[output], buffers.stops[output], first, last,
    )  # fmt: skip
    for i in range(first, last):
        softmax(
            buffers.logits, i * stride, network.outputs[output], w, network.b[output], samples,
            start + i, options.quantise,
        )  # fmt: skip
