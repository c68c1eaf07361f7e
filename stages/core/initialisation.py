"""The initial parameters of a network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from stages.core import Array
from stages.core.network import Layer


def initialise(
    sizes: Sequence[int],
    initialisation: str,
    generator: np.random.Generator,
    dtype: type = np.float32,
) -> list[Layer]:
    """Draw the initial parameters, rounded to float32, uniform between -r and r.

    Args:
        sizes: units of every layer, the inputs first.
        initialisation: `he`: r = sqrt(6 / inputs) (He et al. 2015, eq. 10), biases 0;
            `glorot`: r = sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010, eq. 16), biases 0;
            `uniform`: r = 1/2, biases too (the notebook's).
        generator: source of uniform numbers, the same on every machine.
        dtype: of the arrays.
    """

    def uniform(bound: float, *shape: int) -> Array:
        return ((2.0 * generator.random(shape) - 1.0) * bound).astype(np.float32).astype(dtype)

    layers = []
    for inputs, outputs in pairwise(sizes):
        if initialisation == "uniform":
            layers.append(Layer(uniform(0.5, inputs, outputs), uniform(0.5, outputs)))
            continue
        fan = inputs if initialisation == "he" else inputs + outputs
        bound = float(np.sqrt(6.0 / fan))
        layers.append(Layer(uniform(bound, inputs, outputs), np.zeros(outputs, dtype)))
    return layers
