"""Exact arithmetic: sums whose bits depend on no order, and so on no machine.

A floating-point sum depends on its order, and the order depends on the BLAS kernel, the CPU and
the number of threads. But a sum that is never rounded has no order. So every number that enters
a sum here is first rounded to a grid, the multiples of a power of two, coarse enough that the
sum needs no rounding at all.

The proof. Let every left factor be a multiple of g, every right factor a multiple of h (powers
of two), and let the sum of |left * right| be at most 2**p * g * h, where p is the number of
significant bits (24 in float32, 53 in float64). Then each product and each partial sum, in
whatever order and grouping, fused or not, is a whole number of g * h, of magnitude at most 2**p
of them. The format holds every such number, so no operation rounds, and every order gives the
true sum. Elementwise operations need no such care: IEEE 754 defines their results to the last
bit. (A sum of zeros may still be +0 or -0; the rounding that follows makes either +0.)

The budgets. In float32 what one factor takes of the 24 bits, the other has not. Inputs of a
layer are pixels or activations; `steps` is how many steps of their grid they reach, and what is
left for the other factor is `limit` = 2**24 / steps.

| numbers                  | grid                    | bound, in value or in steps of the grid |
|--------------------------|-------------------------|-----------------------------------------|
| pixels                   | 2**-8                   | below 1: 2**8 steps                     |
| activations              | 2**-5                   | below 16: 2**9 steps                    |
| activations, last hidden | 2**-16                  | below 32: 2**21 steps                   |
| weights W                | one a layer, >= 2**-12  | sum over i of abs(W_ij) <= limit steps  |
| weights W, output layer  | 2**-14                  | sum over i of abs(W_ij) <= 2**8         |
| errors dz, for x.T @ dz  | one a unit j            | sum over s of abs(dz_sj) <= limit steps |
| errors dz, for dz @ W.T  | one a sample, >= 2**-24 | abs(dz_sj) R <= 2**24 steps of both,    |
|                          |                         | R the largest sum over j of abs(W_ij)   |
| errors dz, output layer  | 2**-20                  | at most 1, their sum for a sample 2     |
| e**z in the softmax      | 2**-48                  | at most 1, at most 2**5 classes         |
| z, for its variance      | 16 steps of x @ W       | 2**20 steps                             |
| z normalised             | 2**-10                  | cut off at 2**5: 2**15 steps            |
| losses                   | 2**-20                  | checked: their sum at most 2**33        |

| sum                      | format  | exact because                                           |
|--------------------------|---------|---------------------------------------------------------|
| x @ W                    | float32 | steps of x * limit = 2**24                              |
| x.T @ dz                 | float32 | steps of x * limit = 2**24                              |
| dz @ W.T                 | float32 | by the bound on dz                                      |
| a @ W, output layer      | float64 | 2**21 steps * 2**22 steps = 2**43                       |
| a.T @ dz, output layer   | float64 | 2**21 steps * 2**20 steps * 2**9 samples = 2**50        |
| dz @ W.T, output layer   | float64 | 2**21 steps * 2**22 steps = 2**43                       |
| abs(dz) over a batch     | float64 | multiples of 2**-36, checked to stay below 2**17        |
| e**z over the classes    | float64 | 2**48 steps * 2**5 classes = 2**53                      |
| z over a batch           | float64 | 2**24 steps * 2**9 samples = 2**33                      |
| z * z over a batch       | float64 | 2**40 steps * 2**9 samples = 2**49                      |
| dz * z normalised        | float64 | 2**16 steps * 2**15 steps = 2**31                       |
| losses over the samples  | float64 | 2**33 / 2**-20 = 2**53                                  |

The errors dz are multiples of 2**-36 because both products that make them have such grids, and
normalisation rounds to it. Their sum only has to say which power of two is above it, so a rounded
sum in float32 will do unless it is so close to one that its rounding could decide. A batch has at
most 512 samples; a larger one is summed in parts, added one after the other, which is an order
fixed by the recipe. Grids for weights are found from the weights and only ever coarsened while
training; `Exact.weights_fit` checks the bound after every update. What cannot be met raises
`ExactnessError`: exactness is never lost in silence.

The same idea, sums made exact by splitting numbers along fixed grids, stands in Demmel and
Nguyen, "Fast Reproducible Floating-Point Summation" (2013).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from stages.core import Array, elementary

LARGEST_PART = 512
"""Samples whose gradient is one exact sum."""


class ExactnessError(ArithmeticError):
    """A value outgrew the bound under which its sums are exact."""


@dataclass(frozen=True)
class Signal:
    """What a layer's inputs are: multiples of `grid` from 0 to `steps` of them."""

    grid: float
    steps: int

    @property
    def ceiling(self) -> float:
        """The largest value."""
        return self.grid * (self.steps - 1)

    @property
    def limit(self) -> float:
        """The bound, in grid steps of the other factor, on a float32 sum with such inputs."""
        return 2.0**24 / self.steps


