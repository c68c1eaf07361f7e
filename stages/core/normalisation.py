"""Batch normalisation (Ioffe and Szegedy 2015, algorithms 1 and 2), in exact arithmetic.

Of each unit's z, before its bias, the batch's mean is taken away, and the rest is divided by the
batch's standard deviation:

    z^ = (z - mean) / sqrt(variance + epsilon)        a = relu(z^ + b)

The bias is the paper's beta. Its gamma is left out: a ReLU passes a positive factor through, and
the next layer's weights can hold it. A trained network needs no batch: with averages of the
moments, `folded` turns z^ into ordinary weights and biases.

Exact sums. z is a whole number of steps, at most 2**24, as `stages.core.exact` proves of x @ W, and
a batch's part has at most 2**9 samples: in float64 their sum has 33 bits. For the squares z is
rounded to 16 steps, so that they have 40 bits and their sum 49. Errors dy, rounded by unit, add up
to at most 2**16 steps, and z^ is below sqrt(2**9) < 2**5 but for that rounding, so for this sum it
is cut off at 2**5: rounded to 2**-10 it makes 31 bits of it. All else is elementwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stages.core import Array
from stages.core.exact import Arithmetic, column_sums
from stages.core.network import Layer

EPSILON = 1e-5


class Moments(NamedTuple):
    """Each unit's mean and variance, (units,) float64 each."""

    mean: Array
    variance: Array

    @property
    def inverse_deviation(self) -> Array:
        """1 / sqrt(variance + epsilon), (units,)."""
        inverse: Array = 1.0 / np.sqrt(self.variance + EPSILON)
        return inverse


def moments_of(layer: int, z: Array, arithmetic: Arithmetic) -> Moments:
    """Return the moments of a layer's z (samples, units) over the samples, at most 512."""
    z = z.astype(np.float64)
    mean = column_sums(z) / len(z)
    z = arithmetic.round_for_squares(layer, z)
    variance = column_sums(z * z) / len(z) - (column_sums(z) / len(z)) ** 2
    return Moments(mean, np.maximum(variance, 0.0))


def normalise(z: Array, moments: Moments) -> Array:
    """Turn z (samples, units) into z^, in place."""
    np.copyto(z, (z - moments.mean) * moments.inverse_deviation, casting="same_kind")
    return z


def normalise_backward(
    dy: Array, by_unit: Array, normalised: Array, moments: Moments, arithmetic: Arithmetic
) -> None:
    """Turn the errors dy of z^ into those of z, in place.

    dz = (dy - mean(dy) - z^ mean(dy z^)) / sqrt(variance + epsilon), means over the samples.

    Args:
        dy: (samples, units).
        by_unit: dy rounded by unit, for the sums.
        normalised: z^, (samples, units).
        moments: those that z^ was made with.
        arithmetic: what is rounded on the way.
    """
    samples = len(dy)
    products = by_unit * arithmetic.round_normalised(normalised.astype(np.float64))
    mean = column_sums(by_unit).astype(np.float64) / samples
    slope = column_sums(products) / samples
    dz = (dy - mean - normalised * slope) * moments.inverse_deviation
    np.copyto(dy, arithmetic.round_errors(dz), casting="same_kind")


def folded(layers: Sequence[Layer], moments: Sequence[Moments]) -> list[Layer]:
    """Return layers that do without normalisation what these do with it and such moments.

    (x @ W - mean) / deviation + b = x @ (W / deviation) + (b - mean / deviation)
    """
    *hidden, last = layers
    plain = []
    for (W, b), found in zip(hidden, moments, strict=True):
        inverse = found.inverse_deviation
        plain.append(
            Layer((W * inverse).astype(W.dtype), (b - found.mean * inverse).astype(b.dtype))
        )
    return [*plain, last]
