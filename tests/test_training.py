"""The training: against an independent float64 run, and the same bytes however it is run."""

from __future__ import annotations

import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from stages.core import Array
from stages.core.augmentation import Augmentation
from stages.core.data import Images
from stages.core.exact import FINEST_WEIGHT_GRID, PIXELS
from stages.core.network import Layer, initialise, logits_of, on_grids, predict, score
from stages.engine.crew import Crew
from stages.engine.training import DivergedError, Epoch, Part, Recipe, Training, Worker
from stages.pipeline import threads

forks = pytest.mark.skipif(sys.platform != "linux", reason="only Linux trains in several processes")

Set = tuple[Array, Array]


def digits(samples: int, seed: int, pixels: int = 64) -> Set:
    """Return noisy copies of ten random patterns: x (samples, pixels) uint8, y (samples,) uint8."""
    patterns = np.random.default_rng(0).integers(0, 256, (10, pixels))
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 10, samples).astype(np.uint8)
    noise = generator.integers(0, 256, (samples, pixels))
    return ((patterns[y] + noise) // 2).astype(np.uint8), y


TRAIN, VALIDATION = digits(600, seed=1), digits(100, seed=2)


def train(
    recipe: Recipe,
    data: Set = TRAIN,
    validation: Set = VALIDATION,
    workers: int = 1,
    exact: bool = True,
) -> tuple[list[Layer], list[Epoch]]:
    """Return the trained layers and what was reported of each epoch."""
    epochs: list[Epoch] = []
    layers = Training(data, validation, recipe, workers, exact).run(epochs.append)
    return layers, epochs


def digest(layers: Sequence[Layer]) -> str:
    joined = b"".join(values.tobytes() for layer in layers for values in layer)
    return hashlib.sha256(joined).hexdigest()


# ---- against an independent implementation


def start_of(recipe: Recipe, data: Set) -> list[Layer]:
    """Return the weights that training starts from: a rate so small moves no float32 weight."""
    still = Recipe(
        recipe.hidden_sizes, recipe.initialisation, learning_rate=1e-30, momentum=0.0,
        batch_size=recipe.batch_size, epochs=1, seed=recipe.seed,
    )  # fmt: skip
    layers, _ = train(still, data, exact=False)
    return [Layer(W.astype(np.float64), b.astype(np.float64)) for W, b in layers]


def rate_at(recipe: Recipe, progress: float) -> float:
    if progress < recipe.warm_up:
        return progress / recipe.warm_up * rate_at(replace(recipe, warm_up=0.0), progress)
    peak = recipe.learning_rate
    if recipe.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    if recipe.schedule == "step":
        return peak / (1 if progress < 0.5 else 10 if progress < 0.75 else 100)
    if recipe.schedule == "one_cycle":
        if progress < 0.3:
            return peak * (1 / 25 + (1 - 1 / 25) * progress / 0.3)
        return peak * (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2
    return peak


def losses_and_errors(
    layers: Sequence[Layer], data: Set, smoothing: float = 0.0, kept: Sequence[Array] = ()
) -> tuple[Array, list[Array], list[Array]]:
    """Return each sample's loss, what enters each layer, and each layer's errors."""
    x, y = data
    inputs = [x / 256.0]
    for number, (W, b) in enumerate(layers[:-1]):
        a = np.maximum(inputs[-1] @ W + b, 0.0)
        inputs.append(a * kept[number] if kept else a)
    z = inputs[-1] @ layers[-1].W + layers[-1].b
    z -= z.max(axis=1, keepdims=True)
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    errors = [probabilities.copy()]
    errors[0] -= smoothing / 10
    errors[0][np.arange(len(y)), y] -= 1.0 - smoothing
    for (W, _), a in zip(layers[:0:-1], inputs[:0:-1], strict=True):
        errors.insert(0, (errors[0] @ W.T) * (a > 0.0))
    return -np.log(probabilities[np.arange(len(y)), y]), inputs, errors


def reference(recipe: Recipe, start: Sequence[Layer], batches: Sequence[Set]) -> list[list[Layer]]:
    """Train in float64 on the given batches, one step each; return the layers before each step.

    The last entry is what comes out.
    """
    parameters = [values.copy() for layer in start for values in layer]
    m = [np.zeros_like(values) for values in parameters]
    v = [np.zeros_like(values) for values in parameters]
    history = []
    for t, batch in enumerate(batches, start=1):
        layers = [Layer(W, b) for W, b in zip(parameters[::2], parameters[1::2], strict=True)]
        history.append([Layer(W.copy(), b.copy()) for W, b in layers])
        _, inputs, errors = losses_and_errors(layers, batch, recipe.label_smoothing)
        gradients = []
        for (W, _), a, dz in zip(layers, inputs, errors, strict=True):
            gradients += [a.T @ dz / len(dz) + recipe.l2 * W, dz.mean(axis=0)]
        rate = rate_at(recipe, (t - 1) / len(batches))
        for i, g in enumerate(gradients):
            if i % 2 == 0:
                parameters[i] = parameters[i] - rate * recipe.weight_decay * parameters[i]
            if recipe.optimizer == "sgd":
                v[i] = recipe.momentum * v[i] - rate * g
                parameters[i] = parameters[i] + v[i]
            elif recipe.optimizer == "nesterov":
                v[i] = recipe.momentum * v[i] - rate * g
                parameters[i] = parameters[i] + recipe.momentum * v[i] - rate * g
            else:
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g * g
                step = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                parameters[i] = parameters[i] - step * m[i] / (np.sqrt(v[i]) + 1e-7)
            if recipe.max_norm and i % 2 == 0:
                norms = np.linalg.norm(parameters[i], axis=0)
                parameters[i] = parameters[i] * np.minimum(1.0, recipe.max_norm / norms)
    history.append([Layer(W, b) for W, b in zip(parameters[::2], parameters[1::2], strict=True)])
    return history


def assert_close(
    found: Sequence[Layer], expected: Sequence[Layer], start: Sequence[Layer], tolerance: float
) -> None:
    """Check that found and expected differ by little of the way that training has gone."""
    for ours, theirs, before in zip(found, expected, start, strict=True):
        for our, their, old in zip(ours, theirs, before, strict=True):
            assert np.linalg.norm(our - their) < tolerance * np.linalg.norm(their - old)


WHOLE = Recipe([16], batch_size="all", epochs=12, learning_rate=0.2, momentum=0.5)
RECIPES = {
    "momentum": WHOLE,
    "no momentum": replace(WHOLE, momentum=0.0),
    "adam": replace(WHOLE, optimizer="adam", learning_rate=0.01),
    "l2": replace(WHOLE, l2=0.2),
    "adam with l2": replace(WHOLE, optimizer="adam", learning_rate=0.01, l2=0.05),
    "cosine": replace(WHOLE, schedule="cosine"),
    "step": replace(WHOLE, schedule="step"),
    "one cycle": replace(WHOLE, schedule="one_cycle"),
    "warm-up": replace(WHOLE, schedule="cosine", warm_up=0.4),
    "nesterov": replace(WHOLE, optimizer="nesterov"),
    "weight decay": replace(WHOLE, weight_decay=0.1),
    "adamw": replace(WHOLE, optimizer="adam", learning_rate=0.01, weight_decay=0.5),
    "max-norm": replace(WHOLE, max_norm=1.4),
    "label smoothing": replace(WHOLE, label_smoothing=0.2),
    "glorot": replace(WHOLE, initialisation="glorot"),
    "the notebook's start": replace(WHOLE, initialisation="uniform"),
    "two hidden layers": replace(WHOLE, hidden_sizes=[20, 12], learning_rate=0.05),
}


@pytest.mark.parametrize("name", RECIPES)
def test_full_batch_training_agrees_with_an_independent_float64_run(name: str) -> None:
    recipe = RECIPES[name]
    start = start_of(recipe, TRAIN)
    # 600 images: the batch is larger than one part of 512 and becomes two of 300.
    history = reference(recipe, start, [TRAIN] * recipe.epochs)

    plain, reported = train(recipe, exact=False)
    assert_close(plain, history[-1], start, 1e-4)
    exact, exactly_reported = train(recipe)
    # Activations between hidden layers are multiples of 1/32; all else is much finer.
    coarse = len(recipe.hidden_sizes) > 1
    assert_close(exact, history[-1], start, 0.1 if coarse else 0.02)

    for epochs, loss_error, accuracy_error in (
        (reported, 1e-4, 0.011),
        (exactly_reported, 0.01, 0.051 if coarse else 0.021),
    ):
        assert [epoch.epoch for epoch in epochs] == list(range(1, recipe.epochs + 1))
        for epoch, before, after in zip(epochs, history[:-1], history[1:], strict=True):
            # An epoch's training loss is what each image's was when it was learnt from.
            true_train, _, _ = losses_and_errors(before, TRAIN)
            true_validation, inputs, _ = losses_and_errors(after, VALIDATION)
            assert epoch.train_loss == pytest.approx(true_train.mean(), rel=loss_error)
            assert epoch.validation_loss == pytest.approx(true_validation.mean(), rel=loss_error)
            guesses = (inputs[-1] @ after[-1].W + after[-1].b).argmax(axis=1)
            right = (guesses == VALIDATION[1]).mean()
            assert epoch.validation_accuracy == pytest.approx(right, abs=accuracy_error)


@forks
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_engine_in_float64_agrees_with_it_to_float64_accuracy(name: str, workers: int) -> None:
    recipe = RECIPES[name]
    start = start_of(recipe, TRAIN)
    expected = reference(recipe, start, [TRAIN] * recipe.epochs)[-1]
    found = Training(TRAIN, VALIDATION, recipe, workers, exact=False, dtype=np.float64).run()
    # A norm is of weights on a grid of 2**-16.
    loose = {"adam": 1e-6, "max-norm": 1e-4}
    tolerance = max((t for word, t in loose.items() if word in name), default=1e-11)
    assert_close(found, expected, start, tolerance)


@pytest.mark.parametrize("hidden_sizes", [[16], [20, 12]])
@pytest.mark.parametrize("workers", [1, 2] if sys.platform == "linux" else [1])
def test_batch_normalisation_agrees_with_tensorflows_gradients_and_moments(
    hidden_sizes: list[int], workers: int, tensorflow: ModuleType
) -> None:
    tf = tensorflow
    data = TRAIN[0][:400], TRAIN[1][:400]
    recipe = Recipe(
        hidden_sizes, batch_size="all", epochs=10, learning_rate=0.2, momentum=0.0,
        batch_normalisation=True, average=0.6,
    )  # fmt: skip
    start = start_of(recipe, data)
    W = [tf.Variable(layer.W) for layer in start]
    b = [tf.Variable(layer.b) for layer in start]
    averages = [[v.numpy() for v in W], [v.numpy() for v in b]]
    moments: list[list[Array]] = []
    for step in range(1, recipe.epochs + 1):
        found = []
        with tf.GradientTape() as tape:
            a = tf.constant(data[0] / 256.0)
            for number in range(len(hidden_sizes)):
                z = a @ W[number]
                mean, variance = tf.nn.moments(z, axes=[0])
                found.append([mean.numpy(), variance.numpy()])
                a = tf.nn.relu(tf.nn.batch_normalization(z, mean, variance, b[number], None, 1e-5))
            logits = a @ W[-1] + b[-1]
            labels = data[1].astype(np.int64)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        for variable, g in zip([*W, *b], tape.gradient(loss, [*W, *b]), strict=True):
            variable.assign_sub(recipe.learning_rate * g)
        share = min(0.6, (1 + step) / (10 + step))
        for average, variables in zip(averages, (W, b), strict=True):
            for i, variable in enumerate(variables):
                average[i] = share * average[i] + (1 - share) * variable.numpy()
        share = share if moments else 0.0
        moments = [
            [share * old + (1 - share) * new for old, new in zip(olds, news, strict=True)]
            for olds, news in zip(moments or found, found, strict=True)
        ]
    expected = [Layer(*layer) for layer in zip(*averages, strict=True)]
    for number, (mean, variance) in enumerate(moments):
        deviation = np.sqrt(variance + 1e-5)
        expected[number] = Layer(
            expected[number].W / deviation, expected[number].b - mean / deviation
        )
    double = Training(data, VALIDATION, recipe, workers, exact=False, dtype=np.float64).run()
    assert_close(double, expected, start, 1e-9)
    single = Training(data, VALIDATION, recipe, workers, exact=False).run()
    assert_close(single, expected, start, 1e-4)
    exact = Training(data, VALIDATION, recipe, workers).run()
    assert_close(exact, expected, start, 0.02 if len(hidden_sizes) == 1 else 0.1)


def test_weights_that_the_last_step_takes_out_of_bounds_are_kept_on_coarser_grids() -> None:
    recipe = Recipe([20], batch_size="all", epochs=1, learning_rate=4.0, momentum=0.0)
    bound = PIXELS.limit * FINEST_WEIGHT_GRID
    assert np.abs(start_of(recipe, TRAIN)[0].W).sum(axis=0).max() < bound
    layers, _ = train(recipe)
    W = layers[0].W
    assert np.abs(W).sum(axis=0).max() > bound
    np.testing.assert_array_equal(
        np.rint(W / (2 * FINEST_WEIGHT_GRID)), W / (2 * FINEST_WEIGHT_GRID)
    )
    assert digest(on_grids(layers)[0]) == digest(layers)


@pytest.mark.parametrize("max_norm", [0.01, 1.5, 90.0])
@pytest.mark.parametrize("times", [0.1, 1.0, 100.0])
def test_max_norm_holds_for_weights_of_any_size(max_norm: float, times: float) -> None:
    recipe = Recipe([20], epochs=1, learning_rate=1e-30, momentum=0.0, max_norm=max_norm)
    training = Training(TRAIN, VALIDATION, recipe, exact=False)
    training.start = [Layer(W * np.float32(times * max_norm), b) for W, b in training.start]
    for (W, _), (old, _) in zip(training.run(), training.start, strict=True):
        norms = np.linalg.norm(old.astype(np.float64), axis=0)
        assert np.linalg.norm(W, axis=0).max() < 1.001 * max_norm
        if np.abs(old).max() < 16.0 * max_norm:
            np.testing.assert_allclose(W, old * np.minimum(1.0, max_norm / norms), rtol=1e-3)


def test_parts_of_a_batch_are_nearly_equal_so_that_each_says_enough_of_its_moments() -> None:
    recipe = Recipe([8], batch_size=513, epochs=20, batch_normalisation=True)
    data = digits(1026, seed=1)
    _, epochs = train(recipe, data)
    assert epochs[-1].validation_loss < 2 * epochs[-1].train_loss + 0.01


def test_dropout_is_what_its_masks_say() -> None:
    # One step over all images: two parts, each with masks of its own for both layers.
    recipe = Recipe([20, 12], batch_size="all", epochs=1, learning_rate=0.5, dropout=0.3)
    start = start_of(recipe, TRAIN)
    order = np.random.default_rng([recipe.seed, 1]).permutation(600)
    W = [np.zeros_like(layer.W) for layer in start]
    b = [np.zeros_like(layer.b) for layer in start]
    for part, images in enumerate((order[:300], order[300:])):
        generator = np.random.default_rng([recipe.seed, 1, part, 1])
        kept = [generator.random((len(images), n), np.float32) >= 0.3 for n in (20, 12)]
        assert 0.6 < kept[0].mean() < 0.8
        batch = TRAIN[0][images], TRAIN[1][images]
        _, inputs, errors = losses_and_errors(start, batch, kept=kept)
        for number, (a, dz) in enumerate(zip(inputs, errors, strict=True)):
            W[number] += a.T @ dz / 600
            b[number] += dz.sum(axis=0) / 600
    keeping = [1.0, 0.7, 0.7]  # weights that leave hidden units are scaled at the end
    expected = [
        Layer((old.W - 0.5 * dW) * keep, old.b - 0.5 * db)
        for old, dW, db, keep in zip(start, W, b, keeping, strict=True)
    ]
    found, _ = train(recipe, exact=False)
    still = [Layer(old.W * keep, old.b) for old, keep in zip(start, keeping, strict=True)]
    assert_close(found, expected, still, 1e-4)
    exact, _ = train(recipe)
    assert_close(exact, expected, still, 0.1)


@pytest.mark.parametrize("batch_size", [100, 1000])
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_a_last_smaller_batch_is_a_mean_over_its_own_images(batch_size: int, schedule: str) -> None:
    # One image many times: whatever the order, every batch's mean gradient is that image's.
    samples = batch_size * 3 // 2
    one = TRAIN[0][:1], TRAIN[1][:1]
    many = np.repeat(one[0], samples, axis=0), np.repeat(one[1], samples)
    recipe = replace(WHOLE, batch_size=batch_size, epochs=3, learning_rate=0.02, schedule=schedule)
    start = start_of(recipe, many)
    history = reference(recipe, start, [one] * 6)
    layers, epochs = train(recipe, many, exact=False)
    assert_close(layers, history[-1], start, 1e-4)
    exact, _ = train(recipe, many)
    assert_close(exact, history[-1], start, 0.05)
    for epoch, first, second in zip(epochs, history[:-1:2], history[1:-1:2], strict=True):
        large, small = (losses_and_errors(layers, one)[0][0] for layers in (first, second))
        assert epoch.train_loss == pytest.approx((2 * large + small) / 3, rel=1e-4)


@pytest.mark.parametrize("batch_size", [64, 550])
def test_exact_mini_batch_training_stays_close_to_plain_float32(batch_size: int) -> None:
    recipe = Recipe([16], batch_size=batch_size, epochs=2, learning_rate=0.02, seed=4)
    start = start_of(recipe, TRAIN)
    exact, exactly = train(recipe)
    plain, plainly = train(recipe, exact=False)
    assert_close(exact, plain, start, 0.03)
    for one, other in zip(exactly, plainly, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=0.01)


def test_exact_training_starts_from_the_same_weights_put_on_their_grids() -> None:
    still = Recipe([16, 12], "uniform", learning_rate=1e-30, momentum=0.0, epochs=1)
    plain, _ = train(still, exact=False)
    exact, _ = train(still)
    assert digest(exact) == digest(on_grids(plain)[0])
    assert digest(exact) != digest(plain)


# ---- the same bytes


LAYOUTS = {
    "last batch of one image": (
        Recipe([16], batch_size=64, epochs=3, learning_rate=0.05, l2=0.001, schedule="cosine"),
        257,
    ),
    "adam, two hidden layers, two parts": (
        Recipe([20, 12], optimizer="adam", learning_rate=0.01, batch_size="all", epochs=4),
        600,
    ),
    "three hidden layers": (
        Recipe([12, 9, 7], batch_size=100, epochs=2, learning_rate=0.05, keep="best"),
        600,
    ),
    "everything at once": (
        Recipe(
            [20, 12, 9],
            optimizer="nesterov",
            learning_rate=0.05,
            batch_size=60,
            epochs=2,
            warm_up=0.2,
            l2=0.001,
            weight_decay=0.001,
            max_norm=1.5,
            dropout=0.2,
            label_smoothing=0.1,
            batch_normalisation=True,
            average=0.9,
        ),
        600,
    ),
    "one hidden unit": (Recipe([1], batch_size=50, epochs=2, learning_rate=0.05), 200),
    "weights that outgrow their grid": (
        Recipe([16], batch_size=50, epochs=3, learning_rate=2.0, momentum=0.9),
        600,
    ),
}


@forks
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_number_of_workers_changes_no_byte(name: str) -> None:
    recipe, samples = LAYOUTS[name]
    data = TRAIN[0][:samples], TRAIN[1][:samples]
    # Three images to validate on: four workers do not have one each.
    validation = VALIDATION[0][:3], VALIDATION[1][:3]
    layers, epochs = train(recipe, data, validation)
    for workers in (2, 3, 4):
        others, reported = train(recipe, data, validation, workers)
        assert digest(others) == digest(layers)
        assert reported == epochs


@forks
def test_the_number_of_workers_changes_no_byte_of_augmented_averaged_training() -> None:
    everything = Augmentation(10, scale=0.1, shear=0.1, shift=1, elastic=20, thickness=1)
    recipe = Recipe([16], batch_size=50, epochs=2, average=0.99, augmentation=everything)
    data, validation = digits(1100, seed=1, pixels=784), digits(50, seed=2, pixels=784)
    layers, epochs = train(recipe, data, validation)
    for workers in (2, 3, 4):
        others, reported = train(recipe, data, validation, workers)
        assert digest(others) == digest(layers)
        assert reported == epochs


@forks
@pytest.mark.parametrize("name", ["last batch of one image", "everything at once"])
def test_processes_that_are_late_change_no_byte(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, samples = LAYOUTS[name]
    data = TRAIN[0][:samples], TRAIN[1][:samples]
    layers, epochs = train(recipe, data)
    wait, prepare, generators = Crew.wait, Worker._prepare, {}

    def nap() -> None:
        own = generators.setdefault(os.getpid(), random.Random(os.getpid()))
        time.sleep(own.choice([0.0, 0.0, 0.001, 0.004]))

    def late_wait(crew: Crew, rank: int, meanwhile: Callable[[], None] | None = None) -> None:
        nap()
        wait(crew, rank, meanwhile)
        nap()

    def late_prepare(worker: Worker, parts: Sequence[Part], number: int) -> None:
        nap()
        prepare(worker, parts, number)

    monkeypatch.setattr(Crew, "wait", late_wait)
    monkeypatch.setattr(Worker, "_prepare", late_prepare)
    for workers in (2, 3):
        others, reported = train(recipe, data, workers=workers)
        assert digest(others) == digest(layers)
        assert reported == epochs


def test_weights_outgrow_their_grid_in_the_test_above_and_are_still_on_one() -> None:
    recipe, _ = LAYOUTS["weights that outgrow their grid"]

    def largest_sum(layers: Sequence[Layer]) -> float:
        return float(np.abs(layers[0].W).sum(axis=0).max())

    trained, _ = train(recipe)
    # The finest grid, 2**-12, holds up to 2**16 steps: 16.
    assert largest_sum(start_of(recipe, TRAIN)) < 16.0 < largest_sum(trained)
    again, arithmetic = on_grids(trained)
    assert digest(again) == digest(trained)
    assert arithmetic.grids[0] > 2.0**-12


def test_how_the_images_lie_in_memory_changes_no_byte(tmp_path: Path) -> None:
    recipe = Recipe([16], batch_size=64, epochs=2, learning_rate=0.05)
    x, y = TRAIN
    expected = digest(train(recipe)[0])
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    wide = np.repeat(x, 2, axis=1)
    frozen = x.copy()
    frozen.flags.writeable = False
    for other in (np.asfortranarray(x), mapped, wide[:, ::2], frozen):
        assert digest(train(recipe, (other, y))[0]) == expected
    assert digest(train(recipe, (x, y.astype(np.int64)))[0]) == expected


def test_leaving_dark_pixels_out_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = digits(300, seed=3, pixels=784)
    bright = np.random.default_rng(3).random(x.shape) < np.linspace(0.0, 0.3, 784)
    recipe = Recipe([16, 9], batch_size=40, epochs=3, learning_rate=0.05, l2=0.001)
    sparse = (np.where(bright, x, 0).astype(np.uint8), y)
    sorted_by_use = Images.by_use(sparse[0])
    assert sorted_by_use.used.max() <= 783  # the first pixel is never bright
    assert sorted_by_use.used.min() < 700
    found = train(recipe, sparse, digits(50, seed=4, pixels=784))
    monkeypatch.setattr(Images, "by_use", Images.as_they_are)
    expected = train(recipe, sparse, digits(50, seed=4, pixels=784))
    assert digest(found[0]) == digest(expected[0])
    assert found[1] == expected[1]


def test_weights_of_pixels_that_training_never_uses_count_for_the_bound() -> None:
    # An image to be scored may use them.
    x, y = digits(100, seed=3)
    x[:, 20:] = 0
    training = Training((x, y), VALIDATION, Recipe([16], batch_size=100, epochs=2))
    layers = training.run()
    steps = 2
    found = training.board.weight_sums[steps % 2, 0, :16]
    assert (found == np.abs(layers[0].W).sum(axis=0, dtype=np.float64)).all()


def test_training_leaves_the_data_as_it_is() -> None:
    before = TRAIN[0].tobytes(), TRAIN[1].tobytes(), VALIDATION[0].tobytes()
    train(Recipe([8], epochs=1))
    assert (TRAIN[0].tobytes(), TRAIN[1].tobytes(), VALIDATION[0].tobytes()) == before


def digests_of_a_pipeline(workers: int) -> str:
    """Return digests of weights, curves and logits, for comparison with another process's."""
    data, validation = digits(1100, seed=5, pixels=784), digits(200, seed=6, pixels=784)
    lines = []
    for recipe in (
        Recipe([40], batch_size=64, epochs=2, learning_rate=0.02, schedule="cosine", l2=0.0003),
        Recipe([33, 17], "glorot", "adam", 0.003, "one_cycle", batch_size=700, epochs=3),
        Recipe([16], "uniform", learning_rate=0.3, momentum=0.0, batch_size="all", epochs=4),
    ):
        layers, epochs = train(recipe, data, validation, workers)
        parameters, arithmetic = on_grids(layers)
        logits = logits_of(parameters, validation[0], arithmetic)
        scored = score(parameters, *validation, arithmetic)
        lines.append(f"{digest(layers)} {digest([Layer(logits, logits)])} {scored} {epochs}")
    return "\n".join(lines)


def test_threads_kernels_and_instruction_sets_change_no_byte() -> None:
    # The variables are read when NumPy is first imported, hence a process of its own. A kernel or
    # an instruction set that this machine does not know only warns.
    variation = {
        "BLAS_THREADS": "2",
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4",
    }
    tests = Path(__file__).parent
    other = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            "import test_training; print(test_training.digests_of_a_pipeline(workers=1))",
        ],
        env=os.environ | variation | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digests_of_a_pipeline(threads.worker_count())


@pytest.mark.parametrize("batch_size", [600, 601, 60_000])
def test_a_batch_that_holds_every_image_is_the_whole_set(batch_size: int) -> None:
    whole, reported = train(replace(WHOLE, epochs=3))
    layers, epochs = train(replace(WHOLE, epochs=3, batch_size=batch_size))
    assert digest(layers) == digest(whole)
    assert epochs == reported


def test_the_seed_alone_makes_the_difference_between_two_runs() -> None:
    recipe = Recipe([16], epochs=1)
    first, again, other = (digest(train(replace(recipe, seed=seed))[0]) for seed in (7, 7, 8))
    assert first == again
    assert first != other


# ---- which weights are kept


def misleading_validation() -> Set:
    """Return images under wrong labels: the better the network, the fewer it gets right."""
    x, y = VALIDATION
    return x, (y + 1) % 10


def test_the_weights_after_the_best_epoch_are_kept() -> None:
    recipe = Recipe([16], epochs=6, learning_rate=0.02, keep="best")
    validation = misleading_validation()
    layers, epochs = train(recipe, validation=validation)
    accuracies = [epoch.validation_accuracy for epoch in epochs]
    best = accuracies.index(max(accuracies))
    assert accuracies[best] > accuracies[-1]
    parameters, arithmetic = on_grids(layers)
    assert score(parameters, *validation, arithmetic).accuracy == accuracies[best]
    # The run would have been the same up to there.
    until_best, _ = train(replace(recipe, epochs=best + 1), TRAIN, validation)
    assert digest(until_best) == digest(layers)


def test_of_equally_good_epochs_the_first_is_kept() -> None:
    recipe = Recipe([16], epochs=4, learning_rate=0.02, keep="best")
    one_wrong = tuple(values[:1] for values in misleading_validation())
    layers, epochs = train(recipe, validation=one_wrong)
    assert [epoch.validation_accuracy for epoch in epochs] == [0.0] * 4
    first, _ = train(replace(recipe, epochs=1), validation=one_wrong)
    assert digest(layers) == digest(first)


def test_the_last_weights_are_kept_even_if_others_were_better() -> None:
    validation = misleading_validation()
    layers, epochs = train(
        Recipe([16], epochs=6, learning_rate=0.02, keep="last"), validation=validation
    )
    parameters, arithmetic = on_grids(layers)
    found = score(parameters, *validation, arithmetic)
    assert found.accuracy == epochs[-1].validation_accuracy
    assert found.loss == pytest.approx(epochs[-1].validation_loss, rel=1e-12)


def test_reported_scores_are_those_of_the_weights_returned() -> None:
    layers, epochs = train(Recipe([16], epochs=3, learning_rate=0.05))
    parameters, arithmetic = on_grids(layers)
    right = predict(logits_of(parameters, VALIDATION[0], arithmetic)) == VALIDATION[1]
    assert right.mean() == epochs[-1].validation_accuracy


# ---- what can go wrong


def children() -> set[int]:
    """Return the processes that this one has started and not buried."""
    found = Path("/proc/self/task").glob("*/children")
    return {int(child) for file in found for child in file.read_text().split()}


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail instead of hanging."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=forks)])
def test_diverging_training_says_when_and_why(workers: int) -> None:
    before = children()
    recipe = Recipe([16], learning_rate=100.0, epochs=50)
    with within(60), pytest.raises(DivergedError, match=r"in epoch \d+ \(.* add up to ") as error:
        train(recipe, workers=workers)
    assert "\n" not in str(error.value)
    assert children() == before


@pytest.mark.parametrize(
    "workers",
    [1, pytest.param(2, marks=forks)],
)
def test_diverging_training_prints_nothing(workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    # What went wrong is one clear line, and for the stage to print.
    with within(60), pytest.raises(DivergedError):
        train(Recipe([16], learning_rate=100.0, epochs=50), workers=workers)
    assert capfd.readouterr() == ("", "")


@forks
@pytest.mark.parametrize("workers", [2, 4])
def test_a_worker_that_dies_ends_the_training_with_an_error(workers: int) -> None:
    before = children()

    def kill_one(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            os.kill(min(children() - before), signal.SIGKILL)

    training = Training(TRAIN, VALIDATION, Recipe([16], epochs=10_000), workers)
    with within(60), pytest.raises(RuntimeError, match="worker"):
        training.run(kill_one)
    assert children() == before


@forks
def test_an_interrupted_training_leaves_no_process_behind() -> None:
    before = children()

    def interrupt(_: Epoch) -> None:
        assert len(children() - before) == 2
        raise KeyboardInterrupt

    training = Training(TRAIN, VALIDATION, Recipe([16], epochs=10_000), workers=3)
    with within(60), pytest.raises(KeyboardInterrupt):
        training.run(interrupt)
    assert children() == before


@forks
def test_finished_training_leaves_no_process_behind() -> None:
    before = children()
    train(Recipe([16], epochs=1), workers=4)
    assert children() == before


# ---- real images


@pytest.fixture(scope="module")
def real(mnist: dict[str, Array]) -> tuple[Set, Set]:
    """2,000 images to train on and 1,000 others to validate on."""
    x, y = mnist["x_train"].reshape(60_000, 784), mnist["y_train"]
    return (x[:2000], y[:2000]), (x[2000:3000], y[2000:3000])


def test_the_notebooks_recipe_learns_real_digits(real: tuple[Set, Set]) -> None:
    # Full batch, a start between -1/2 and 1/2, no momentum, one rate. The notebook asks for 0.1
    # and, dividing by 10,000 where it adds up 60,000, gets 0.6.
    notebook = Recipe(
        [64], "uniform", learning_rate=0.6, momentum=0.0, batch_size="all", epochs=100
    )
    layers, epochs = train(notebook, *real, workers=threads.worker_count())
    assert epochs[0].train_loss > 2.0
    assert epochs[-1].train_loss < 0.35
    for earlier, later in pairwise(epochs[::20]):
        assert later.train_loss < earlier.train_loss
    assert epochs[-1].validation_accuracy > 0.82
    parameters, arithmetic = on_grids(layers)
    assert score(parameters, *real[0], arithmetic).accuracy > 0.9


def test_mini_batches_with_momentum_learn_real_digits_exactly_and_plainly(
    real: tuple[Set, Set],
) -> None:
    recipe = Recipe([64], learning_rate=0.05, schedule="cosine", batch_size=64, epochs=8, l2=0.0003)
    accuracies = []
    for exact in (True, False):
        _, epochs = train(recipe, *real, workers=threads.worker_count(), exact=exact)
        losses = [epoch.train_loss for epoch in epochs]
        assert losses == sorted(losses, reverse=True)
        accuracies.append(epochs[-1].validation_accuracy)
    assert min(accuracies) > 0.88
    assert abs(accuracies[0] - accuracies[1]) < 0.015


def test_averaged_weights_follow_their_formula() -> None:
    """One step a batch, so that the last step's average can be worked out from the weights."""
    data, validation = digits(64, seed=1), digits(16, seed=2)
    decay, steps = 0.9, 12

    def after(epochs: int, average: float) -> list[Layer]:
        recipe = Recipe(
            [8], batch_size="all", epochs=epochs, average=average, learning_rate=0.05, momentum=0.0
        )
        return Training(data, validation, recipe, exact=False).run()

    sizes = [64, 8, 10]
    expected = [
        np.concatenate([W.ravel(), b]) for W, b in initialise(sizes, "he", np.random.default_rng(1))
    ]
    for step in range(1, steps + 1):
        kept_share = min(decay, (1 + step) / (10 + step))
        for average, (W, b) in zip(expected, after(step, 0.0), strict=True):
            average += (np.concatenate([W.ravel(), b]) - average) * (1 - kept_share)
    for average, (W, b) in zip(expected, after(steps, decay), strict=True):
        np.testing.assert_allclose(np.concatenate([W.ravel(), b]), average, atol=2e-6)