PIXELS = Signal(2.0**-8, 2**8)
HIDDEN = Signal(2.0**-5, 2**9)
LAST_HIDDEN = Signal(2.0**-16, 2**21)

FINEST_WEIGHT_GRID = 2.0**-12
FINEST_ERROR_GRID = 2.0**-24
OUTPUT_WEIGHT_GRID = 2.0**-14
OUTPUT_WEIGHT_BOUND = 2.0**8
OUTPUT_ERROR_GRID = 2.0**-20
ERROR_GRID = 2.0**-36
NORMALISED_GRID = 2.0**-10
NORMALISED_BOUND = 2.0**5
EXP_GRID = 2.0**-48
LOSS_GRID = 2.0**-20
LOSS_SUM_BOUND = 2.0**33
ERROR_SUM_BOUND = 2.0**17


# 1.5 * 2**(p - 1), the middle of a binade, in the formats that are summed.
_ANCHORS: dict[np.dtype[Any], Any] = {
    np.dtype(np.float32): np.float32(1.5 * 2**23),
    np.dtype(np.float64): 1.5 * 2**52,
}


_ROUNDED_SUM = 2.0**-14
"""Twice how far a float32 sum of up to 512 numbers >= 0 can be off, as a part of it."""


def power_of_two_above(values: Array | float) -> Array:
    """Return, for each value >= 0, the smallest power of two greater than it (1 for 0)."""
    powers: Array = np.ldexp(1.0, np.frexp(values)[1])
    return powers


def round_to_grid(values: Array, grid: float | Array, out: Array | None = None) -> Array:
    """Round to the nearest multiple of `grid`, a power of two or an array of them; ties to even.

    Adding 1.5 * 2**(p - 1) * grid moves a value to where the format's own spacing is `grid`, so
    the addition itself rounds it; the subtraction is exact. Holds for abs(values) up to
    2**(p - 2) grids, p = 24 in float32 and 53 in float64.
    """
    anchor = _ANCHORS[values.dtype] * grid
    out = np.add(values, anchor, out=out)
    rounded: Array = np.subtract(out, anchor, out=out)
    return rounded


def column_sums(values: Array) -> Array:
    """Return the sum of each column, as a product with ones, which BLAS does fastest.

    Exact, as any order is, when the values are on a grid and keep a bound.
    """
    sums: Array = _ones(len(values), values.dtype) @ values
    return sums


@cache
def _ones(count: int, dtype: np.dtype[Any]) -> Array:
    return np.ones(count, dtype)


