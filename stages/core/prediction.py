"""What a trained network makes of images: logits, classes, probabilities, accuracy and loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core import Array
from stages.core.config import TrainConfig
from stages.core.data import require_pixels
from stages.core.exact import LARGEST_MICRO_BATCH, PIXELS, Arithmetic, Exact
from stages.core.network import (
    Layer,
    Parameters,
    cross_entropy,
    forward,
    quantised,
    softmax,
    softmax_terms,
)


def quantise(parameters: Parameters) -> tuple[list[Layer], Exact]:
    """Return the layers with exact sums ahead, W quantised, and the arithmetic for them.

    Trained parameters are quantised already and stay as they are.

    Raises:
        ExactnessError: a weight is not finite or too large.
    """
    arithmetic = Exact(len(parameters))
    return quantised(parameters, arithmetic), arithmetic


def logits_of(parameters: Parameters, images: Array, arithmetic: Arithmetic) -> Array:
    """Return the logits (samples, classes) of any number of images.

    Args:
        parameters: the layers, W quantised.
        images: (samples, height, width) or (samples, pixels) uint8; a pixel enters as value / 256.
        arithmetic: how values are quantised.

    Raises:
        TypeError: the images are not uint8.
    """
    require_pixels(images)
    x = images.reshape(len(images), -1)
    logits: Array = np.empty((len(x), len(parameters[-1].b)), arithmetic.accumulate_dtype)
    for start in range(0, len(x), LARGEST_MICRO_BATCH):
        part = slice(start, start + LARGEST_MICRO_BATCH)
        batch = np.multiply(x[part], PIXELS.quantum, dtype=arithmetic.compute_dtype)
        logits[part] = forward(parameters, batch, arithmetic).logits
    return logits


def predict(logits: Array) -> Array:
    """Return each sample's most probable class, the lowest of a tie: (samples,)."""
    classes: Array = logits.argmax(axis=1)
    return classes


class Classification(NamedTuple):
    """Each image's most probable class (samples,) and all probabilities (samples, classes)."""

    classes: Array
    probabilities: Array


def classify(parameters: Parameters, images: Array) -> Classification:
    """Classify images (samples, height, width) uint8, white ink on black paper as in MNIST.

    Raises:
        TypeError: the images are not uint8.
        ExactnessError: a parameter is not finite or too large.
    """
    layers, arithmetic = quantise(parameters)
    logits = logits_of(layers, images, arithmetic)
    return Classification(predict(logits), softmax(softmax_terms(logits, arithmetic)))


class Score(NamedTuple):
    """How many of `samples` images are classified correctly, and the sum of their losses."""

    samples: int
    correct: int
    loss_sum: float

    @property
    def accuracy(self) -> float:
        """The fraction classified correctly."""
        return self.correct / self.samples

    @property
    def error_rate(self) -> float:
        """The fraction classified wrongly."""
        return (self.samples - self.correct) / self.samples

    @property
    def loss(self) -> float:
        """The mean cross-entropy."""
        return self.loss_sum / self.samples


def score(parameters: Parameters, images: Array, labels: Array, arithmetic: Arithmetic) -> Score:
    """Score the network on images (samples, height, width) uint8 with labels (samples,).

    Raises:
        TypeError: the images are not uint8.
        ExactnessError: the losses are not finite, or their sum is too large.
    """
    own = arithmetic.shard(len(images))
    logits = logits_of(parameters, images[own], arithmetic)
    loss_sum = arithmetic.loss_sum(cross_entropy(softmax_terms(logits, arithmetic), labels[own]))
    (correct,) = arithmetic.all_reduce((predict(logits) == labels[own]).sum())
    return Score(len(images), int(correct), loss_sum)


def parameters_to_score(
    layers: Parameters, config: TrainConfig, arithmetic: Arithmetic
) -> tuple[list[Layer], Arithmetic]:
    """Return an epoch's parameters, or their average, as they are scored and kept.

    After dropout, the weights that leave hidden units are scaled to all units being present.
    """
    factors = [1.0] + [1.0 - config.dropout] * len(config.hidden_sizes)
    scaled = [Layer(W * f, b.copy()) for (W, b), f in zip(layers, factors, strict=True)]
    fresh = arithmetic.fresh()
    return quantised(scaled, fresh), fresh
