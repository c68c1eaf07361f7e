"""Exact arithmetic: sums whose bits depend on no order, and so on no machine.

A floating-point sum depends on its order, and the order depends on the BLAS kernel, the CPU and
the number of threads. But a sum that is never rounded has no order. So every number that enters
a sum here is first quantised: rounded to a multiple of a power of two, its quantum, coarse enough
that the sum needs no rounding at all.

The proof. Let every left factor be a multiple of g, every right factor a multiple of h (powers
of two), and let the sum of |left * right| be at most 2**p * g * h, where p is the number of
significant bits (24 in float32, 53 in float64). Then each product and each partial sum, in
whatever order and grouping, fused or not, is an integer multiple of g * h of magnitude at most
2**p * g * h. The format holds every such number, so no operation rounds, and every order gives the
true sum. Elementwise operations need no such care: IEEE 754 defines their results to the last
bit. (A sum of zeros may still be +0 or -0; the rounding that follows makes either +0.)

The budgets. The two factors of a float32 product share 24 bits: what one uses, the other cannot.
The inputs of a layer, pixels or activations, have `levels` multiples of their quantum; `budget` =
2**24 / levels is what is left for the other factor, in multiples of its own quantum.

| numbers                   | quantum                   | bound, as a value or in quanta           |
|---------------------------|---------------------------|------------------------------------------|
| pixels                    | 2**-8                     | below 1: 2**8 levels                     |
| activations               | 2**-5                     | below 16: 2**9 levels                    |
| activations, last hidden  | 2**-16                    | below 32: 2**21 levels                   |
| weights W                 | one per layer, >= 2**-12  | sum over i of abs(W_ij) <= budget        |
| weights W, output layer   | 2**-14                    | sum over i of abs(W_ij) <= 2**8          |
| deltas, for a.T @ delta   | one per unit j            | sum over s of abs(delta_sj) <= budget    |
| deltas, for delta @ W.T   | one per sample, >= 2**-24 | abs(delta_sj) R <= 2**24 quanta of both, |
|                           |                           | R the largest sum over j of abs(W_ij)    |
| deltas, output layer      | 2**-20                    | at most 1, their sum for a sample 2      |
| exponentials of softmax   | 2**-48, or 2**-47 if more | at most 1, at most 2**5 classes; if more |
|                           |                           | at most 2**6                             |
| losses                    | 2**-20                    | checked: their sum at most 2**33         |

| sum                       | format  | exact because                                              |
|---------------------------|---------|------------------------------------------------------------|
| a @ W                     | float32 | levels of a * budget = 2**24                               |
| a.T @ delta               | float32 | levels of a * budget = 2**24                               |
| delta @ W.T               | float32 | by the bound on delta                                      |
| a @ W, output layer       | float64 | 2**21 levels * 2**22 quanta = 2**43                        |
| a.T @ delta, output layer | float64 | 2**21 levels * 2**20 quanta * 2**9 samples = 2**50         |
| delta @ W.T, output layer | float64 | 2**21 quanta * 2**22 quanta = 2**43                        |
| abs(delta) over a batch   | float64 | multiples of 2**-36, checked to stay below 2**17           |
| exponentials over classes | float64 | 2**48 quanta * 2**5 classes = 2**47 * 2**6 = 2**53         |
| losses over the samples   | float64 | 2**33 / 2**-20 = 2**53                                     |

Deltas are multiples of 2**-36 because both products that make them are. A micro-batch has at most
512 samples; the gradients of a larger batch's micro-batches are added one after the other, an
order that the configuration fixes. The quanta of the weights are found from the weights and only
ever coarsened while training. What cannot be met raises `ExactnessError`: exactness is never lost
in silence.

The same idea, sums made exact by splitting numbers along fixed quanta, stands in Demmel and
Nguyen, "Fast Reproducible Floating-Point Summation" (2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.core import Array, elementary
from stages.core.rounding import check_rounding

LARGEST_MICRO_BATCH = 512
"""Samples whose gradient is one exact sum."""


class ExactnessError(ArithmeticError):
    """A value outgrew the bound under which its sums are exact."""


@dataclass(frozen=True)
class FixedPoint:
    """The format of a layer's inputs: multiples of `quantum` from 0 up, `levels` of them."""

    quantum: float
    levels: int

    @property
    def saturation(self) -> float:
        """The largest value."""
        return self.quantum * (self.levels - 1)

    @property
    def budget(self) -> float:
        """The bound on the other factor of a float32 sum, in multiples of its quantum."""
        return 2.0**24 / self.levels


PIXELS = FixedPoint(2.0**-8, 2**8)
HIDDEN = FixedPoint(2.0**-5, 2**9)
LAST_HIDDEN = FixedPoint(2.0**-16, 2**21)

