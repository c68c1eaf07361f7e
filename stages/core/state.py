"""What a training must remember after an epoch to go on as if it had not been interrupted."""

from __future__ import annotations

from typing import NamedTuple

from stages.core.exact import Arithmetic
from stages.core.network import Layer, Parameters
from stages.core.optimizers import Descent


class State(NamedTuple):
    """The state after an epoch, whatever the number of threads or processes that computed it.

    Attributes:
        epoch: how many epochs are done.
        step: how many steps are done.
        best_accuracy: the validation accuracy of the parameters kept so far.
        weight_quanta: of each layer.
        networks: the parameters, their average if there is one, and each of the optimizer's slots.
        kept: the parameters kept so far.
    """

    epoch: int
    step: int
    best_accuracy: float
    weight_quanta: list[float]
    networks: list[list[Layer]]
    kept: list[Layer]


def networks_of(descent: Descent) -> list[Parameters]:
    """Return all that a step changes, each part in the shape of the parameters."""
    average = [descent.average] if descent.config.ema_decay else []
    slots = [
        [Layer(*(slots[slot] for slots in layer)) for layer in descent.state]
        for slot in range(descent.optimizer.slots)
    ]
    return [descent.parameters, *average, *slots]


def state_of(
    epoch: int, best_accuracy: float, kept: list[Layer], descent: Descent, arithmetic: Arithmetic
) -> State:
    """Return the state after an epoch; its arrays are those that the next step changes."""
    networks = [list(network) for network in networks_of(descent)]
    quanta = list(arithmetic.weight_quanta)
    return State(epoch, descent.step, best_accuracy, quanta, networks, kept)


def restore(
    state: State, descent: Descent, arithmetic: Arithmetic
) -> tuple[int, float, list[Layer]]:
    """Bring a training to a state; return its epoch, best accuracy and parameters kept so far."""
    descent.step = state.step
    arithmetic.weight_quanta[:] = state.weight_quanta
    for network, saved in zip(networks_of(descent), state.networks, strict=True):
        for layer, values in zip(network, saved, strict=True):
            layer.W[...], layer.b[...] = values
    return state.epoch, state.best_accuracy, state.kept
