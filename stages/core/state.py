"""What a training must remember after an epoch to go on as if it had not been interrupted."""

from __future__ import annotations

from typing import NamedTuple

from stages.core.network import Layer


class State(NamedTuple):
    """The state after an epoch, whatever the number of threads that computed it.

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
