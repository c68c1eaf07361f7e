"""The update of `Descent`, and the quanta of the weights, over any rows of a thread's part."""

from __future__ import annotations

import numpy as np

from stages.core.optimizers import Adam
from stages.engine.backward import round_row
from stages.engine.compiler import exact_kernel, kernel
from stages.engine.forward import ANCHOR32
from stages.engine.parallel import RUNNING, WEIGHTS_TOO_LARGE, barrier, fail
from stages.engine.products import ZERO, add_magnitudes, copy, fill, matrix, units_of

SGD, NESTEROV, ADAM = range(3)
BETA1, BETA2, EPSILON = np.float32(Adam.beta1), np.float32(Adam.beta2), np.float32(Adam.epsilon)
REST1, REST2 = np.float32(1.0 - Adam.beta1), np.float32(1.0 - Adam.beta2)


@kernel
def momentum_update(w, gradient, velocity, rate, momentum):
    """`Momentum.update`."""
    for j in range(len(w)):
        velocity[j] = velocity[j] * momentum - gradient[j] * rate
        w[j] += velocity[j]


@kernel
def nesterov_update(w, gradient, velocity, rate, momentum):
    """`Momentum.update`, Nesterov's form."""
    for j in range(len(w)):
        change = gradient[j] * rate
        velocity[j] = velocity[j] * momentum - change
        w[j] = (w[j] - change) + velocity[j] * momentum


@kernel
def adam_update(w, gradient, m, v, rate, mean):
    """`Adam.update`."""
    for j in range(len(w)):
        g = gradient[j] * mean
        m[j] = m[j] * BETA1 + g * REST1
        v[j] = v[j] * BETA2 + g * g * REST2
        w[j] -= m[j] / (np.sqrt(v[j]) + EPSILON) * rate


@kernel
def add_penalty(gradient, w, penalty):
    """Add the gradient of L2."""
    for j in range(len(w)):
        gradient[j] += w[j] * penalty


@kernel
def shrink_weights(w, factor):
    """Decay the weights."""
    for j in range(len(w)):
        w[j] *= factor


@kernel
def move_average(average, w, blend):
    """Move the exponential moving average."""
    for j in range(len(w)):
        average[j] += (w[j] - average[j]) * blend


@kernel
def update(parameters, gradient, options, plan, n, start, stop, weights):
    """Take one step with the parameters from offset `start` to `stop`: `Descent.update`.

    `gradient` is theirs, and used up; `n` is the micro-batch that ends the batch; only weights
    have a penalty and shrink.
    """
    w = parameters.w[start:stop]
    slot0, slot1 = parameters.slot0[start:stop], parameters.slot1[start:stop]
    if weights and options.l2:
        add_penalty(gradient, w, plan.penalty[n])
    if weights and options.weight_decay:
        shrink_weights(w, plan.shrink[n])
    if options.optimizer == ADAM:
        adam_update(w, gradient, slot0, slot1, plan.rate[n], plan.mean[n])
    elif options.optimizer == NESTEROV:
        nesterov_update(w, gradient, slot0, plan.rate[n], options.momentum)
    else:
        momentum_update(w, gradient, slot0, plan.rate[n], options.momentum)
    if options.average:
        move_average(parameters.average[start:stop], w, plan.blend[n])
    if not weights:
        copy(parameters.quantised[start:stop], w)


@kernel
def rows_of(network, layer, rank):
    """Return how many rows of a layer's W this thread has a part of."""
    if layer < len(network.inputs) - 1:
        return network.inputs[layer]
    return units_of(network, layer - 1, rank)


@kernel
def quantise_weights(network, parameters, options, layer, rank, first, last):
    """Quantise the rows `first` to `last` of this thread's part of a layer's W.

    Their absolute values are added to the sums over each column.
    """
    stride = network.stride[layer, rank]
    start = network.W[layer, rank] + first * stride
    stop = network.W[layer, rank] + last * stride
    anchor = ZERO
    if options.quantise:
        anchor = ANCHOR32 * np.float32(parameters.quanta[layer])
    round_row(parameters.quantised[start:stop], parameters.w[start:stop], anchor)
    if not options.quantise:
        return
    rows = matrix(parameters.quantised, start, last - first, stride)
    add_magnitudes(parameters.column_sums[rank, layer, :stride], rows)
    if 0 < layer < len(network.inputs) - 1:
        for row in range(len(rows)):
            parameters.row_sums[rank, layer, first + row] = row_magnitude(rows[row])


@exact_kernel
def row_magnitude(row):
    """Return the sum of the absolute values of a row."""
    total = 0.0
    for j in range(len(row)):
        total += np.float64(abs(row[j]))
    return total


@kernel
def clear_sums(network, parameters, layer, rank):
    """Begin new sums of a layer's absolute weights."""
    fill(parameters.column_sums[rank, layer], 0, network.stride[layer, rank], ZERO)


@kernel
def check_bounds(network, parameters, buffers, options, layer, rank):
    """Note whether a column of this thread's part of a hidden layer's W exceeds its bound."""
    bound = network.weight_bound[layer] * parameters.quanta[layer]
    exceeded = False
    if options.quantise and layer < len(network.inputs) - 1:
        for unit in range(units_of(network, layer, rank)):
            total = np.float64(parameters.column_sums[rank, layer, unit])
            if not total <= bound:
                exceeded = True
                if not total < np.inf:
                    fail(buffers.control, WEIGHTS_TOO_LARGE, layer)
    parameters.exceeded[rank, layer] = exceeded


@kernel
def quantise_layer(network, parameters, buffers, options, layer, rank):
    """Quantise all of this thread's part of a layer's W, and note whether its bounds hold."""
    clear_sums(network, parameters, layer, rank)
    rows = rows_of(network, layer, rank)
    quantise_weights(network, parameters, options, layer, rank, 0, rows)
    check_bounds(network, parameters, buffers, options, layer, rank)


@kernel
def check_output_bounds(network, parameters, buffers, options):
    """Fail if a column of the output layer's W exceeds its bound."""
    output = len(network.inputs) - 1
    bound = network.weight_bound[output] * parameters.quanta[output]
    for c in range(network.outputs[output]):
        total = 0.0
        for other in range(options.threads):
            total += np.float64(parameters.column_sums[other, output, c])
        if not total <= bound:
            fail(buffers.control, WEIGHTS_TOO_LARGE, output)


@kernel
def exceeds(parameters, options, layer):
    """Return whether any thread's part of a layer's W has a column that exceeds its bound."""
    exceeded = False
    for rank in range(options.threads):
        exceeded |= parameters.exceeded[rank, layer]
    return exceeded


@kernel
def enforce_bounds(network, parameters, buffers, options, rank):
    """Coarsen the weights' quanta until their bounds hold: `Exact.quantise_weights`.

    Every thread sees the same flags and so decides the same.
    """
    if not options.quantise:
        return
    check_output_bounds(network, parameters, buffers, options)
    output = len(network.inputs) - 1
    while True:
        exceeded = False
        for layer in range(output):
            exceeded |= exceeds(parameters, options, layer)
        if not exceeded or barrier(buffers.control, options.threads) != RUNNING:
            return
        for layer in range(output):
            if rank == 0 and exceeds(parameters, options, layer):
                parameters.quanta[layer] *= 2.0
        if barrier(buffers.control, options.threads) != RUNNING:
            return
        # All of them, since the flags that say which are being written again.
        for layer in range(output):
            quantise_layer(network, parameters, buffers, options, layer, rank)
        if barrier(buffers.control, options.threads) != RUNNING:
            return
