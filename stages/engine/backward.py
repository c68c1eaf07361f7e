"""From the output layer's deltas to those of each thread's units, quantised for each product."""

from __future__ import annotations

from math import frexp, ldexp

import numpy as np

from stages.core import exact
from stages.engine.compiler import kernel
from stages.engine.forward import ANCHOR32, ANCHOR64
from stages.engine.parallel import DELTAS_TOO_LARGE, WEIGHTS_TOO_LARGE, fail
from stages.engine.products import (
    ZERO,
    add_magnitudes,
    dot,
    fill,
    matrix,
    tiles_of,
    units_of,
    widest,
)
from stages.engine.vectors import combine, eight_dots, float_of_bits

CACHED = 8192  # weights that the first cache holds
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
def output_to_hidden(network, w, buffers, count, rank):
    """Compute the last hidden layer's deltas of this thread's units."""
    output = len(network.inputs) - 1
    classes, stride = network.outputs[output], network.stride[output, rank]
    units = units_of(network, output - 1, rank)
    o, width = network.hidden[output - 1, rank], network.stride[output - 1, rank]
    W = matrix(w, network.W[output, rank], units, stride)
    deltas = matrix(buffers.delta, o, count, width)
    activations = matrix(buffers.activations, o, count, width)
    block, flat, left = buffers.wide_block[rank], buffers.logits.reshape(-1), 0
    while left < units:
        width = widest(units - left)
        right, products = min(left + width, units), classes * width
        for c in range(classes):
            for unit in range(left, right):
                block[c * width + unit - left] = W[unit, c]
        for i in range(count):
            begin = i * stride
            combine(
                width, block, products, block, 0, width, None, flat, begin, begin + classes, False
            )
            mask_deltas(
                deltas[i, left:right], activations[i, left:right],
                block[products : products + right - left],
            )  # fmt: skip
        left = right


@kernel
def mask_deltas(delta, activations, product):
    """Multiply with relu's derivative, as float32."""
    for j in range(len(delta)):
        delta[j] = np.float32(product[j]) if activations[j] > ZERO else ZERO


@kernel
def hidden_to_hidden(network, w, buffers, layer, count, rank):
    """Compute what this thread's units of a hidden layer add to the deltas of the layer below.

    Only active units get deltas. A few rows of W at a time, as many as the first cache holds, meet
    all samples.
    """
    W, stride = network.W[layer, rank], network.stride[layer, rank]
    columns, above = network.columns[layer, rank], network.hidden[layer, rank]
    indices, places, deltas = buffers.indices, buffers.places[rank], buffers.per_sample
    at_once = max(8, CACHED // stride)
    for other in range(len(buffers.partial)):
        bounds = buffers.bounds[layer, other]
        first, last = network.edges[layer - 1, other], network.edges[layer - 1, other + 1]
        o = network.hidden[layer - 1, other] - network.hidden[layer - 1, 0]
        partial = matrix(buffers.partial[rank], o, count, network.stride[layer - 1, other])
        tiles = tiles_of(last - first)
        for i in range(count):
            places[i] = bounds[i, 0]
        for left in range(first, last, at_once):
            for i in range(count):
                k, end, row = places[i], bounds[i, tiles], above + i * stride
                while k + 7 < end and indices[k] < left + at_once:
                    products = eight_dots(w, indices, k, W, stride, deltas, row, columns)
                    for n in range(8):
                        partial[i, indices[k + n] - first] = products[n]
                    k += 8
                places[i] = k
        for i in range(count):
            row = above + i * stride
            for k in range(places[i], bounds[i, tiles]):
                start = W + indices[k] * stride
                product = dot(w[start : start + columns], deltas[row : row + columns])
                partial[i, indices[k] - first] = product


@kernel
def add_partial_deltas(network, buffers, layer, count, rank):
    """Compute the deltas of this thread's units of a hidden layer from what all threads found."""
    units = units_of(network, layer, rank)
    o, width = network.hidden[layer, rank], network.stride[layer, rank]
    deltas = matrix(buffers.delta, o, count, width)
    activations = matrix(buffers.activations, o, count, width)
    for other in range(len(buffers.partial)):
        partial = matrix(buffers.partial[other], o - network.hidden[layer, 0], count, width)
        for i in range(count):
            if other == 0:
                mask_deltas(deltas[i, :units], activations[i], partial[i])
            else:
                add_deltas(deltas[i, :units], activations[i], partial[i])


@kernel
def add_deltas(delta, activations, product):
    """Add to deltas what `mask_deltas` would set them to."""
    for j in range(len(delta)):
        delta[j] += product[j] if activations[j] > ZERO else ZERO


@kernel
def quantise_columns(network, buffers, options, layer, count, rank):
    """Quantise a hidden layer's deltas of this thread's units for the gradient."""
    o, stride = network.hidden[layer, rank], network.stride[layer, rank]
    deltas = matrix(buffers.delta, o, count, stride)
    per_unit = matrix(buffers.per_unit, o, count, stride)
    sums, anchors = buffers.wide_block[rank, :stride], buffers.block[rank, :stride]
    fill(sums, 0, stride, 0.0)
    fill(anchors, 0, stride, ZERO)
    if options.quantise:
        add_magnitudes(sums, deltas)
        for j in range(stride):
            if not sums[j] < exact.DELTA_SUM_BOUND:
                fail(buffers.control, DELTAS_TOO_LARGE, layer)
            quantum = power_of_two_above(sums[j] / network.budget[layer])
            anchors[j] = ANCHOR32 * np.float32(quantum)
    for i in range(count):
        round_by_column(per_unit[i], deltas[i], anchors)


@kernel
def round_by_column(out, row, anchors):
    """Round a row, each column with an anchor of its own."""
    for j in range(len(row)):
        out[j] = (row[j] + anchors[j]) - anchors[j]


@kernel
def find_maxima(network, buffers, layer, count, rank):
    """Find the largest absolute delta of this thread's units, for each sample."""
    stride = network.stride[layer, rank]
    deltas = matrix(buffers.delta, network.hidden[layer, rank], count, stride)
    for i in range(count):
        buffers.row_maxima[rank, i] = largest_magnitude(deltas[i])


@kernel
def quantise_rows(network, parameters, buffers, options, layer, count, rank):
    """Quantise a hidden layer's deltas of this thread's units for the layer below."""
    o, stride = network.hidden[layer, rank], network.stride[layer, rank]
    deltas = matrix(buffers.delta, o, count, stride)
    per_sample = matrix(buffers.per_sample, o, count, stride)
    row_sum = 0.0
    for row in range(network.inputs[layer]):
        total = 0.0
        for other in range(options.threads):
            total += parameters.row_sums[other, layer, row]
        row_sum = max(row_sum, total)
    levels = 2.0**24 * parameters.quanta[layer] / power_of_two_above(row_sum)
    if options.quantise and not levels > 2.0:
        fail(buffers.control, WEIGHTS_TOO_LARGE, layer)
    for i in range(count):
        anchor = ZERO
        if options.quantise:
            largest = ZERO
            for other in range(options.threads):
                largest = max(largest, buffers.row_maxima[other, i])
            quantum = power_of_two_above(np.float64(largest)) / levels
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
    return float_of_bits(largest)


@kernel
def round_row(out, row, anchor):
    """Round a row to a quantum, given its anchor."""
    for j in range(len(row)):
        out[j] = (row[j] + anchor) - anchor
