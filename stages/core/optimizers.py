"""How a gradient moves the weights, and how the learning rate moves over the training.

An optimizer works in place on any slice of the parameters, elementwise, so that the slices can
be updated in any order and by any process. `gradient` is a sum over `samples` samples and is
used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from stages.core import Array
from stages.core.elementary import PI, cos


class Optimizer(Protocol):
    """What the training asks of an optimizer."""

    slots: int
    """Arrays of the parameters' size that it keeps, zeros at the start."""

    def update(
        self, w: Array, gradient: Array, slots: Sequence[Array], scratch: Array,
        learning_rate: float, samples: float, step: int,
    ) -> None:  # fmt: skip
        """Move `w` by one step, the `step`-th from 1."""


class Momentum:
    """Gradient descent with momentum (Polyak 1964): v <- momentum v - rate g; w <- w + v.

    Momentum 0 is plain gradient descent: w <- w - rate g. Nesterov's form looks ahead by one more
    step of the velocity (Sutskever et al. 2013, section 3): w <- w + momentum v - rate g.
    """

    slots = 1

    def __init__(self, momentum: float, nesterov: bool = False) -> None:
        self.momentum = momentum
        self.nesterov = nesterov

    def update(
        self, w: Array, gradient: Array, slots: Sequence[Array], scratch: Array,
        learning_rate: float, samples: float, step: int,
    ) -> None:  # fmt: skip
        """Move `w` by one step."""
        (v,) = slots
        v *= self.momentum
        np.multiply(gradient, learning_rate / samples, out=scratch)  # the mean and the rate
        v -= scratch
        if self.nesterov:
            w -= scratch
            np.multiply(v, self.momentum, out=scratch)
            w += scratch
        else:
            w += v


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1, with the step size of its section 2).

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g**2;
    w <- w - rate sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + epsilon).
    """

    slots = 2
    beta1 = 0.9
    beta2 = 0.999
    epsilon = 1e-7

    def update(
        self, w: Array, gradient: Array, slots: Sequence[Array], scratch: Array,
        learning_rate: float, samples: float, step: int,
    ) -> None:  # fmt: skip
        """Move `w` by one step, the `step`-th from 1."""
        m, v = slots
        gradient *= 1.0 / samples
        m *= self.beta1
        np.multiply(gradient, 1.0 - self.beta1, out=scratch)
        m += scratch
        v *= self.beta2
        gradient *= gradient
        gradient *= 1.0 - self.beta2
        v += gradient
        unbiased = float(np.sqrt(1.0 - power(self.beta2, step))) / (1.0 - power(self.beta1, step))
        np.sqrt(v, out=scratch)
        scratch += self.epsilon
        np.divide(m, scratch, out=scratch)
        scratch *= learning_rate * unbiased
        w -= scratch


def power(base: float, exponent: int) -> float:
    """Return base**exponent by repeated squaring: multiplications only, the same everywhere."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def scheduled(learning_rate: float, schedule: str, progress: float, warm_up: float = 0.0) -> float:
    """Return the learning rate at `progress`, the part of the training that is done (0 to 1).

    Args:
        learning_rate: its peak.
        schedule: `constant`; `step`: a tenth of it from 1/2 on, a hundredth from 3/4 on;
            `cosine`: along half a cosine down to 0 (Loshchilov and Hutter 2017, eq. 5);
            `one_cycle`: linearly up from 1/25 of it during the first 30 %, then along half a
            cosine down to 0 (after Smith and Topin 2019).
        progress: at least 0, below 1.
        warm_up: the part of the training in which the rate rises linearly from 0 to what the
            schedule says (Goyal et al. 2017, section 2.2).
    """
    if progress < warm_up:
        return progress / warm_up * scheduled(learning_rate, schedule, progress)
    if schedule == "step":
        return learning_rate * (1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01)
    if schedule == "cosine":
        return learning_rate * 0.5 * (1.0 + cos(PI * progress))
    if schedule == "one_cycle":
        if progress < 0.3:
            return learning_rate * (0.04 + 0.96 * progress / 0.3)
        return learning_rate * 0.5 * (1.0 + cos(PI * (progress - 0.3) / 0.7))
    return learning_rate
