"""The training loop: the definition of every byte of a trained network.

Mini-batch gradient descent, one process, NumPy alone. For each batch: quantise the weights,
forward, softmax, backward, update, average. Whatever trains faster must return the very same
parameters; `stages.engine` does, and the tests hold it to this loop bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise
from typing import NamedTuple

import numpy as np

from stages.core.augmentation import augment
from stages.core.config import TrainConfig
from stages.core.data import LabelledImages, require_pixels
from stages.core.dropout import dropout_masks
from stages.core.exact import LARGEST_MICRO_BATCH, PIXELS, Arithmetic, Exact, ExactnessError
from stages.core.initialisation import initialise
from stages.core.network import Layer, losses_and_gradients, one_hot, quantised
from stages.core.optimizers import Descent
from stages.core.prediction import parameters_to_score, score
from stages.core.state import State, restore, state_of


class DivergedError(ArithmeticError):
    """The loss or a weight is no longer a finite, reasonable number."""


class Epoch(NamedTuple):
    """An epoch's row of the learning curves, numbered from 1; losses are means."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float


def train(
    training_set: LabelledImages,
    validation_set: LabelledImages,
    config: TrainConfig,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    arithmetic: Arithmetic | None = None,
    resume: State | None = None,
    on_state: Callable[[State], None] = lambda state: None,
) -> list[Layer]:
    """Train a network and return the parameters to keep.

    Args:
        training_set: images (samples, height, width) uint8 and labels (samples,), every class
            present; a pixel enters the network as its value / 256.
        validation_set: the same; only scored.
        config: how to train.
        on_epoch: called after each epoch.
        arithmetic: exact, unless given; one may divide the samples among processes.
        resume: the state after an earlier epoch, to go on from.
        on_state: called after each epoch with its state, whose arrays the next epoch changes.

    Raises:
        TypeError: the images are not uint8.
        ExactnessError: the initial weights are too large.
        DivergedError: a weight, a delta or the loss outgrew what exact sums can hold.
    """
    images, labels = training_set
    require_pixels(images)
    require_pixels(validation_set[0])
    classes = int(labels.max()) + 1
    sizes = [images[0].size, *config.hidden_sizes, classes]
    targets = one_hot(np.arange(classes), classes, config.label_smoothing)
    arithmetic = arithmetic or Exact(len(sizes) - 1)
    batch_size = len(images) if config.batch_size == "all" else config.batch_size
    starts = range(0, len(images), batch_size)
    batches = [micro_batches(start, min(start + batch_size, len(images))) for start in starts]
    rows = [np.arange(part.start, part.stop) for batch in batches for part in batch]
    own_rows = np.concatenate([part[arithmetic.shard(part.size)] for part in rows])
    generator = np.random.default_rng(config.seed)
    parameters = initialise(sizes, config.initialisation, generator, arithmetic.compute_dtype)
    descent = Descent(parameters, config, steps=config.epochs * len(batches))
    done, best_accuracy, kept = 0, -1.0, quantised(parameters, arithmetic)
    if resume:
        done, best_accuracy, kept = restore(resume, descent, arithmetic)
    for epoch in range(done + 1, config.epochs + 1):
        seed = [config.seed, epoch]
        order = np.random.default_rng(seed).permutation(len(images))
        x = augment(images[order], config.augmentation, seed, own_rows)
        x, y = x.reshape(len(x), -1), labels[order]
        losses, micro_batch = np.zeros(len(x)), count()
        try:
            for batch in batches:
                weights = quantised(descent.parameters, arithmetic)
                gradients: list[Layer] = []
                for part in batch:
                    own = arithmetic.shard(y[part].size)
                    masks = dropout_masks(config, y[part].size, [*seed, next(micro_batch)])
                    masks = [mask[own] for mask in masks]
                    inputs = x[part][own] * arithmetic.compute_dtype(PIXELS.quantum)
                    losses[part][own], found = losses_and_gradients(
                        weights, inputs, y[part][own], targets, arithmetic, masks
                    )
                    gradients = accumulated(gradients, found, arithmetic)
                descent.update(gradients, batch[-1].stop - batch[0].start)
            final = descent.average
            if not config.ema_decay:
                final = quantised(descent.parameters, arithmetic)
            layers, exact = parameters_to_score(final, config, arithmetic)
            validation = score(layers, *validation_set, exact)
            train_loss = arithmetic.loss_sum(losses) / len(losses)
        except ExactnessError as error:
            raise DivergedError(f"training diverged in epoch {epoch} ({error})") from error
        if config.keep == "last" or validation.accuracy > best_accuracy:
            best_accuracy, kept = validation.accuracy, layers
        on_epoch(Epoch(epoch, train_loss, validation.loss, validation.accuracy))
        on_state(state_of(epoch, best_accuracy, kept, descent, arithmetic))
    return kept


def micro_batches(start: int, stop: int) -> list[slice]:
    """Cut a batch into parts of nearly equal size, each small enough for an exact gradient."""
    parts = -(-(stop - start) // LARGEST_MICRO_BATCH)
    edges = [start + (stop - start) * part // parts for part in range(parts + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def accumulated(total: list[Layer], found: list[Layer], arithmetic: Arithmetic) -> list[Layer]:
    """Return the gradients of a batch so far, with those of one more micro-batch."""
    if total:
        found = [Layer(*map(np.add, *layers)) for layers in zip(total, found, strict=True)]
    dtype = arithmetic.compute_dtype
    return [Layer(W.astype(dtype, copy=False), b.astype(dtype, copy=False)) for W, b in found]