FINEST_WEIGHT_QUANTUM = 2.0**-12
FINEST_ROW_QUANTUM = 2.0**-24
OUTPUT_WEIGHT_QUANTUM = 2.0**-14
OUTPUT_WEIGHT_BOUND = 2.0**8
OUTPUT_DELTA_QUANTUM = 2.0**-20
DELTA_SUM_BOUND = 2.0**17
EXPONENTIAL_QUANTUM, EXPONENTIAL_QUANTUM_OF_MANY = 2.0**-48, 2.0**-47
FEW_CLASSES = 2**5
LOSS_QUANTUM = 2.0**-20
LOSS_SUM_BOUND = 2.0**33

# 1.5 * 2**(p - 1), the middle of a binade, in the formats that are summed.
ANCHORS: dict[np.dtype[Any], Any] = {
    np.dtype(np.float32): np.float32(1.5 * 2**23),
    np.dtype(np.float64): 1.5 * 2**52,
}


def power_of_two_above(values: Array | float) -> Array:
    """Return, for each value >= 0, the smallest power of two greater than it (1 for 0)."""
    powers: Array = np.ldexp(1.0, np.frexp(values)[1])
    return powers


def round_to(values: Array, quantum: float | Array) -> Array:
    """Round to the nearest multiple of `quantum`, a power of two or an array of them; ties to even.

    Adding 1.5 * 2**(p - 1) * quantum moves a value to where the format's own spacing is `quantum`,
    so the addition itself rounds it; the subtraction is exact. Holds for abs(values) up to
    2**(p - 2) quanta, p = 24 in float32 and 53 in float64.
    """
    anchor = ANCHORS[values.dtype] * quantum
    rounded: Array = (values + anchor) - anchor
    return rounded


def whole(samples: int) -> slice:
    """Return which of a micro-batch's samples this process computes: here, all."""
    return slice(samples)


def unchanged(*sums: Array) -> Sequence[Array]:
    """Return sums over the samples of all processes, given this one's: here, there is no other."""
    return sums


