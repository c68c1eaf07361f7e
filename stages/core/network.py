"""The network: fully connected layers, ReLU between them, softmax and cross-entropy at the end.

Arrays are batch-major: one row per sample. Layer l (from 1 to L) computes, with a_0 = x,

    z_l = a_{l-1} @ W_l + b_l        a_l = relu(z_l)        (the last layer: logits = z_L)

and the chain rule runs backwards from the mean cross-entropy C of a batch of m samples:

    delta_L = softmax(z_L) - one_hot(y)                    deltas of the output layer, m dC/dz_L
    delta_l = (delta_{l+1} @ W_{l+1}.T) * relu'(z_l)       deltas of a hidden layer
    dW_l = a_{l-1}.T @ delta_l / m                         db_l = sum of delta_l's rows / m

Every value that enters a sum is quantised first, by `arithmetic`, so that the sum is exact and its
order cannot matter. `stages.core.exact` says how and proves it; with its `Plain` arithmetic nothing
is quantised and what remains are the formulas above.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stages.core import Array
from stages.core.elementary import log
from stages.core.exact import Arithmetic


class Layer(NamedTuple):
    """One layer's parameters, or their gradients: `W` (inputs, outputs) and `b` (outputs,)."""

    W: Array
    b: Array


Parameters = Sequence[Layer]


def relu(z: Array, saturation: float = np.inf) -> Array:
    """Return max(z, 0) elementwise, at most `saturation`."""
    return z.clip(0.0, saturation)


def relu_derivative(a: Array) -> Array:
    """Return d relu(z) / dz from a = relu(z): 1 where the unit is active, else 0."""
    return a > 0


def one_hot(labels: Array, classes: int, label_smoothing: float = 0.0) -> Array:
    """Return targets (samples, classes): 1 in the column of the sample's label, 0 elsewhere.

    Label smoothing spreads a part of that 1 evenly over all classes:
    (1 - label_smoothing) * target + label_smoothing / classes (Szegedy et al. 2016, section 7).
    """
    targets: Array = (1.0 - label_smoothing) * np.eye(classes)[labels] + label_smoothing / classes
    return targets


class SoftmaxTerms(NamedTuple):
    """The terms of softmax and log-softmax, one row per sample.

    `shifted` is z - max z and `exponentials` is e**shifted, both (samples, classes); `total` is
    the row sum of `exponentials`, (samples, 1). Subtracting the row's own maximum keeps every
    exponential between 0 and 1, with at least one 1: nothing overflows and no total is 0.
    """

    shifted: Array
    exponentials: Array
    total: Array


def softmax_terms(logits: Array, arithmetic: Arithmetic) -> SoftmaxTerms:
    """Return the terms of softmax(logits)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = arithmetic.quantise_exponentials(arithmetic.exp(shifted))
    return SoftmaxTerms(shifted, exponentials, exponentials.sum(axis=1, keepdims=True))


def softmax(terms: SoftmaxTerms) -> Array:
    """Return e**z / (sum of e**z), (samples, classes)."""
    probabilities: Array = terms.exponentials / terms.total
    return probabilities


def cross_entropy(terms: SoftmaxTerms, labels: Array) -> Array:
    """Return each sample's loss, (samples,): -log of the probability of its label.

    log(softmax(z)) = z - max z - log(sum of e**(z - max z)).
    """
    losses: Array = log(terms.total[:, 0]) - terms.shifted[np.arange(len(labels)), labels]
    return losses


def cross_entropy_derivative(probabilities: Array, targets: Array) -> Array:
    """Return dC/dz of the cross-entropy C, (samples, classes): softmax(z) - one_hot(y)."""
    return probabilities - targets


class ForwardPass(NamedTuple):
    """What `forward` computes for a batch.

    `activations` are [x, a_1, ..., a_{L-1}], the inputs of each layer, (samples, inputs) each;
    `logits` are z_L, (samples, classes).
    """

    activations: list[Array]
    logits: Array


def forward(
    parameters: Parameters, x: Array, arithmetic: Arithmetic, masks: Sequence[Array] = ()
) -> ForwardPass:
    """Compute every layer's output for a batch.

    Args:
        parameters: the layers, W quantised.
        x: inputs (samples, inputs), a pixel entering as its value / 256.
        arithmetic: how values are quantised.
        masks: for each hidden layer, (samples, units) which units dropout keeps; none: all.
    """
    activations = [x]
    for layer, (W, b) in enumerate(parameters[:-1], start=1):
        a = relu(activations[-1] @ W + b, arithmetic.saturation(layer))
        a = arithmetic.quantise_activations(layer, a)
        activations.append(a * masks[layer - 1] if masks else a)
    W, b = parameters[-1]
    dtype = arithmetic.accumulate_dtype
    return ForwardPass(activations, activations[-1].astype(dtype) @ W.astype(dtype) + b)


def backward(
    parameters: Parameters, activations: Sequence[Array], delta: Array, arithmetic: Arithmetic
) -> list[Layer]:
    """Return the gradients of every layer's W and b, summed over the samples.

    Args:
        parameters: the layers, W quantised.
        activations: the inputs of each layer.
        delta: delta_L, (samples, classes), quantised.
        arithmetic: how values are quantised. For each of the two products a delta enters, it is
            quantised anew: per column for the gradient, per row for the deltas one layer down.
    """
    gradients: list[Layer] = []
    for layer in reversed(range(len(parameters))):
        a = activations[layer].astype(delta.dtype)
        per_unit = arithmetic.quantise_columns(layer, delta)
        gradients.insert(0, Layer(*arithmetic.all_reduce(a.T @ per_unit, per_unit.sum(axis=0))))
        if layer > 0:
            per_sample = arithmetic.quantise_rows(layer, delta)
            delta = (per_sample @ parameters[layer].W.T.astype(delta.dtype)) * relu_derivative(a)
            delta = delta.astype(arithmetic.compute_dtype)
    return gradients


def quantised(parameters: Parameters, arithmetic: Arithmetic) -> list[Layer]:
    """Return the layers with each W quantised, as `forward` and `backward` take them.

    Raises:
        ExactnessError: a weight is not finite, or an output weight is too large.
    """
    weights = arithmetic.quantise_weights([W for W, _ in parameters])
    return [Layer(W, b) for W, (_, b) in zip(weights, parameters, strict=True)]


def losses_and_gradients(
    parameters: Parameters, x: Array, labels: Array, targets: Array, arithmetic: Arithmetic,
    masks: Sequence[Array] = (),
) -> tuple[Array, list[Layer]]:  # fmt: skip
    """Return each sample's loss (samples,) and the gradients of their sum.

    Args:
        parameters: the layers, W quantised.
        x: inputs (samples, inputs) of at most 512 samples.
        labels: (samples,) their classes.
        targets: (classes, classes), the probabilities to learn for each label.
        arithmetic: how values are quantised.
        masks: the units that dropout keeps.
    """
    activations, logits = forward(parameters, x, arithmetic, masks)
    terms = softmax_terms(logits, arithmetic)
    delta = cross_entropy_derivative(softmax(terms), targets[labels])
    delta = arithmetic.quantise_output_deltas(delta)
    return cross_entropy(terms, labels), backward(parameters, activations, delta, arithmetic)