class Exact:
    """The arithmetic of one network in the pipeline: each value that enters a sum on its grid.

    Layers are numbered from 0. `grids` holds the grid of each layer's weights and `row_sums` the
    largest sum over a row of their absolute values.
    """

    narrow: type = np.float32
    wide: type = np.float64
    exp = staticmethod(elementary.exp)

    def __init__(self, weights: Sequence[Array]) -> None:
        """Find for each layer's `W` (inputs, outputs) the finest grid that keeps its bound.

        Raises:
            ExactnessError: a weight is not finite, or an output weight is too large.
        """
        hidden = len(weights) - 2
        self.signals = [PIXELS] + [HIDDEN] * hidden + [LAST_HIDDEN]
        self.grids = [FINEST_WEIGHT_GRID] * (hidden + 1) + [OUTPUT_WEIGHT_GRID]
        bounds = [
            *(signal.limit * FINEST_WEIGHT_GRID for signal in self.signals[:-1]),
            OUTPUT_WEIGHT_BOUND,
        ]
        units = [W.shape[1] for W in weights]
        self._layer_of_unit = np.repeat(np.arange(len(weights)), units)
        self._weight_bounds = np.repeat(bounds, units)
        while True:
            rounded = [
                np.abs(self.round_weights(layer, W)).astype(np.float64)
                for layer, W in enumerate(weights)
            ]
            self.row_sums = [W.sum(axis=1).max() for W in rounded]
            if self.weights_fit(np.concatenate([W.sum(axis=0) for W in rounded])):
                break

    def round_weights(self, layer: int, W: Array, out: Array | None = None) -> Array:
        """Return the weights `W` of a layer, or any part of them, on the layer's grid."""
        return round_to_grid(W, self.grids[layer], out)

    def weights_fit(self, sums: Array) -> bool:
        """Say whether the rounded weights keep their bounds; if not, make their grids coarser.

        Args:
            sums: for each unit of the network, layer after layer, the sum over its inputs of the
                absolute rounded weights.

        Raises:
            ExactnessError: the weights are not finite, or output weights are too large.
        """
        fit = sums <= self._weight_bounds
        if fit.all():
            return True
        for layer in np.unique(self._layer_of_unit[~fit]):
            unit = self._layer_of_unit == layer
            largest = sums[unit].max()
            if layer == len(self.grids) - 1 or not largest < np.inf:
                raise ExactnessError(
                    f"the weights of a unit in layer {layer + 1} add up to {largest:g}"
                )
            self.grids[layer] *= 2.0
            self._weight_bounds[unit] *= 2.0
        return False

    def coarsen(self, grids: Sequence[float]) -> None:
        """Put the weights on the grids of an earlier training, which are as coarse or coarser."""
        for layer, grid in enumerate(grids):
            self._weight_bounds[self._layer_of_unit == layer] *= grid / self.grids[layer]
        self.grids = list(grids)

    def ceiling(self, layer: int) -> float:
        """Return where the activations that enter a layer saturate.

        It is the end of their grid, far above what a trained network produces.
        """
        return self.signals[layer].ceiling

    def round_activations(self, layer: int, a: Array) -> Array:
        """Bring the activations that enter a layer onto their grid, in place."""
        return round_to_grid(a, self.signals[layer].grid, out=a)

    def round_exponentials(self, e: Array) -> Array:
        """Bring the softmax's exponentials onto their grid, in place."""
        return round_to_grid(e, EXP_GRID, out=e)

    def loss_sum(self, losses: Array) -> float:
        """Return the sum of the samples' losses, each rounded to the losses' grid.

        Raises:
            ExactnessError: a loss is not finite, or their sum is too large.
        """
        total = float(round_to_grid(losses, LOSS_GRID).sum())
        if not total <= LOSS_SUM_BOUND:
            raise ExactnessError(f"the losses add up to {total:g}")
        return total

    def round_output_errors(self, dz: Array) -> Array:
        """Bring the errors of the output layer onto their grid, in place."""
        return round_to_grid(dz, OUTPUT_ERROR_GRID, out=dz)

    def errors_by_sample(self, layer: int, dz: Array, out: Array | None = None) -> Array:
        """Return a layer's errors `dz` (samples, outputs), rounded for `dz @ W.T`.

        Each sample has a grid of its own. The output layer's errors are on theirs already.
        `out`, where to write, may be `dz` itself.

        Raises:
            ExactnessError: the weights are too large for any grid.
        """
        if layer == len(self.grids) - 1:
            return dz
        steps = 2.0**24 * self.grids[layer] / power_of_two_above(self.row_sums[layer])
        if not steps > 2.0:
            raise ExactnessError(f"the weights of layer {layer + 1} have grown too large")
        grid = power_of_two_above(np.abs(dz).max(axis=1, keepdims=True)) / steps
        return round_to_grid(dz, np.maximum(grid, FINEST_ERROR_GRID).astype(dz.dtype), out=out)

    def errors_by_unit(self, layer: int, dz: Array) -> Array:
        """Return a layer's errors, rounded for `x.T @ dz`, each unit on a grid of its own.

        The output layer's errors are on their grid already.

        Args:
            layer: the layer's number.
            dz: (samples, outputs) errors of at most 512 samples, for all of the layer's units or
                some.

        Raises:
            ExactnessError: the errors are not finite, too large or too many.
        """
        if layer == len(self.grids) - 1:
            return dz
        if len(dz) > LARGEST_PART:
            raise ExactnessError(f"a sum over {len(dz)} samples; at most {LARGEST_PART} are exact")
        # Rounding moves each of up to 512 errors by at most half a step.
        limit = self.signals[layer].limit - LARGEST_PART / 2
        magnitudes = np.abs(dz)
        # This sum is rounded, but nearly always too far from a power of two for that to matter.
        sums = column_sums(magnitudes) + 2.0**-60
        fraction, exponent = np.frexp(sums / limit)
        from_middle = np.abs(fraction - 0.75).max(initial=0.0)
        if from_middle < 0.25 - _ROUNDED_SUM and sums.max(initial=0.0) < ERROR_SUM_BOUND / 2.0:
            grid = np.ldexp(1.0, exponent)
        else:
            sums = column_sums(magnitudes.astype(np.float64))
            if not (sums < ERROR_SUM_BOUND).all():
                raise ExactnessError(
                    f"the errors of layer {layer + 1} add up to {sums.max():g} in one batch"
                )
            grid = power_of_two_above(sums / limit)
        return round_to_grid(dz, grid.astype(dz.dtype), out=magnitudes)

    def round_for_squares(self, layer: int, z: Array) -> Array:
        """Bring a layer's z, as float64, onto a grid on which the sum of its squares is exact."""
        return round_to_grid(z, 16.0 * self.signals[layer].grid * self.grids[layer], out=z)

    def round_normalised(self, z: Array) -> Array:
        """Bring normalised values, as float64, onto their grid, cut off at its end, in place."""
        np.clip(z, -NORMALISED_BOUND, NORMALISED_BOUND, out=z)
        return round_to_grid(z, NORMALISED_GRID, out=z)

    def round_errors(self, dz: Array) -> Array:
        """Bring errors, as float64, onto the grid that the products of errors and weights have."""
        return round_to_grid(dz, ERROR_GRID, out=dz)


