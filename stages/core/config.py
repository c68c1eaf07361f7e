"""How to train: the parameters of the `train` stage, under the same names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stages.core.augmentation import Augmentation


@dataclass(frozen=True)
class TrainConfig:
    """One training's hyperparameters; `params.yaml` explains each and holds their values."""

    hidden_sizes: Sequence[int]
    initialisation: Literal["he", "glorot", "uniform"]
    optimizer: Literal["sgd", "nesterov", "adam"]
    learning_rate: float
    schedule: Literal["constant", "cosine", "step", "one_cycle"]
    momentum: float
    batch_size: int | Literal["all"]
    epochs: int
    l2: float
    weight_decay: float
    dropout: float
    label_smoothing: float
    ema_decay: float
    augmentation: Augmentation
    seed: int
    keep: Literal["best", "last"]
