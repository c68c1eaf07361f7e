"""Dropout: which hidden units each sample of a micro-batch keeps."""

from __future__ import annotations

import numpy as np

from stages.core import Array
from stages.core.config import TrainConfig


def dropout_masks(config: TrainConfig, samples: int, seed: list[int]) -> list[Array]:
    """Draw a micro-batch's masks, (samples, units) for each hidden layer; none without dropout.

    Each unit is dropped with probability `dropout` (Srivastava et al. 2014, section 4); the weights
    that leave hidden units are scaled by 1 - dropout after training.

    Args:
        config: its `dropout` and `hidden_sizes`.
        samples: how many the micro-batch has.
        seed: the training's seed, the epoch and the micro-batch's number in it, from 0.
    """
    if not config.dropout:
        return []
    generator = np.random.default_rng([*seed, 1])
    shapes = [(samples, units) for units in config.hidden_sizes]
    return [generator.random(shape, np.float32) >= config.dropout for shape in shapes]
