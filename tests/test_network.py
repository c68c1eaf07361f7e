"""The network against hand calculation, finite differences, TensorFlow, Keras and the notebook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import Array
from stages.core.exact import Arithmetic, Exact, Plain
from stages.core.initialisation import initialise
from stages.core.network import (
    Layer,
    cross_entropy,
    cross_entropy_derivative,
    forward,
    losses_and_gradients,
    one_hot,
    quantised,
    relu,
    relu_derivative,
    softmax,
    softmax_terms,
)
from stages.core.prediction import classify, logits_of, predict, quantise, score

DOUBLE = Plain(np.float64)
SINGLE = Plain(np.float32)


def random_network(sizes: Sequence[int], seed: int, dtype: type = np.float64) -> list[Layer]:
    """Return weights of the size that training starts from, and biases that are not 0."""
    generator = np.random.default_rng(seed)
    return [
        Layer(
            (generator.uniform(-1.0, 1.0, (inputs, outputs)) * np.sqrt(6.0 / inputs)).astype(dtype),
            generator.uniform(-0.5, 0.5, outputs).astype(dtype),
        )
        for inputs, outputs in pairwise(sizes)
    ]


def random_images(samples: int, pixels: int, classes: int, seed: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 256, (samples, pixels)).astype(np.uint8)
    return x, generator.integers(0, classes, samples)


def pass_through(
    parameters: Sequence[Layer], x: Array, y: Array, arithmetic: Arithmetic
) -> tuple[Array, list[Layer]]:
    """Return the logits and the mean gradient of a batch, x uint8, as a training step has them."""
    weights, inputs = quantised(parameters, arithmetic), x.astype(arithmetic.compute_dtype) / 256
    targets = one_hot(np.arange(len(parameters[-1].b)), len(parameters[-1].b))
    _, gradients = losses_and_gradients(weights, inputs, y, targets, arithmetic)
    mean = [Layer(dW / len(x), db / len(x)) for dW, db in gradients]
    return forward(weights, inputs, arithmetic).logits, mean


def probabilities_of(logits: Array, arithmetic: Arithmetic) -> Array:
    return softmax(softmax_terms(logits, arithmetic))


def mean_loss(parameters: Sequence[Layer], x: Array, y: Array) -> float:
    """Return the mean cross-entropy, straight from its definition, in float64."""
    a = x / 256.0
    for W, b in parameters[:-1]:
        a = np.maximum(a @ W + b, 0.0)
    e = np.exp(a @ parameters[-1].W + parameters[-1].b)
    return float(-np.log(e[np.arange(len(y)), y] / e.sum(axis=1)).mean())


# A network of two inputs, two hidden units and two classes, worked by hand.
#   x = (1/2, 1/4), label 1
#   z1 = x @ W1 + b1 = (1/2 + 2/4 + 1/2, -1/2 + 1/4 + 0) = (3/2, -1/4)     a1 = (3/2, 0)
#   z2 = a1 @ W2 + b2 = (3 + 0, 0 + 3 - ln 3)       softmax: 3 to 1, so (3/4, 1/4)
#   loss = -ln 1/4 = ln 4
#   dz2 = (3/4, 1/4) - (0, 1) = (3/4, -3/4)
#   dW2 = a1.T @ dz2 = ((9/8, -9/8), (0, 0))        db2 = dz2
#   dz2 @ W2.T = (3/4 * 2, 3/4 + 3/4) = (3/2, 3/2), but hidden unit 2 is off: dz1 = (3/2, 0)
#   dW1 = x.T @ dz1 = ((3/4, 0), (3/8, 0))          db1 = dz1
BY_HAND = [
    Layer(np.array([[1.0, -1.0], [2.0, 1.0]]), np.array([0.5, 0.0])),
    Layer(np.array([[2.0, 0.0], [1.0, -1.0]]), np.array([0.0, 3.0 - math.log(3.0)])),
]
BY_HAND_X, BY_HAND_Y = np.array([[128, 64]], np.uint8), np.array([1])


@pytest.mark.parametrize("arithmetic", ["float64", "float32", "exact"])
def test_a_tiny_network_worked_by_hand(arithmetic: str) -> None:
    kind = {"float64": DOUBLE, "float32": SINGLE, "exact": Exact(2)}
    chosen = kind[arithmetic]
    tolerance = 1e-12 if arithmetic == "float64" else 1e-5
    parameters = [
        Layer(W.astype(chosen.compute_dtype), b.astype(chosen.compute_dtype)) for W, b in BY_HAND
    ]
    logits, (first, second) = pass_through(parameters, BY_HAND_X, BY_HAND_Y, chosen)

    assert np.allclose(logits, [[3.0, 3.0 - math.log(3.0)]], atol=tolerance)
    assert np.allclose(probabilities_of(logits, chosen), [[0.75, 0.25]], atol=tolerance)
    assert np.allclose(
        cross_entropy(softmax_terms(logits, chosen), BY_HAND_Y), [math.log(4.0)], atol=tolerance
    )
    assert np.allclose(second.W, [[9 / 8, -9 / 8], [0.0, 0.0]], atol=tolerance)
    assert np.allclose(second.b, [3 / 4, -3 / 4], atol=tolerance)
    assert np.allclose(first.W, [[3 / 4, 0.0], [3 / 8, 0.0]], atol=tolerance)
    assert np.allclose(first.b, [3 / 2, 0.0], atol=tolerance)


def test_a_step_along_the_gradient_worked_by_hand_lowers_the_loss() -> None:
    _, gradients = pass_through(BY_HAND, BY_HAND_X, BY_HAND_Y, DOUBLE)
    moved = [
        Layer(W - 0.1 * dW, b - 0.1 * db)
        for (W, b), (dW, db) in zip(BY_HAND, gradients, strict=True)
    ]
    assert np.allclose(moved[0].W, [[0.925, -1.0], [1.9625, 1.0]])
    assert np.allclose(moved[0].b, [0.35, 0.0])
    assert np.allclose(moved[1].W, [[1.8875, 0.1125], [1.0, -1.0]])
    # z1 = (0.4625 + 0.490625 + 0.35, off), z2 = 1.303125 * (1.8875, 0.1125) + b2.
    a1 = 0.4625 + 0.490625 + 0.35
    difference = a1 * (1.8875 - 0.1125) - 0.075 - (3.0 - math.log(3.0) + 0.075)
    loss = score(moved, BY_HAND_X, BY_HAND_Y, DOUBLE).loss
    assert loss == pytest.approx(math.log(1.0 + math.exp(difference)), rel=1e-12)
    assert loss < math.log(4.0)


@pytest.mark.parametrize("sizes", [[6, 5, 4], [7, 6, 5, 4], [3, 4, 3, 4, 3]])
def test_gradients_agree_with_central_differences_in_every_parameter(sizes: list[int]) -> None:
    parameters = random_network(sizes, seed=3)
    x, y = random_images(9, sizes[0], sizes[-1], seed=4)
    _, gradients = pass_through(parameters, x, y, DOUBLE)
    step = 1e-5
    for layer, computed in zip(parameters, gradients, strict=True):
        for values, derivatives in zip(layer, computed, strict=True):
            differences = np.empty_like(values)
            for place in np.ndindex(values.shape):
                kept = values[place]
                values[place] = kept + step
                above = mean_loss(parameters, x, y)
                values[place] = kept - step
                below = mean_loss(parameters, x, y)
                values[place] = kept
                differences[place] = (above - below) / (2.0 * step)
            assert np.allclose(derivatives, differences, rtol=1e-6, atol=1e-9)
            assert np.abs(derivatives).max() > 1e-3


@pytest.mark.parametrize("sizes", [[50, 16, 10], [50, 16, 12, 10]])
def test_gradients_agree_with_tensorflows(tensorflow: ModuleType, sizes: list[int]) -> None:
    tf = tensorflow
    parameters = random_network(sizes, seed=5)
    x, y = random_images(40, sizes[0], sizes[-1], seed=6)
    logits, gradients = pass_through(parameters, x, y, DOUBLE)

    variables = [tf.Variable(values) for layer in parameters for values in layer]
    with tf.GradientTape() as tape:
        a = tf.constant(x / 256.0)
        for W, b in zip(variables[:-2:2], variables[1:-2:2], strict=True):
            a = tf.nn.relu(a @ W + b)
        their_logits = a @ variables[-2] + variables[-1]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, their_logits)
        loss = tf.reduce_mean(losses)
    assert np.allclose(logits, their_logits.numpy(), rtol=1e-12)
    assert score(parameters, x, y, DOUBLE).loss == pytest.approx(float(loss), rel=1e-12)
    ours = [values for layer in gradients for values in layer]
    for our, their in zip(ours, tape.gradient(loss, variables), strict=True):
        assert np.allclose(our, their.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("sizes", [[784, 64, 10], [784, 32, 16, 10]])
def test_probabilities_agree_with_a_keras_model_on_the_same_weights(
    tensorflow: ModuleType, sizes: list[int]
) -> None:
    keras = tensorflow.keras
    parameters, arithmetic = quantise(random_network(sizes, seed=7, dtype=np.float32))
    x, y = random_images(100, sizes[0], sizes[-1], seed=8)
    layers = [keras.layers.Dense(size, activation="relu") for size in sizes[1:-1]]
    model = keras.Sequential(
        [keras.Input((784,)), *layers, keras.layers.Dense(10, activation="softmax")]
    )
    model.set_weights([values for layer in parameters for values in layer])
    theirs = model(x / np.float32(256.0)).numpy()

    assert np.allclose(
        probabilities_of(logits_of(parameters, x, SINGLE), SINGLE), theirs, atol=2e-5
    )
    # Between two hidden layers exact activations are multiples of 1/32.
    coarse = 1e-4 if len(sizes) == 3 else 0.05
    exact = probabilities_of(logits_of(parameters, x, arithmetic), arithmetic)
    assert np.allclose(exact, theirs, atol=coarse)
    loss = keras.losses.SparseCategoricalCrossentropy()(y, theirs)
    assert score(parameters, x, y, SINGLE).loss == pytest.approx(float(loss), rel=1e-4)


def notebook_gradients(
    parameters: Sequence[Layer], x: Array, y: Array
) -> tuple[Array, Array, Array, Array]:
    """Return the notebook's dw1, db1, dw2, db2, one column per sample, its three slips corrected.

    m is the batch's size, a bias has a gradient of its own, and softmax subtracts each sample's
    own maximum.
    """
    (w1, b1), (w2, b2) = [(W.T, b[:, None]) for W, b in parameters]
    x = x.T / 256.0
    m = x.shape[1]
    z1 = np.dot(w1, x) + b1
    a1 = np.maximum(z1, 0)
    z2 = np.dot(w2, a1) + b2
    exp_z = np.exp(z2 - np.max(z2, axis=0))
    a2 = exp_z / sum(exp_z)
    one_hot_y = np.zeros((m, len(w2)))
    one_hot_y[np.arange(m), y] = 1

    dz2 = a2 - one_hot_y.T
    dw2 = 1 / m * np.dot(dz2, a1.T)
    db2 = 1 / m * np.sum(dz2, axis=1)
    dz1 = np.dot(w2.T, dz2) * (z1 > 0)
    dw1 = 1 / m * np.dot(dz1, x.T)
    db1 = 1 / m * np.sum(dz1, axis=1)
    return dw1, db1, dw2, db2


def test_gradients_agree_with_the_notebooks_formulas_corrected() -> None:
    parameters = random_network([784, 64, 10], seed=9)
    x, y = random_images(50, 784, 10, seed=10)
    _, (first, second) = pass_through(parameters, x, y, DOUBLE)
    dw1, db1, dw2, db2 = notebook_gradients(parameters, x, y)
    assert np.allclose(first.W, dw1.T, rtol=1e-10, atol=1e-13)
    assert np.allclose(first.b, db1, rtol=1e-10, atol=1e-13)
    assert np.allclose(second.W, dw2.T, rtol=1e-10, atol=1e-13)
    assert np.allclose(second.b, db2, rtol=1e-10, atol=1e-13)


def test_a_batch_repeated_has_the_same_mean_gradient() -> None:
    parameters = random_network([20, 8, 10], seed=11)
    x, y = random_images(15, 20, 10, seed=12)
    _, once = pass_through(parameters, x, y, DOUBLE)
    _, thrice = pass_through(parameters, np.tile(x, (3, 1)), np.tile(y, 3), DOUBLE)
    for one, three in zip(once, thrice, strict=True):
        assert np.allclose(one.W, three.W, rtol=1e-12, atol=1e-15)
        assert np.allclose(one.b, three.b, rtol=1e-12, atol=1e-15)


def test_exact_gradients_keep_to_the_error_that_the_budgets_allow() -> None:
    sizes = [30, 8, 10]
    parameters, exact = quantise(random_network(sizes, seed=13, dtype=np.float32))
    x, y = random_images(60, sizes[0], sizes[-1], seed=14)
    double = [Layer(W.astype(np.float64), b.astype(np.float64)) for W, b in parameters]
    true_logits, true = pass_through(double, x, y, DOUBLE)
    logits, found = pass_through(parameters, x, y, exact)

    # A unit within a step of 0 might be on in one and off in the other; here none is.
    (W1, b1), (W2, _) = double
    z1 = x / 256.0 @ W1 + b1
    assert np.abs(z1).min() > 2.0**-16
    # An activation is off by half a step and by what adding b in float32 rounds.
    activation = 2.0**-17 + np.abs(z1).max() * 2.0**-24
    logit = activation * np.abs(W2).sum(axis=0).max()
    # softmax moves by at most half the spread of its logits' errors; then exp and its own step.
    output_error = logit / 2 + 2 * 2e-9 + 2.0**-21
    hidden_error = output_error * np.abs(W2).sum(axis=1).max()
    # Each hidden unit's errors are rounded to steps of twice their sum / (2**16 - 2**8) or less.
    dz1 = (probabilities_of(true_logits, DOUBLE) - one_hot(y, 10)) @ W2.T * (z1 > 0)
    step = 2.0 * np.abs(dz1).sum(axis=0) / (2.0**16 - 2.0**8)
    largest = activation + np.maximum(z1, 0.0).max()

    assert np.abs(logits - true_logits).max() <= logit
    assert np.abs(found[1].b - true[1].b).max() <= output_error + 1e-7
    assert np.abs(found[1].W - true[1].W).max() <= output_error * largest + activation + 1e-7
    assert (np.abs(found[0].W - true[0].W) <= hidden_error + step / 2 + 1e-7).all()
    assert (np.abs(found[0].b - true[0].b) <= hidden_error + step / 2 + 1e-7).all()
    # All these bounds are small beside the gradient itself.
    assert hidden_error + step.max() / 2 < 0.005 * np.abs(true[0].W).max()


def test_exact_gradients_through_two_hidden_layers_point_the_same_way() -> None:
    sizes = [200, 40, 30, 10]
    parameters, exact = quantise(random_network(sizes, seed=15, dtype=np.float32))
    x, y = random_images(200, sizes[0], sizes[-1], seed=16)
    double = [Layer(W.astype(np.float64), b.astype(np.float64)) for W, b in parameters]
    _, true = pass_through(double, x, y, DOUBLE)
    _, found = pass_through(parameters, x, y, exact)
    for exactly, truly in zip(found, true, strict=True):
        for ours, theirs in zip(exactly, truly, strict=True):
            # Activations are rounded by up to 1/64 and are about 1, so of the units that are on
            # about one in a hundred is taken for off: a tenth of the gradient's norm at worst.
            assert np.linalg.norm(ours - theirs) < 0.1 * np.linalg.norm(theirs)


logit_rows = st.lists(
    st.lists(st.floats(-1e4, 1e4), min_size=10, max_size=10), min_size=1, max_size=5
).map(np.array)
arithmetics = st.sampled_from([DOUBLE, Exact(2)])


@given(logit_rows, arithmetics)
def test_softmax_gives_probabilities_whatever_the_logits(
    logits: Array, arithmetic: Arithmetic
) -> None:
    found = probabilities_of(logits, arithmetic)
    assert ((found >= 0.0) & (found <= 1.0)).all()
    assert np.allclose(found.sum(axis=1), 1.0, rtol=1e-12)
    # Where e**z is below e**-32 beside the largest, exact arithmetic stays at e**-32.
    shifted = logits - logits.max(axis=1, keepdims=True)
    definition = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    assert np.allclose(found, definition, rtol=1e-8, atol=2e-14)


@given(logit_rows, arithmetics)
def test_cross_entropy_is_minus_the_logarithm_of_softmax_and_never_overflows(
    logits: Array, arithmetic: Arithmetic
) -> None:
    terms = softmax_terms(logits, arithmetic)
    shifted = logits - logits.max(axis=1, keepdims=True)
    for label in range(10):
        losses = cross_entropy(terms, np.full(len(logits), label))
        assert np.isfinite(losses).all()
        assert (losses >= -1e-8).all()
        likely = softmax(terms)[:, label] > 1e-9
        assert np.allclose(losses[likely], -np.log(softmax(terms)[likely, label]), atol=1e-7)
        # Even where the probability underflows, the loss is the difference of the logits or more.
        assert (losses >= -shifted[:, label] - 1e-8).all()


def test_cross_entropy_of_known_logits() -> None:
    logits = np.array([[0.0, 0.0, 0.0, 0.0], [1000.0, 0.0, 0.0, 0.0], [1000.0, 0.0, 0.0, 0.0]])
    losses = cross_entropy(softmax_terms(logits, DOUBLE), np.array([2, 0, 1]))
    assert losses == pytest.approx([math.log(4.0), 0.0, 1000.0], rel=1e-15)


def test_small_pieces_say_what_they_are() -> None:
    z = np.array([-2.0, -0.0, 0.5, 7.0])
    assert relu(z).tolist() == [0.0, 0.0, 0.5, 7.0]
    assert relu(z, saturation=3.0).tolist() == [0.0, 0.0, 0.5, 3.0]
    assert relu_derivative(relu(z)).tolist() == [False, False, True, True]
    assert one_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    difference = cross_entropy_derivative(np.array([[0.25, 0.75]]), one_hot(np.array([1]), 2))
    assert difference.tolist() == [[0.25, -0.25]]
    smoothed = one_hot(np.array([1]), 4, label_smoothing=0.2)
    assert np.allclose(smoothed, [[0.05, 0.85, 0.05, 0.05]], rtol=1e-15)


def test_the_lower_class_wins_a_tie() -> None:
    logits = np.array([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
    assert predict(logits).tolist() == [1, 0, 3]


@pytest.mark.parametrize("samples", [1, 7, 512, 513, 1100])
def test_scores_agree_with_a_slow_count(samples: int) -> None:
    parameters = random_network([12, 9, 10], seed=17)
    x, y = random_images(samples, 12, 10, seed=18)
    found = score(parameters, x, y, DOUBLE)
    (W1, b1), (W2, b2) = parameters
    correct = 0
    for image, label in zip(x, y, strict=True):
        hidden = [max(0.0, float(image / 256.0 @ W1[:, unit] + b1[unit])) for unit in range(9)]
        outputs = [float(hidden @ W2[:, unit] + b2[unit]) for unit in range(10)]
        correct += max(range(10), key=outputs.__getitem__) == label
    assert (found.samples, found.correct) == (samples, correct)
    assert found.accuracy == correct / samples
    assert found.error_rate == pytest.approx(1.0 - correct / samples)
    assert found.loss == pytest.approx(mean_loss(parameters, x, y), rel=1e-12)


@pytest.mark.parametrize("sizes", [[784, 64, 10], [784, 32, 16, 10]])
def test_a_prediction_does_not_depend_on_the_batch_the_image_is_scored_in(
    mnist: dict[str, Array], sizes: list[int]
) -> None:
    parameters, arithmetic = quantise(random_network(sizes, seed=19, dtype=np.float32))
    images = mnist["x_test"][:700].reshape(700, 784)
    together = logits_of(parameters, images, arithmetic)

    for place in (0, 3, 511, 512, 699):
        alone = logits_of(parameters, images[place : place + 1], arithmetic)
        assert alone.tobytes() == together[place].tobytes()
    backwards = logits_of(parameters, images[::-1], arithmetic)
    assert np.array_equal(backwards[::-1], together)
    three_at_a_time = [logits_of(parameters, images[i : i + 3], arithmetic) for i in range(9)]
    assert all(np.array_equal(three[0], together[i]) for i, three in enumerate(three_at_a_time))


def test_a_loss_does_not_depend_on_the_order_of_the_images() -> None:
    parameters, arithmetic = quantise(random_network([20, 16, 10], seed=20, dtype=np.float32))
    x, y = random_images(999, 20, 10, seed=21)
    order = np.random.default_rng(22).permutation(999)
    assert score(parameters, x, y, arithmetic) == score(parameters, x[order], y[order], arithmetic)


def test_quantised_weights_stay_as_they_are() -> None:
    once, _ = quantise(random_network([60, 16, 12, 10], seed=23, dtype=np.float32))
    twice, _ = quantise(once)
    for one, two in zip(once, twice, strict=True):
        assert one.W.tobytes() == two.W.tobytes()
        assert one.b.tobytes() == two.b.tobytes()
        assert one.W.dtype == np.float32


@pytest.mark.parametrize(
    ("initialisation", "bounds"),
    [
        ("he", [math.sqrt(6 / 784), math.sqrt(6 / 100)]),
        ("glorot", [math.sqrt(6 / 884), math.sqrt(6 / 110)]),
        ("uniform", [0.5, 0.5]),
    ],
)
def test_initial_weights_are_uniform_between_their_bounds(
    initialisation: str, bounds: list[float]
) -> None:
    layers = initialise([784, 100, 10], initialisation, np.random.default_rng(1))
    assert [W.shape for W, _ in layers] == [(784, 100), (100, 10)]
    assert [b.shape for _, b in layers] == [(100,), (10,)]
    for (W, b), bound in zip(layers, bounds, strict=True):
        assert W.dtype == b.dtype == np.float32
        assert 0.98 * bound < np.abs(W).max() <= np.float32(bound)
        # A uniform distribution has mean 0 and standard deviation bound / sqrt(3).
        assert abs(W.mean()) < 4.0 * bound / math.sqrt(3.0 * W.size)
        assert W.std() == pytest.approx(bound / math.sqrt(3.0), rel=0.05)
        assert (np.abs(b).max() > 0.25) if initialisation == "uniform" else not b.any()


def test_he_keeps_the_activations_variance_from_layer_to_layer() -> None:
    layers = initialise([400, 400, 400, 400], "he", np.random.default_rng(2))
    a = np.random.default_rng(3).uniform(-1.0, 1.0, (500, 400))
    sizes = []
    for W, _ in layers:
        z = a @ W
        sizes.append(float((z**2).mean()))
        a = np.maximum(z, 0.0)
    assert sizes[2] == pytest.approx(sizes[1], rel=0.25)


def test_the_generator_alone_decides_the_initial_weights() -> None:
    def bytes_of(seed: int) -> list[bytes]:
        layers = initialise([30, 20, 10], "he", np.random.default_rng(seed))
        return [W.tobytes() for W, _ in layers]

    assert bytes_of(1) == bytes_of(1)
    assert bytes_of(1) != bytes_of(2)


def test_classify_gives_digits_and_probabilities_of_images_in_either_shape() -> None:
    parameters = random_network([784, 16, 10], seed=24, dtype=np.float32)
    x, _ = random_images(20, 784, 10, seed=25)
    found = classify(parameters, x.reshape(20, 28, 28))
    layers, arithmetic = quantise(parameters)
    expected = probabilities_of(logits_of(layers, x, arithmetic), arithmetic)
    assert found.probabilities.tobytes() == expected.tobytes()
    assert found.classes.tolist() == expected.argmax(axis=1).tolist()
    assert classify(parameters, x).probabilities.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8, np.bool_])
def test_images_that_are_not_uint8_are_refused(dtype: type) -> None:
    parameters = random_network([4, 3, 10], seed=26, dtype=np.float32)
    with pytest.raises(TypeError, match=f"images are {np.dtype(dtype)}; must be uint8"):
        classify(parameters, np.ones((2, 4), dtype))