class Plain:
    """Ordinary floating point, nothing rounded: for the benchmark and for gradient checks."""

    exp = staticmethod(np.exp)

    def __init__(self, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.narrow = self.wide = dtype

    def ceiling(self, layer: int) -> float:
        """Return infinity."""
        return np.inf

    def round_activations(self, layer: int, a: Array) -> Array:
        """Return `a` as it is."""
        return a

    def round_exponentials(self, e: Array) -> Array:
        """Return `e` as it is."""
        return e

    def loss_sum(self, losses: Array) -> float:
        """Return the sum of the samples' losses."""
        return float(losses.sum())

    def round_output_errors(self, dz: Array) -> Array:
        """Return `dz` as it is."""
        return dz

    def errors_by_sample(self, layer: int, dz: Array, out: Array | None = None) -> Array:
        """Return `dz` as it is, whatever `out` is."""
        return dz

    def errors_by_unit(self, layer: int, dz: Array) -> Array:
        """Return `dz` as it is."""
        return dz

    def round_for_squares(self, layer: int, z: Array) -> Array:
        """Return `z` as it is."""
        return z

    def round_normalised(self, z: Array) -> Array:
        """Return `z` as it is."""
        return z

    def round_errors(self, dz: Array) -> Array:
        """Return `dz` as it is."""
        return dz


Arithmetic = Exact | Plain
