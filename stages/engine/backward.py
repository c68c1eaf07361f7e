"""From the output layer's deltas to those of every hidden layer, quantised for each product."""

from __future__ import annotations

from math import frexp, ldexp

import numpy as np

from stages.core import exact
from stages.engine.compiler import exact_kernel, kernel
from stages.engine.forward import ANCHOR32, ANCHOR64
from stages.engine.parallel import DELTAS_TOO_LARGE, WEIGHTS_TOO_LARGE, fail
from stages.engine.products import ZERO, add_multiple, dot

OUTPUT_DELTA_ANCHOR = ANCHOR64 * exact.OUTPUT_DELTA_QUANTUM


@kernel
def power_of_two_above(value):
    """Return the smallest power of two greater than a value >= 0 (1 for 0)."""
    return ldexp(1.0, frexp(value)[1])


@kernel
def cross_entropy_derivative(probabilities, o, targets, label, quantise):
    """Turn a sample's probabilities into the output layer's deltas, quantised, in place."""
    for c in range(targets.shape[1]):
        delta = probabilities[o + c] - targets[label, c]
        if quantise:
            delta = (delta + OUTPUT_DELTA_ANCHOR) - OUTPUT_DELTA_ANCHOR
        probabilities[o + c] = delta


@kernel
def output_to_hidden(network, w, buffers, count, first, last):
    """Compute the last hidden layer's deltas of the units `first` to `last`."""
    output = len(network.inputs) - 1
    classes, stride = network.outputs[output], network.stride[output]
    o, width = buffers.hidden[output - 1], network.stride[output - 1]
    transposed = np.empty((classes, last - first))
    for unit in range(first, last):
        for c in range(classes):
            transposed[c, unit - first] = w[network.W[output] + unit * stride + c]
    product = np.empty(last - first)
    for i in range(count):
        product[:] = 0.0
        for c in range(classes):
            add_multiple(product, buffers.logits[i * stride + c], transposed[c])
        here = o + i * width + first
        mask_deltas(buffers.delta, buffers.activations, here, product)


@kernel
def mask_deltas(delta, activations, o, product):
    """Multiply with relu's derivative, as float32."""
    for j in range(len(product)):
        delta[o + j] = np.float32(product[j]) if activations[o + j] > ZERO else ZERO


@kernel
def hidden_to_hidden(network, w, buffers, layer, count, first, last):
    """Compute the deltas of the units `first` to `last` that feed a hidden layer."""
    stride, width = network.stride[layer], network.stride[layer - 1]
    here, o = buffers.hidden[layer], buffers.hidden[layer - 1]
    for i in range(count):
        for unit in range(first, last):
            buffers.delta[o + i * width + unit] = ZERO
    for unit in range(first, last):
        row = network.W[layer] + unit * stride
        for k in range(buffers.column_starts[unit], buffers.column_stops[unit]):
            i = np.int64(buffers.column_indices[k])
            if buffers.column_values[k] > ZERO:
                buffers.delta[o + i * width + unit] = dot(
                    buffers.per_sample, here + i * stride, w, row, stride
                )


@kernel
def quantise_columns(network, buffers, options, layer, count, first, last):
    """Quantise a hidden layer's deltas of the units `first` to `last` for the gradient."""
    o, stride = buffers.hidden[layer], network.stride[layer]
    sums = np.zeros(last - first)
    for i in range(count):
        add_magnitudes(sums, buffers.delta, o + i * stride + first)
    anchors = np.zeros(last - first, np.float32)
    if options.quantise:
        for j in range(len(sums)):
            if not sums[j] < exact.DELTA_SUM_BOUND:
                fail(buffers.control, DELTAS_TOO_LARGE, layer)
            quantum = power_of_two_above(sums[j] / network.budget[layer])
            anchors[j] = ANCHOR32 * np.float32(quantum)
    for i in range(count):
        round_by_column(buffers.per_unit, buffers.delta, o + i * stride + first, anchors)


@kernel
def add_magnitudes(sums, values, o):
    """Add the absolute values of a row to float64 sums."""
    for j in range(len(sums)):
        sums[j] += np.float64(abs(values[o + j]))


@kernel
def round_by_column(out, values, o, anchors):
    """Round a row, each column with an anchor of its own."""
    for j in range(len(anchors)):
        out[o + j] = (values[o + j] + anchors[j]) - anchors[j]


@kernel
def quantise_rows(network, parameters, buffers, options, layer, first, last):
    """Quantise a hidden layer's deltas of the samples `first` to `last` for the layer below."""
    o, stride, units = buffers.hidden[layer], network.stride[layer], network.outputs[layer]
    row_sum = 0.0
    for rank in range(options.threads):
        row_sum = max(row_sum, parameters.row_sums[rank, layer])
    levels = 2.0**24 * parameters.quanta[layer] / power_of_two_above(row_sum)
    if options.quantise and not levels > 2.0:
        fail(buffers.control, WEIGHTS_TOO_LARGE, layer)
    for i in range(first, last):
        here = o + i * stride
        anchor = ZERO
        if options.quantise:
            largest = largest_magnitude(buffers.delta, here, units)
            quantum = max(power_of_two_above(largest) / levels, exact.FINEST_ROW_QUANTUM)
            anchor = ANCHOR32 * np.float32(quantum)
        for j in range(here, here + units):
            buffers.per_sample[j] = (buffers.delta[j] + anchor) - anchor


@exact_kernel
def largest_magnitude(values, o, length):
    """Return the largest absolute value of a row."""
    largest = ZERO
    for j in range(o, o + length):
        largest = max(largest, abs(values[j]))
    return np.float64(largest)
