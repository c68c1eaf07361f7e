"""From the output layer's deltas to those of every hidden layer, quantised for each product."""

from __future__ import annotations

from math import frexp, ldexp

import numpy as np

from stages.core import exact
from stages.engine.compiler import exact_kernel, kernel
from stages.engine.forward import ANCHOR32, ANCHOR64
from stages.engine.layout import BLOCK, LANES
from stages.engine.parallel import DELTAS_TOO_LARGE, WEIGHTS_TOO_LARGE, fail
from stages.engine.products import ZERO, combine_rows, dot, matrix, tiles_of
from stages.engine.vectors import four_dots

OUTPUT_DELTA_ANCHOR = ANCHOR64 * exact.OUTPUT_DELTA_QUANTUM


@kernel
def power_of_two_above(value):
    """Return the smallest power of two greater than a value >= 0 (1 for 0)."""
    return ldexp(1.0, frexp(value)[1])


@kernel
def cross_entropy_derivative(probabilities, targets, quantise):
    """Turn a sample's probabilities into the output layer's deltas, quantised, in place."""
    anchor = OUTPUT_DELTA_ANCHOR if quantise else 0.0
    for c in range(len(targets)):
        probabilities[c] = ((probabilities[c] - targets[c]) + anchor) - anchor


@kernel
def output_to_hidden(network, w, buffers, count, first, last):
    """Compute the last hidden layer's deltas of the units `first` to `last`."""
    output = len(network.inputs) - 1
    classes, stride = network.outputs[output], network.stride[output]
    o, width = buffers.hidden[output - 1], network.stride[output - 1]
    W = matrix(w, network.W[output], network.inputs[output], stride)
    deltas = matrix(buffers.delta, o, count, width)
    activations = matrix(buffers.activations, o, count, width)
    columns = (last - first + LANES - 1) // LANES * LANES
    transposed, product = np.zeros(classes * columns), np.empty(count * columns)
    for unit in range(first, last):
        for c in range(classes):
            transposed[c * columns + unit - first] = W[unit, c]
    combine_rows(
        product, 0, transposed, 0, columns, columns, buffers.class_indices, buffers.logits,
        buffers.class_bounds, 1, 0, count,
    )  # fmt: skip
    products = matrix(product, 0, count, columns)
    for i in range(count):
        mask_deltas(deltas[i, first:last], activations[i, first:last], products[i])


@kernel
def mask_deltas(delta, activations, product):
    """Multiply with relu's derivative, as float32."""
    for j in range(len(delta)):
        delta[j] = np.float32(product[j]) if activations[j] > ZERO else ZERO