class Exact:
    """The pipeline's arithmetic for one network: each value that enters a sum quantised.

    Layers are numbered from 0. `weight_quanta` holds the quantum of each layer's weights, and
    `row_sums` the largest sum over a row of their absolute values.
    """

    compute_dtype: type = np.float32
    accumulate_dtype: type = np.float64
    exp = staticmethod(elementary.exp)

    def __init__(self, layers: int) -> None:
        check_rounding()
        self.inputs = [PIXELS] + [HIDDEN] * (layers - 2) + [LAST_HIDDEN]
        self.weight_quanta = [FINEST_WEIGHT_QUANTUM] * (layers - 1) + [OUTPUT_WEIGHT_QUANTUM]
        self.row_sums = [0.0] * layers

    def fresh(self) -> Exact:
        """Return the arithmetic for another network of as many layers."""
        return Exact(len(self.inputs))

    shard = staticmethod(whole)
    all_reduce = staticmethod(unchanged)

    def weight_bound(self, layer: int) -> float:
        """Return the bound on the sum of absolute weights that enter a unit of a layer."""
        if layer == len(self.inputs) - 1:
            return OUTPUT_WEIGHT_BOUND
        return self.inputs[layer].budget * self.weight_quanta[layer]

    def delta_budget(self, layer: int) -> float:
        """Return the bound, in quanta, on a unit's deltas before they are quantised.

        Rounding moves each of up to 512 deltas by at most half a quantum.
        """
        return self.inputs[layer].budget - LARGEST_MICRO_BATCH / 2

    def coarsen(self, layer: int, column_sum: float) -> None:
        """Double the quantum of a layer's weights, since one of its column sums exceeds the bound.

        Raises:
            ExactnessError: the layer is the output layer, or the sum is not finite.
        """
        if layer == len(self.inputs) - 1 or not column_sum < np.inf:
            raise ExactnessError(
                f"the weights of a unit in layer {layer + 1} add up to {column_sum:g}"
            )
        self.weight_quanta[layer] *= 2.0

    def quantise_weights(self, weights: Sequence[Array]) -> list[Array]:
        """Return each layer's W (inputs, outputs) on its quantum, coarsened until the bounds hold.

        Raises:
            ExactnessError: a weight is not finite, or an output weight is too large.
        """
        quantised = []
        for layer, W in enumerate(weights):
            while True:
                rounded = round_to(W, self.weight_quanta[layer])
                magnitudes = np.abs(rounded).astype(np.float64)
                largest = magnitudes.sum(axis=0).max()
                if largest <= self.weight_bound(layer):
                    break
                self.coarsen(layer, largest)
            self.row_sums[layer] = magnitudes.sum(axis=1).max()
            quantised.append(rounded)
        return quantised

    def saturation(self, layer: int) -> float:
        """Return where the activations that enter a layer saturate.

        It is the end of their format, far above what a trained network produces.
        """
        return self.inputs[layer].saturation

    def quantise_activations(self, layer: int, a: Array) -> Array:
        """Return the quantised activations that enter a layer."""
        return round_to(a, self.inputs[layer].quantum)

    def quantise_exponentials(self, exponentials: Array) -> Array:
        """Return the softmax's exponentials (samples, classes), quantised."""
        few = exponentials.shape[1] <= FEW_CLASSES
        return round_to(exponentials, EXPONENTIAL_QUANTUM if few else EXPONENTIAL_QUANTUM_OF_MANY)

    def quantise_output_deltas(self, delta: Array) -> Array:
        """Return the output layer's deltas, quantised for every product they enter."""
        return round_to(delta, OUTPUT_DELTA_QUANTUM)

    def quantise_columns(self, layer: int, delta: Array) -> Array:
        """Return a layer's deltas quantised for `a.T @ delta`, each unit with its own quantum.

        The output layer's deltas are quantised already.

        Args:
            layer: the layer's number.
            delta: (samples, outputs) deltas of at most 512 samples.

        Raises:
            ExactnessError: the deltas are not finite, too large or too many.
        """
        if layer == len(self.inputs) - 1:
            return delta
        if len(delta) > LARGEST_MICRO_BATCH:
            raise ExactnessError(
                f"a sum over {len(delta)} samples; at most {LARGEST_MICRO_BATCH} are exact"
            )
        (sums,) = self.all_reduce(np.abs(delta).astype(np.float64).sum(axis=0))
        if not (sums < DELTA_SUM_BOUND).all():
            raise ExactnessError(
                f"the deltas of layer {layer + 1} add up to {sums.max():g} in one batch"
            )
        quanta = power_of_two_above(sums / self.delta_budget(layer))
        return round_to(delta, quanta.astype(delta.dtype))

    def quantise_rows(self, layer: int, delta: Array) -> Array:
        """Return a layer's deltas quantised for `delta @ W.T`, each sample with its own quantum.

        The output layer's deltas are quantised already.

        Raises:
            ExactnessError: the weights are too large for any quantum.
        """
        if layer == len(self.inputs) - 1:
            return delta
        levels = 2.0**24 * self.weight_quanta[layer] / power_of_two_above(self.row_sums[layer])
        if not levels > 2.0:
            raise ExactnessError(f"the weights of layer {layer + 1} have grown too large")
        quanta = power_of_two_above(np.abs(delta).max(axis=1, keepdims=True)) / levels
        return round_to(delta, np.maximum(quanta, FINEST_ROW_QUANTUM).astype(delta.dtype))

    def loss_sum(self, losses: Array) -> float:
        """Return the sum of the samples' losses, each quantised.

        Raises:
            ExactnessError: a loss is not finite, or their sum is too large.
        """
        total = float(*self.all_reduce(round_to(losses, LOSS_QUANTUM).sum()))
        if not total <= LOSS_SUM_BOUND:
            raise ExactnessError(f"the losses add up to {total:g}")
        return total


class Plain:
    """Ordinary floating point, nothing quantised: for gradient checks and the benchmark."""

    exp = staticmethod(np.exp)
    shard = staticmethod(whole)
    all_reduce = staticmethod(unchanged)

    def __init__(self, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.compute_dtype = self.accumulate_dtype = dtype
        self.weight_quanta: list[float] = []

    def fresh(self) -> Plain:
        """Return the arithmetic for another network."""
        return self

    def quantise_weights(self, weights: Sequence[Array]) -> list[Array]:
        """Return the weights as they are."""
        return [W.astype(self.compute_dtype, copy=False) for W in weights]

    def saturation(self, layer: int) -> float:
        """Return infinity."""
        return np.inf

    def quantise_activations(self, layer: int, a: Array) -> Array:
        """Return `a` as it is."""
        return a

    def quantise_exponentials(self, exponentials: Array) -> Array:
        """Return `exponentials` as they are."""
        return exponentials

    def quantise_output_deltas(self, delta: Array) -> Array:
        """Return `delta` as it is."""
        return delta

    def quantise_columns(self, layer: int, delta: Array) -> Array:
        """Return `delta` as it is."""
        return delta

    def quantise_rows(self, layer: int, delta: Array) -> Array:
        """Return `delta` as it is."""
        return delta

    def loss_sum(self, losses: Array) -> float:
        """Return the sum of the samples' losses."""
        return float(losses.sum())


Arithmetic = Exact | Plain
