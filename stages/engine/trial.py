"""A training of a few images: it compiles every kernel, and shows that they work here."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np

from stages.core import training as textbook
from stages.core.augmentation import Augmentation
from stages.core.config import TrainConfig
from stages.engine.training import Training


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage: the compiler's millions of objects are hardly any."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def trial() -> None:
    """Train a tiny network with the engine and by the textbook, once in a process.

    All arrays have the types that they have in any other training, so no kernel is compiled later.

    Raises:
        RuntimeError: the two differ.
        Exception: Numba, the compiler or the platform cannot do what the engine needs.
    """
    config = TrainConfig(
        hidden_sizes=[20, 3],
        initialisation="he",
        optimizer="nesterov",
        learning_rate=0.1,
        schedule="constant",
        momentum=0.9,
        batch_size=5,
        epochs=1,
        l2=0.0,
        weight_decay=0.0,
        dropout=0.1,
        label_smoothing=0.0,
        ema_decay=0.0,
        augmentation=Augmentation(10.0, 0.1, 0.1, 1.0, 1.0, smoothness=1.0, thickness=1.0),
        seed=1,
        keep="last",
    )
    images = np.random.default_rng(1).integers(0, 256, (12, 5, 5), np.uint8)
    labelled = images, np.arange(12) % 3
    with no_collection():
        found = Training(labelled, labelled, config).run()
    expected = textbook.train(labelled, labelled, config)
    for one, other in zip(found, expected, strict=True):
        if not all(map(np.array_equal, one, other)):
            raise RuntimeError("it computes other bytes than the textbook")