@kernel
def hidden_to_hidden(network, w, buffers, layer, count, first, last):
    """Compute the deltas of the units `first` to `last` that feed a hidden layer."""
    stride, width = network.stride[layer], network.stride[layer - 1]
    W, above = network.W[layer], buffers.hidden[layer]
    deltas_above = matrix(buffers.per_sample, above, count, stride)
    deltas = matrix(buffers.delta, buffers.hidden[layer - 1], count, width)
    columns, indices, values = network.columns[layer], buffers.column_indices, buffers.column_values
    places, ends = buffers.column_places, buffers.column_bounds[:, tiles_of(count)]
    rows = max(4, 4 * BLOCK // stride)
    for unit in range(first, last):
        places[unit] = buffers.column_bounds[unit, 0]
    for top in range(0, count, rows):
        bottom = min(top + rows, count)
        for i in range(top, bottom):
            for unit in range(first, last):
                deltas[i, unit] = ZERO
        for unit in range(first, last):
            start, k, end = W + unit * stride, places[unit], ends[unit]
            row = w[start : start + columns]
            while k + 3 < end and indices[k + 3] < bottom:
                products = four_dots(
                    buffers.per_sample, above + indices[k] * stride,
                    above + indices[k + 1] * stride, above + indices[k + 2] * stride,
                    above + indices[k + 3] * stride, w, start, columns,
                )  # fmt: skip
                for n in range(4):
                    if values[k + n] > ZERO:
                        deltas[indices[k + n], unit] = products[n]
                k += 4
            while k < end and indices[k] < bottom:
                if values[k] > ZERO:
                    deltas[indices[k], unit] = dot(deltas_above[indices[k], :columns], row)
                k += 1
            places[unit] = k


@kernel
def quantise_columns(network, buffers, options, layer, count, first, last):
    """Quantise a hidden layer's deltas of the units `first` to `last` for the gradient."""
    o, stride = buffers.hidden[layer], network.stride[layer]
    deltas = matrix(buffers.delta, o, count, stride)
    per_unit = matrix(buffers.per_unit, o, count, stride)
    sums, anchors = np.zeros(last - first), np.zeros(last - first, np.float32)
    if options.quantise:
        add_wide_magnitudes(sums, deltas[:, first:last])
        for j in range(len(sums)):
            if not sums[j] < exact.DELTA_SUM_BOUND:
                fail(buffers.control, DELTAS_TOO_LARGE, layer)
            quantum = power_of_two_above(sums[j] / network.budget[layer])
            anchors[j] = ANCHOR32 * np.float32(quantum)
    for i in range(count):
        round_by_column(per_unit[i, first:last], deltas[i, first:last], anchors)


@exact_kernel
def add_wide_magnitudes(sums, rows):
    """Add the absolute values of all rows of a float32 matrix to float64 sums, four at a time."""
    four = len(rows) // 4 * 4
    for i in range(0, four, 4):
        a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for j in range(len(sums)):
            first = np.float64(abs(a[j])) + np.float64(abs(b[j]))
            sums[j] += first + (np.float64(abs(c[j])) + np.float64(abs(d[j])))
    for i in range(four, len(rows)):
        for j in range(len(sums)):
            sums[j] += np.float64(abs(rows[i, j]))


@kernel
def round_by_column(out, row, anchors):
    """Round a row, each column with an anchor of its own."""
    for j in range(len(row)):
        out[j] = (row[j] + anchors[j]) - anchors[j]


@kernel
def quantise_rows(network, parameters, buffers, options, layer, first, last):
    """Quantise a hidden layer's deltas of the samples `first` to `last` for the layer below."""
    o, stride = buffers.hidden[layer] + first * network.stride[layer], network.stride[layer]
    deltas = matrix(buffers.delta, o, last - first, stride)
    per_sample = matrix(buffers.per_sample, o, last - first, stride)
    row_sum = 0.0
    for rank in range(options.threads):
        row_sum = max(row_sum, parameters.row_sums[rank, layer])
    levels = 2.0**24 * parameters.quanta[layer] / power_of_two_above(row_sum)
    if options.quantise and not levels > 2.0:
        fail(buffers.control, WEIGHTS_TOO_LARGE, layer)
    for i in range(last - first):
        anchor = ZERO
        if options.quantise:
            quantum = power_of_two_above(np.float64(largest_magnitude(deltas[i]))) / levels
            anchor = ANCHOR32 * np.float32(max(quantum, exact.FINEST_ROW_QUANTUM))
        round_row(per_sample[i], deltas[i], anchor)


@kernel
def largest_magnitude(row):
    """Return the largest absolute value of a row.

    Without their signs, float32 numbers are in the order of their bits as integers, and of these
    the compiler takes many at a time. What is not a number is larger than all.
    """
    bits, largest = row.view(np.int32), np.int32(0)
    for j in range(len(bits)):
        largest = max(largest, bits[j] & np.int32(0x7FFFFFFF))
    return np.array([largest], np.int32).view(np.float32)[0]


@kernel
def round_row(out, row, anchor):
    """Round a row to a quantum, given its anchor."""
    for j in range(len(row)):
        out[j] = (row[j] + anchor) - anchor
