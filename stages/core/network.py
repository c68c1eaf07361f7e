"""The network: fully connected layers, ReLU between them, softmax and cross-entropy at the end.

Arrays are batch-major: a row a sample. Layer l (from 1 to L) computes, with a_0 = x,

    z_l = a_{l-1} @ W_l + b_l        a_l = relu(z_l)        (the last layer: logits = z_L)

and the chain rule runs backwards from the mean cross-entropy C of a batch of m samples:

    dz_L = softmax(z_L) - one_hot(y)             errors of the output layer, m dC/dz_L
    dz_l = (dz_{l+1} @ W_{l+1}.T) * (a_l > 0)    errors of a hidden layer
    dW_l = a_{l-1}.T @ dz_l / m                  db_l = sum of dz_l's rows / m

Products and elementwise functions can write into `out` instead of a new array, and every sum can be
exact: what `arithmetic` rounds, and why, stands in `stages.core.exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from stages.core import Array
from stages.core.elementary import log
from stages.core.exact import LARGEST_PART, PIXELS, Arithmetic, Exact


class Layer(NamedTuple):
    """One layer's parameters: `W` (inputs, outputs) and `b` (outputs,)."""

    W: Array
    b: Array


Parameters = Sequence[Layer]


def initialise(
    sizes: Sequence[int], initialisation: str, generator: np.random.Generator
) -> list[Layer]:
    """Draw the starting weights, float32, uniform between -r and r.

    Args:
        sizes: units of every layer, the inputs first.
        initialisation: `he`: r = sqrt(6 / inputs) (He et al. 2015, eq. 10), biases 0;
            `glorot`: r = sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010, eq. 16), biases 0;
            `uniform`: r = 1/2, biases too (the notebook's).
        generator: the source of uniform numbers, which are the same on every machine.
    """

    def uniform(bound: float, *shape: int) -> Array:
        return ((2.0 * generator.random(shape) - 1.0) * bound).astype(np.float32)

    layers = []
    for inputs, outputs in pairwise(sizes):
        if initialisation == "uniform":
            layers.append(Layer(uniform(0.5, inputs, outputs), uniform(0.5, outputs)))
            continue
        fan = inputs if initialisation == "he" else inputs + outputs
        bound = float(np.sqrt(6.0 / fan))
        layers.append(Layer(uniform(bound, inputs, outputs), np.zeros(outputs, np.float32)))
    return layers


def linear(x: Array, W: Array, b: Array, out: Array | None = None) -> Array:
    """Return z = x @ W + b, (samples, outputs)."""
    z = np.matmul(x, W, out=out)
    z += b
    return z


def relu(z: Array, ceiling: float = np.inf, out: Array | None = None) -> Array:
    """Return max(z, 0), elementwise, and at most `ceiling`."""
    return z.clip(0.0, ceiling, out=out)


def relu_derivative(a: Array) -> Array:
    """Return d relu(z) / dz, from a = relu(z): 1 where the unit is on, 0 where it is off."""
    return a > 0


def one_hot(labels: Array, classes: int) -> Array:
    """Return (samples, classes): 1 in the column of the sample's label, 0 elsewhere."""
    return np.eye(classes)[labels]


def smoothed(targets: Array, smoothing: float) -> Array:
    """Return targets with a part of each class's certainty shared out over all classes.

    (1 - smoothing) * target + smoothing / classes (Szegedy et al. 2016, section 7).
    """
    spread: Array = (1.0 - smoothing) * targets + smoothing / targets.shape[1]
    return spread


class Exponentials(NamedTuple):
    """The pieces of softmax and log-softmax, a row a sample.

    `shifted` is z - max z, `e` is e**shifted, both (samples, classes); `total` is the row sum of
    `e`, (samples, 1). Subtracting the row's own maximum keeps every `e` between 0 and 1, with at
    least one 1, so that nothing overflows and no total is 0.
    """

    shifted: Array
    e: Array
    total: Array


def exponentials(logits: Array, arithmetic: Arithmetic) -> Exponentials:
    """Return the pieces of softmax(logits)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    e = arithmetic.round_exponentials(arithmetic.exp(shifted))
    return Exponentials(shifted, e, e.sum(axis=1, keepdims=True))


def softmax(logits: Array, arithmetic: Arithmetic) -> Array:
    """Return e**z / (sum of e**z), a row a sample."""
    pieces = exponentials(logits, arithmetic)
    probabilities: Array = pieces.e / pieces.total
    return probabilities


def log_softmax(logits: Array, arithmetic: Arithmetic) -> Array:
    """Return log(softmax(z)) = z - max z - log(sum of e**(z - max z)), a row a sample."""
    pieces = exponentials(logits, arithmetic)
    logarithms: Array = pieces.shifted - log(pieces.total)
    return logarithms


def cross_entropy(logits: Array, labels: Array, arithmetic: Arithmetic) -> Array:
    """Return each sample's loss, -log of the probability given to its label: (samples,)."""
    return -log_softmax(logits, arithmetic)[np.arange(len(labels)), labels]


