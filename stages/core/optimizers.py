"""How a gradient moves the parameters.

An optimizer updates one array of parameters in place, elementwise, so that arrays, or any parts of
them, can be updated in any order. `gradient` is summed over `samples` samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.core import Array
from stages.core.config import TrainConfig
from stages.core.elementary import power
from stages.core.network import Layer, Parameters
from stages.core.schedules import effective_decay, scheduled


class Momentum:
    """Gradient descent with momentum (Polyak 1964): v <- momentum v - learning_rate g; w <- w + v.

    Momentum 0 is plain gradient descent: w <- w - learning_rate g. Nesterov's form looks ahead by
    one more step of the velocity (Sutskever et al. 2013, section 3):
    w <- w + momentum v - learning_rate g.
    """

    slots = 1

    def __init__(self, momentum: float, nesterov: bool = False) -> None:
        self.momentum = momentum
        self.nesterov = nesterov

    def update(
        self, w: Array, gradient: Array, state: Sequence[Array], learning_rate: float,
        samples: int, step: int,
    ) -> None:  # fmt: skip
        """Move `w` and its velocity by one step."""
        (velocity,) = state
        change = gradient * (learning_rate / samples)
        velocity *= self.momentum
        velocity -= change
        if self.nesterov:
            w -= change
            w += velocity * self.momentum
        else:
            w += velocity


class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1, with the step size of its section 2).

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g**2;
    w <- w - learning_rate sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + epsilon).
    """

    slots = 2
    beta1 = 0.9
    beta2 = 0.999
    epsilon = 1e-7

    def update(
        self, w: Array, gradient: Array, state: Sequence[Array], learning_rate: float,
        samples: int, step: int,
    ) -> None:  # fmt: skip
        """Move `w` and its moments by one step."""
        m, v = state
        mean = gradient * (1.0 / samples)
        m *= self.beta1
        m += mean * (1.0 - self.beta1)
        v *= self.beta2
        v += mean * mean * (1.0 - self.beta2)
        w -= m / (np.sqrt(v) + self.epsilon) * (learning_rate * self.bias_correction(step))

    def bias_correction(self, step: int) -> float:
        """Return sqrt(1 - beta2**step) / (1 - beta1**step)."""
        second = float(np.sqrt(1.0 - power(self.beta2, step)))
        return second / (1.0 - power(self.beta1, step))


def optimizer_of(config: TrainConfig) -> Momentum | Adam:
    """Return the optimizer that a configuration names."""
    if config.optimizer == "adam":
        return Adam()
    return Momentum(config.momentum, nesterov=config.optimizer == "nesterov")


class Descent:
    """The parameters of a training, each step's update of them and their moving average.

    Attributes:
        parameters: the layers, changed in place.
        average: their exponential moving average; the parameters themselves without one.
        state: for each layer's W and b, the optimizer's arrays.
        step: how many steps have been taken.
    """

    def __init__(self, parameters: Parameters, config: TrainConfig, steps: int) -> None:
        """Start from `parameters`, to take `steps` steps in all."""
        self.config, self.steps, self.step = config, steps, 0
        self.optimizer = optimizer_of(config)
        self.parameters = [Layer(W.copy(), b.copy()) for W, b in parameters]
        self.average = (
            [Layer(W.copy(), b.copy()) for W, b in parameters]
            if config.ema_decay
            else self.parameters
        )
        self.state = [
            [[np.zeros_like(w) for _ in range(self.optimizer.slots)] for w in layer]
            for layer in self.parameters
        ]

    def update(self, gradients: Parameters, samples: int) -> None:
        """Take one step, given the gradients summed over a batch of `samples` samples.

        L2 adds l2 W to the gradient of the mean loss. Weight decay shrinks W apart from the
        gradient (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", eq. 9).
        Neither touches the biases.
        """
        config = self.config
        learning_rate = scheduled(config.learning_rate, config.schedule, self.step / self.steps)
        self.step += 1
        for layer, gradient, state in zip(self.parameters, gradients, self.state, strict=True):
            dW, db = gradient
            if config.l2:
                dW = dW + layer.W * (config.l2 * samples)
            if config.weight_decay:
                layer.W[...] *= 1.0 - learning_rate * config.weight_decay
            for w, g, slots in zip(layer, (dW, db), state, strict=True):
                self.optimizer.update(w, g, slots, learning_rate, samples, self.step)
        if config.ema_decay:
            ema_decay = effective_decay(config.ema_decay, self.step)
            for averages, layer in zip(self.average, self.parameters, strict=True):
                for average, w in zip(averages, layer, strict=True):
                    average += (w - average) * (1.0 - ema_decay)
