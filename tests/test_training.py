"""The training loop against an independent float64 run; what it keeps, and what can go wrong."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from stages.core import Array
from stages.core import training as textbook
from stages.core.augmentation import Augmentation
from stages.core.config import TrainConfig
from stages.core.data import LabelledImages
from stages.core.exact import FINEST_WEIGHT_QUANTUM, PIXELS, Exact, ExactnessError, Plain
from stages.core.initialisation import initialise
from stages.core.network import Layer
from stages.core.prediction import logits_of, predict, quantise, score
from stages.core.training import DivergedError, Epoch

NO_AUGMENTATION = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, smoothness=4.0, thickness=0.0)
SIMPLE = TrainConfig(
    hidden_sizes=[16],
    initialisation="he",
    optimizer="sgd",
    learning_rate=0.1,
    schedule="constant",
    momentum=0.9,
    batch_size=128,
    epochs=10,
    l2=0.0,
    weight_decay=0.0,
    dropout=0.0,
    label_smoothing=0.0,
    ema_decay=0.0,
    augmentation=NO_AUGMENTATION,
    seed=1,
    keep="last",
)


def digits(
    samples: int, seed: int, shape: tuple[int, int] = (8, 8), classes: int = 10
) -> LabelledImages:
    """Return noisy copies of random patterns: images (samples, *shape) and labels, uint8 both."""
    patterns = np.random.default_rng(0).integers(0, 256, (classes, *shape))
    generator = np.random.default_rng(seed)
    y = generator.permutation(np.arange(samples) % classes).astype(np.uint8)
    noise = generator.integers(0, 256, (samples, *shape))
    return ((patterns[y] + noise) // 2).astype(np.uint8), y


TRAIN, VALIDATION = digits(600, seed=1), digits(100, seed=2)


def train(
    config: TrainConfig,
    data: LabelledImages = TRAIN,
    validation: LabelledImages = VALIDATION,
    arithmetic: Exact | Plain | None = None,
) -> tuple[list[Layer], list[Epoch]]:
    """Return the trained layers and what was reported of each epoch."""
    epochs: list[Epoch] = []
    return textbook.train(data, validation, config, epochs.append, arithmetic), epochs


def digest(layers: Sequence[Layer]) -> str:
    joined = b"".join(values.tobytes() for layer in layers for values in layer)
    return hashlib.sha256(joined).hexdigest()


# ---- against an independent implementation


def start_of(config: TrainConfig, data: LabelledImages) -> list[Layer]:
    """Return the initial weights."""
    sizes = [data[0][0].size, *config.hidden_sizes, 10]
    generator = np.random.default_rng(config.seed)
    return initialise(sizes, config.initialisation, generator, np.float64)


def rate_at(config: TrainConfig, progress: float) -> float:
    peak = config.learning_rate
    if config.schedule == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    if config.schedule == "step":
        return peak / (1 if progress < 0.5 else 10 if progress < 0.75 else 100)
    if config.schedule == "one_cycle":
        if progress < 0.3:
            return peak * (1 / 25 + (1 - 1 / 25) * progress / 0.3)
        return peak * (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2
    return peak


def losses_and_deltas(
    layers: Sequence[Layer],
    data: LabelledImages,
    smoothing: float = 0.0,
    kept: Sequence[Array] = (),
) -> tuple[Array, list[Array], list[Array]]:
    """Return each sample's loss, what enters each layer, and each layer's deltas."""
    x, y = data
    inputs = [x.reshape(len(x), -1) / 256.0]
    for number, (W, b) in enumerate(layers[:-1]):
        a = np.maximum(inputs[-1] @ W + b, 0.0)
        inputs.append(a * kept[number] if kept else a)
    z = inputs[-1] @ layers[-1].W + layers[-1].b
    z -= z.max(axis=1, keepdims=True)
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    deltas = [probabilities.copy()]
    deltas[0] -= smoothing / 10
    deltas[0][np.arange(len(y)), y] -= 1.0 - smoothing
    for (W, _), a in zip(layers[:0:-1], inputs[:0:-1], strict=True):
        deltas.insert(0, (deltas[0] @ W.T) * (a > 0.0))
    return -np.log(probabilities[np.arange(len(y)), y]), inputs, deltas


def reference(
    config: TrainConfig, start: Sequence[Layer], batches: Sequence[LabelledImages]
) -> list[list[Layer]]:
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
        _, inputs, deltas = losses_and_deltas(layers, batch, config.label_smoothing)
        gradients = []
        for (W, _), a, dz in zip(layers, inputs, deltas, strict=True):
            gradients += [a.T @ dz / len(dz) + config.l2 * W, dz.mean(axis=0)]
        rate = rate_at(config, (t - 1) / len(batches))
        for i, g in enumerate(gradients):
            if i % 2 == 0:
                parameters[i] = parameters[i] - rate * config.weight_decay * parameters[i]
            if config.optimizer == "sgd":
                v[i] = config.momentum * v[i] - rate * g
                parameters[i] = parameters[i] + v[i]
            elif config.optimizer == "nesterov":
                v[i] = config.momentum * v[i] - rate * g
                parameters[i] = parameters[i] + config.momentum * v[i] - rate * g
            else:
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g * g
                step = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
                parameters[i] = parameters[i] - step * m[i] / (np.sqrt(v[i]) + 1e-7)
    history.append([Layer(W, b) for W, b in zip(parameters[::2], parameters[1::2], strict=True)])
    return history


def assert_close(
    found: Sequence[Layer], expected: Sequence[Layer], start: Sequence[Layer], tolerance: float
) -> None:
    """Check that found and expected differ by little of the way that training has gone."""
    for ours, theirs, before in zip(found, expected, start, strict=True):
        for our, their, old in zip(ours, theirs, before, strict=True):
            assert np.linalg.norm(our - their) < tolerance * np.linalg.norm(their - old)


WHOLE = replace(SIMPLE, batch_size="all", epochs=12, learning_rate=0.2, momentum=0.5)
CONFIGS = {
    "momentum": WHOLE,
    "no momentum": replace(WHOLE, momentum=0.0),
    "adam": replace(WHOLE, optimizer="adam", learning_rate=0.01),
    "l2": replace(WHOLE, l2=0.2),
    "adam with l2": replace(WHOLE, optimizer="adam", learning_rate=0.01, l2=0.05),
    "cosine": replace(WHOLE, schedule="cosine"),
    "step": replace(WHOLE, schedule="step"),
    "one cycle": replace(WHOLE, schedule="one_cycle"),
    "nesterov": replace(WHOLE, optimizer="nesterov"),
    "weight decay": replace(WHOLE, weight_decay=0.1),
    "adamw": replace(WHOLE, optimizer="adam", learning_rate=0.01, weight_decay=0.5),
    "label smoothing": replace(WHOLE, label_smoothing=0.2),
    "glorot": replace(WHOLE, initialisation="glorot"),
    "the notebook's start": replace(WHOLE, initialisation="uniform"),
    "two hidden layers": replace(WHOLE, hidden_sizes=[20, 12], learning_rate=0.05),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_full_batch_training_agrees_with_an_independent_float64_run(name: str) -> None:
    config = CONFIGS[name]
    start = start_of(config, TRAIN)
    # 600 images: the batch is larger than one part of 512 and becomes two of 300.
    history = reference(config, start, [TRAIN] * config.epochs)

    plain, reported = train(config, arithmetic=Plain())
    assert_close(plain, history[-1], start, 1e-4)
    exact, exactly_reported = train(config)
    # Activations between hidden layers are multiples of 1/32; all else is much finer.
    coarse = len(config.hidden_sizes) > 1
    assert_close(exact, history[-1], start, 0.1 if coarse else 0.02)

    for epochs, loss_error, accuracy_error in (
        (reported, 1e-4, 0.011),
        (exactly_reported, 0.01, 0.051 if coarse else 0.021),
    ):
        assert [epoch.epoch for epoch in epochs] == list(range(1, config.epochs + 1))
        for epoch, before, after in zip(epochs, history[:-1], history[1:], strict=True):
            # An epoch's training loss is what each image's was when it was learnt from.
            true_train, _, _ = losses_and_deltas(before, TRAIN)
            true_validation, inputs, _ = losses_and_deltas(after, VALIDATION)
            assert epoch.train_loss == pytest.approx(true_train.mean(), rel=loss_error)
            assert epoch.validation_loss == pytest.approx(true_validation.mean(), rel=loss_error)
            guesses = (inputs[-1] @ after[-1].W + after[-1].b).argmax(axis=1)
            right = (guesses == VALIDATION[1]).mean()
            assert epoch.validation_accuracy == pytest.approx(right, abs=accuracy_error)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_in_float64_agrees_with_it_to_float64_accuracy(name: str) -> None:
    config = CONFIGS[name]
    start = start_of(config, TRAIN)
    expected = reference(config, start, [TRAIN] * config.epochs)[-1]
    found, _ = train(config, arithmetic=Plain(np.float64))
    assert_close(found, expected, start, 1e-6 if "adam" in name else 1e-11)


def test_weights_that_the_last_step_takes_out_of_bounds_are_kept_on_coarser_quanta() -> None:
    config = replace(
        SIMPLE, hidden_sizes=[20], batch_size="all", epochs=1, learning_rate=4.0, momentum=0.0
    )
    bound = PIXELS.budget * FINEST_WEIGHT_QUANTUM
    assert np.abs(start_of(config, TRAIN)[0].W).sum(axis=0).max() < bound
    layers, _ = train(config)
    W = layers[0].W
    assert np.abs(W).sum(axis=0).max() > bound
    np.testing.assert_array_equal(
        np.rint(W / (2 * FINEST_WEIGHT_QUANTUM)), W / (2 * FINEST_WEIGHT_QUANTUM)
    )
    assert digest(quantise(layers)[0]) == digest(layers)


def test_dropout_is_what_its_masks_say() -> None:
    # One step over all images: two parts, each with masks of its own for both layers.
    config = replace(
        WHOLE, hidden_sizes=[20, 12], epochs=1, learning_rate=0.5, momentum=0.0, dropout=0.3
    )
    start = start_of(config, TRAIN)
    order = np.random.default_rng([config.seed, 1]).permutation(600)
    W = [np.zeros_like(layer.W) for layer in start]
    b = [np.zeros_like(layer.b) for layer in start]
    for part, images in enumerate((order[:300], order[300:])):
        generator = np.random.default_rng([config.seed, 1, part, 1])
        kept = [generator.random((len(images), n), np.float32) >= 0.3 for n in (20, 12)]
        assert 0.6 < kept[0].mean() < 0.8
        batch = TRAIN[0][images], TRAIN[1][images]
        _, inputs, deltas = losses_and_deltas(start, batch, kept=kept)
        for number, (a, dz) in enumerate(zip(inputs, deltas, strict=True)):
            W[number] += a.T @ dz / 600
            b[number] += dz.sum(axis=0) / 600
    keeping = [1.0, 0.7, 0.7]  # weights that leave hidden units are scaled at the end
    expected = [
        Layer((old.W - 0.5 * dW) * keep, old.b - 0.5 * db)
        for old, dW, db, keep in zip(start, W, b, keeping, strict=True)
    ]
    found, _ = train(config, arithmetic=Plain())
    still = [Layer(old.W * keep, old.b) for old, keep in zip(start, keeping, strict=True)]
    assert_close(found, expected, still, 1e-4)
    exact, _ = train(config)
    assert_close(exact, expected, still, 0.1)


@pytest.mark.parametrize("batch_size", [100, 1000])
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_a_last_smaller_batch_is_a_mean_over_its_own_images(batch_size: int, schedule: str) -> None:
    # One image many times: whatever the order, every batch's mean gradient is that image's.
    samples = batch_size * 3 // 2
    place = int(TRAIN[1].argmax())  # of the last class, which says how many there are
    one = TRAIN[0][place : place + 1], TRAIN[1][place : place + 1]
    many = np.repeat(one[0], samples, axis=0), np.repeat(one[1], samples)
    config = replace(WHOLE, batch_size=batch_size, epochs=3, learning_rate=0.02, schedule=schedule)
    start = start_of(config, many)
    history = reference(config, start, [one] * 6)
    layers, epochs = train(config, many, arithmetic=Plain())
    assert_close(layers, history[-1], start, 1e-4)
    exact, _ = train(config, many)
    assert_close(exact, history[-1], start, 0.05)
    for epoch, first, second in zip(epochs, history[:-1:2], history[1:-1:2], strict=True):
        large, small = (losses_and_deltas(layers, one)[0][0] for layers in (first, second))
        assert epoch.train_loss == pytest.approx((2 * large + small) / 3, rel=1e-4)


@pytest.mark.parametrize("batch_size", [64, 550])
def test_exact_mini_batch_training_stays_close_to_plain_float32(batch_size: int) -> None:
    config = replace(SIMPLE, batch_size=batch_size, epochs=2, learning_rate=0.02, seed=4)
    start = start_of(config, TRAIN)
    exact, exactly = train(config)
    plain, plainly = train(config, arithmetic=Plain())
    assert_close(exact, plain, start, 0.03)
    for one, other in zip(exactly, plainly, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=0.01)


# ---- the same bytes


def test_training_leaves_the_data_as_it_is() -> None:
    before = TRAIN[0].tobytes(), TRAIN[1].tobytes(), VALIDATION[0].tobytes()
    train(replace(SIMPLE, epochs=1))
    assert (TRAIN[0].tobytes(), TRAIN[1].tobytes(), VALIDATION[0].tobytes()) == before


@pytest.mark.parametrize("batch_size", [600, 601, 60_000])
def test_a_batch_that_holds_every_image_is_the_whole_set(batch_size: int) -> None:
    whole, reported = train(replace(WHOLE, epochs=3))
    layers, epochs = train(replace(WHOLE, epochs=3, batch_size=batch_size))
    assert digest(layers) == digest(whole)
    assert epochs == reported


def test_the_seed_alone_makes_the_difference_between_two_runs() -> None:
    config = replace(SIMPLE, epochs=1)
    first, again, other = (digest(train(replace(config, seed=seed))[0]) for seed in (7, 7, 8))
    assert first == again
    assert first != other


# ---- which weights are kept


def misleading_validation() -> LabelledImages:
    """Return images under wrong labels: the better the network, the fewer it gets right."""
    x, y = VALIDATION
    return x, (y + 1) % 10


def test_the_weights_after_the_best_epoch_are_kept() -> None:
    config = replace(SIMPLE, epochs=6, learning_rate=0.02, keep="best")
    validation = misleading_validation()
    layers, epochs = train(config, validation=validation)
    accuracies = [epoch.validation_accuracy for epoch in epochs]
    best = accuracies.index(max(accuracies))
    assert accuracies[best] > accuracies[-1]
    parameters, arithmetic = quantise(layers)
    assert score(parameters, *validation, arithmetic).accuracy == accuracies[best]
    # The run would have been the same up to there.
    until_best, _ = train(replace(config, epochs=best + 1), TRAIN, validation)
    assert digest(until_best) == digest(layers)


def test_of_equally_good_epochs_the_first_is_kept() -> None:
    config = replace(SIMPLE, epochs=4, learning_rate=0.02, keep="best")
    one_wrong = tuple(values[:1] for values in misleading_validation())
    layers, epochs = train(config, validation=one_wrong)
    assert [epoch.validation_accuracy for epoch in epochs] == [0.0] * 4
    first, _ = train(replace(config, epochs=1), validation=one_wrong)
    assert digest(layers) == digest(first)


def test_the_last_weights_are_kept_even_if_others_were_better() -> None:
    validation = misleading_validation()
    layers, epochs = train(
        replace(SIMPLE, epochs=6, learning_rate=0.02, keep="last"), validation=validation
    )
    parameters, arithmetic = quantise(layers)
    found = score(parameters, *validation, arithmetic)
    assert found.accuracy == epochs[-1].validation_accuracy
    assert found.loss == pytest.approx(epochs[-1].validation_loss, rel=1e-12)


def test_reported_scores_are_those_of_the_weights_returned() -> None:
    layers, epochs = train(replace(SIMPLE, epochs=3, learning_rate=0.05))
    parameters, arithmetic = quantise(layers)
    right = predict(logits_of(parameters, VALIDATION[0], arithmetic)) == VALIDATION[1]
    assert right.mean() == epochs[-1].validation_accuracy


# ---- what can go wrong


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_diverging_training_says_when_and_why(average: float) -> None:
    config = replace(SIMPLE, learning_rate=100.0, epochs=50, ema_decay=average)
    with pytest.raises(DivergedError, match=r"in epoch \d+ \(.* add up to ") as error:
        train(config)
    assert "\n" not in str(error.value)


def test_initial_weights_that_are_too_large_are_refused() -> None:
    with pytest.raises(ExactnessError, match="layer 2 add up to"):
        train(replace(SIMPLE, hidden_sizes=[1536], initialisation="uniform"))


# ---- real images


@pytest.fixture(scope="module")
def real(mnist: dict[str, Array]) -> tuple[LabelledImages, LabelledImages]:
    """2,000 images to train on and 1,000 others to validate on."""
    x, y = mnist["x_train"], mnist["y_train"]
    return (x[:2000], y[:2000]), (x[2000:3000], y[2000:3000])


def test_the_notebooks_recipe_learns_real_digits(
    real: tuple[LabelledImages, LabelledImages],
) -> None:
    # Full batch, initial weights from -1/2 to 1/2, no momentum, one learning rate. The notebook
    # asks for 0.1 and, dividing by 10,000 where it adds up 60,000, gets 0.6.
    notebook = replace(
        WHOLE, hidden_sizes=[64], initialisation="uniform", learning_rate=0.6, momentum=0.0,
        epochs=100,
    )  # fmt: skip
    layers, epochs = train(notebook, *real)
    assert epochs[0].train_loss > 2.0
    assert epochs[-1].train_loss < 0.35
    for earlier, later in pairwise(epochs[::20]):
        assert later.train_loss < earlier.train_loss
    assert epochs[-1].validation_accuracy > 0.82
    parameters, arithmetic = quantise(layers)
    assert score(parameters, *real[0], arithmetic).accuracy > 0.9


def test_mini_batches_with_momentum_learn_real_digits_exactly_and_plainly(
    real: tuple[LabelledImages, LabelledImages],
) -> None:
    config = replace(
        SIMPLE, hidden_sizes=[64], learning_rate=0.05, schedule="cosine", batch_size=64, epochs=8,
        l2=0.0003,
    )  # fmt: skip
    accuracies = []
    for arithmetic in (Exact(2), Plain()):
        _, epochs = train(config, *real, arithmetic)
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
        config = replace(
            WHOLE, hidden_sizes=[8], epochs=epochs, ema_decay=average, learning_rate=0.05,
            momentum=0.0,
        )  # fmt: skip
        return train(config, data, validation, Plain())[0]

    sizes = [64, 8, 10]
    expected = [
        np.concatenate([W.ravel(), b]) for W, b in initialise(sizes, "he", np.random.default_rng(1))
    ]
    for step in range(1, steps + 1):
        effective = min(decay, (1 + step) / (10 + step))
        for average, (W, b) in zip(expected, after(step, 0.0), strict=True):
            average += (np.concatenate([W.ravel(), b]) - average) * (1 - effective)
    for average, (W, b) in zip(expected, after(steps, decay), strict=True):
        np.testing.assert_allclose(np.concatenate([W.ravel(), b]), average, atol=2e-6)