def cross_entropy_derivative(
    probabilities: Array, targets: Array, out: Array | None = None
) -> Array:
    """Return dC/dz of each sample's cross-entropy C: softmax(z) - one_hot(y).

    Args:
        probabilities: softmax(z), (samples, classes).
        targets: one_hot(y), (samples, classes), smoothed or not.
        out: where to write.
    """
    return np.subtract(probabilities, targets, out=out)


class Pass(NamedTuple):
    """What `forward` finds for a batch.

    `activations` are [x, a_1, ..., a_{L-1}], what enters each layer, (samples, inputs) each;
    `logits` are z_L, (samples, classes), in the output layer's wider type.
    """

    activations: list[Array]
    logits: Array


def forward(parameters: Parameters, x: Array, arithmetic: Arithmetic) -> Pass:
    """Compute every layer's output for a batch.

    Args:
        parameters: the layers, weights on their grids.
        x: (samples, inputs).
        arithmetic: what is rounded on the way.
    """
    activations = [x]
    for layer, (W, b) in enumerate(parameters[:-1], start=1):
        a = relu(linear(activations[-1], W, b), arithmetic.ceiling(layer))
        activations.append(arithmetic.round_activations(layer, a))
    (W, b), wide = parameters[-1], arithmetic.wide
    return Pass(activations, linear(activations[-1].astype(wide), W.astype(wide), b))


def backward(
    parameters: Parameters, activations: Sequence[Array], dz: Array, arithmetic: Arithmetic
) -> list[Array]:
    """Carry the errors of the output layer back to every hidden layer.

    dz_l = (dz_{l+1} @ W_{l+1}.T) * relu'(z_l). Not divided by the batch's size. No error is
    computed for the inputs, which nothing needs.

    Args:
        parameters: the layers.
        activations: what entered each layer.
        dz: dz_L, (samples, classes).
        arithmetic: what is rounded on the way.

    Returns:
        [dz_1, ..., dz_L].
    """
    errors = [dz]
    for layer in range(len(parameters) - 1, 0, -1):
        dz = arithmetic.errors_by_sample(layer, errors[0])
        W = parameters[layer].W.astype(dz.dtype, copy=False)
        dz = (dz @ W.T).astype(arithmetic.narrow, copy=False)
        errors.insert(0, dz * relu_derivative(activations[layer]))
    return errors


def gradient(x: Array, dz: Array, out: Array | None = None) -> Array:
    """Return m dC/dW = x.T @ dz, (inputs, outputs), summed over the m samples."""
    return np.matmul(x.T, dz, out=out)


class Score(NamedTuple):
    """How many of `samples` samples the network gets right, and their losses' sum."""

    samples: int
    correct: int
    loss_sum: float

    @property
    def accuracy(self) -> float:
        """The part that is right."""
        return self.correct / self.samples

    @property
    def error_rate(self) -> float:
        """The part that is wrong."""
        return (self.samples - self.correct) / self.samples

    @property
    def loss(self) -> float:
        """The mean cross-entropy."""
        return self.loss_sum / self.samples


def on_grids(parameters: Parameters) -> tuple[list[Layer], Exact]:
    """Return the layers with their weights on exact grids, and the arithmetic for them.

    Weights that came out of training are on their grids already and stay as they are.

    Raises:
        ExactnessError: a weight is not finite or too large.
    """
    arithmetic = Exact([W for W, _ in parameters])
    layers = [
        Layer(arithmetic.round_weights(number, W), b) for number, (W, b) in enumerate(parameters)
    ]
    return layers, arithmetic


def logits_of(parameters: Parameters, x: Array, arithmetic: Arithmetic) -> Array:
    """Return the logits (samples, classes) of any number of images, x (samples, 784) uint8."""
    logits: Array = np.empty((len(x), len(parameters[-1].b)), arithmetic.wide)
    for start in range(0, len(x), LARGEST_PART):
        part = slice(start, start + LARGEST_PART)
        batch = np.multiply(x[part], PIXELS.grid, dtype=arithmetic.narrow)
        logits[part] = forward(parameters, batch, arithmetic).logits
    return logits


def score(parameters: Parameters, x: Array, y: Array, arithmetic: Arithmetic) -> Score:
    """Score the network on images x (samples, 784) uint8 with labels y (samples,)."""
    logits = logits_of(parameters, x, arithmetic)
    loss_sum = arithmetic.loss_sum(cross_entropy(logits, y, arithmetic))
    correct = int((predict(logits) == y).sum())
    return Score(len(x), correct, loss_sum)


def predict(logits: Array) -> Array:
    """Return each sample's most probable class, the lower one of a tie: (samples,)."""
    classes: Array = logits.argmax(axis=1)
    return classes
