"""The claims of the proof in `stages.core.exact`, each against integers or rational numbers."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.core import Array
from stages.core import exact as budget
from stages.core.data import MOST_CLASSES
from stages.core.exact import (
    FINEST_WEIGHT_QUANTUM,
    HIDDEN,
    LARGEST_MICRO_BATCH,
    LAST_HIDDEN,
    LOSS_QUANTUM,
    LOSS_SUM_BOUND,
    OUTPUT_WEIGHT_BOUND,
    PIXELS,
    Exact,
    ExactnessError,
    Plain,
    power_of_two_above,
    round_to,
)
from stages.core.network import (
    Layer,
    backward,
    cross_entropy,
    cross_entropy_derivative,
    forward,
    one_hot,
    quantised,
    softmax,
    softmax_terms,
)
from tests.checks.small_project import ROOT, environment

BITS = {np.float32: 24, np.float64: 53}


def exact_for(weights: Sequence[Array]) -> Exact:
    """Return the arithmetic for these weights, its quanta found."""
    arithmetic = Exact(len(weights))
    arithmetic.quantise_weights(weights)
    return arithmetic


# ---- rounding to a quantum


@st.composite
def values_and_quanta(draw: st.DrawFn) -> tuple[np.floating, float]:
    """Draw a float32 or float64 of at most 2**(p - 2) steps of a quantum, often half-way."""
    kind = draw(st.sampled_from([np.float32, np.float64]))
    quantum = 2.0 ** draw(st.integers(-40, 40))
    steps = draw(
        st.one_of(
            st.floats(-(2.0 ** (BITS[kind] - 2)), 2.0 ** (BITS[kind] - 2)),
            st.floats(-100.0, 100.0),
            st.integers(-1000, 1000).map(lambda n: n / 2.0),
            st.integers(-1000, 1000).map(lambda n: float(np.nextafter(kind(n / 2.0), kind(0)))),
        )
    )
    return kind(steps) * kind(quantum), quantum


@given(values_and_quanta())
def test_rounding_agrees_with_rational_arithmetic(case: tuple[np.floating, float]) -> None:
    value, quantum = case
    found = round_to(np.array([value]), quantum)
    assert found.dtype == value.dtype
    # Python's round of a fraction takes ties to even.
    expected = round(Fraction(float(value)) / Fraction(quantum)) * Fraction(quantum)
    assert Fraction(float(found[0])) == expected


def test_ties_go_to_the_even_multiple() -> None:
    halves = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], np.float32)
    assert round_to(halves, 1.0).tolist() == [-2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 4.0]
    assert round_to(halves / 8.0, 0.125).tolist() == [-0.25, -0.25, 0, 0, 0.25, 0.25, 0.5]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_rounding_holds_up_to_its_stated_range_and_no_further(kind: type) -> None:
    edge = 2.0 ** (BITS[kind] - 2)
    inside = np.array([edge, -edge, edge - 0.5, -edge + 0.5], kind)
    assert round_to(inside, 1.0).tolist() == [edge, -edge, edge, -edge]
    # Beyond it a negative value lands where the format's spacing is half a step.
    outside = np.array([-edge - 0.5], kind)
    assert round_to(outside, 1.0).tolist() == [-edge - 0.5]


def test_each_column_or_row_can_have_a_quantum_of_its_own() -> None:
    values = np.array([[0.3, 0.3, 0.3], [0.7, 0.7, 0.7]], np.float32)
    by_column = round_to(values, np.array([1.0, 0.5, 0.25], np.float32))
    assert by_column.tolist() == [[0.0, 0.5, 0.25], [1.0, 0.5, 0.75]]
    by_row = round_to(values, np.array([[1.0], [0.25]], np.float32))
    assert by_row.tolist() == [[0.0, 0.0, 0.0], [0.75, 0.75, 0.75]]


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_the_power_of_two_above_is_the_smallest_that_is_greater(value: float) -> None:
    power = float(power_of_two_above(value))
    assert Fraction(power) == Fraction(2) ** round(math.log2(power))
    assert power > value
    assert power / 2.0 <= value


def test_the_power_of_two_above_known_values() -> None:
    values = np.array([0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 1023.0, 1024.0])
    assert power_of_two_above(values).tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 1024.0, 2048.0]


# ---- the table: every sum at its bound


# For every sum of the table: its format, the most steps a left factor has, and the most steps
# that the right factors' magnitudes add up to, both from the constants that the code uses.
SUMS = {
    "x @ W, pixels": (np.float32, PIXELS.levels, PIXELS.budget),
    "x @ W, hidden": (np.float32, HIDDEN.levels, HIDDEN.budget),
    "x.T @ dz, pixels": (np.float32, PIXELS.levels, PIXELS.budget),
    "x.T @ dz, hidden": (np.float32, HIDDEN.levels, HIDDEN.budget),
    "a @ W, output layer": (
        np.float64,
        LAST_HIDDEN.levels,
        OUTPUT_WEIGHT_BOUND / budget.OUTPUT_WEIGHT_QUANTUM,
    ),
    "a.T @ dz, output layer": (
        np.float64,
        LAST_HIDDEN.levels,
        LARGEST_MICRO_BATCH / budget.OUTPUT_DELTA_QUANTUM,
    ),
    "dz @ W.T, output layer": (
        np.float64,
        OUTPUT_WEIGHT_BOUND / budget.OUTPUT_WEIGHT_QUANTUM,
        2.0 / budget.OUTPUT_DELTA_QUANTUM,
    ),
    "abs(dz) over a batch": (np.float64, 1, budget.DELTA_SUM_BOUND / 2.0**-36),
    "e**z over the classes": (np.float64, 1, budget.FEW_CLASSES / budget.EXPONENTIAL_QUANTUM),
    "e**z over more classes": (np.float64, 1, MOST_CLASSES / budget.EXPONENTIAL_QUANTUM_OF_MANY),
    "losses over the samples": (np.float64, 1, LOSS_SUM_BOUND / LOSS_QUANTUM),
}


@pytest.mark.parametrize("name", SUMS)
def test_every_row_of_the_table_fits_its_format(name: str) -> None:
    kind, left, right = SUMS[name]
    assert left * right <= 2.0 ** BITS[kind]


@pytest.mark.parametrize("name", SUMS)
@given(data=st.data())
def test_every_row_of_the_table_has_one_result_in_every_order(
    name: str, data: st.DataObject
) -> None:
    kind, most_left, right_sum = SUMS[name]
    seed = data.draw(st.integers(0, 2**32 - 1))
    terms = data.draw(st.integers(1, 700))
    generator = np.random.default_rng(seed)
    # Random shares of the whole budget, some of it always spent: magnitudes add up to it.
    shares = generator.dirichlet(np.full(terms, data.draw(st.sampled_from([0.05, 1.0, 50.0]))))
    right = [int(share * right_sum) for share in shares]
    right[0] += int(right_sum) - sum(right)
    signs = generator.choice([-1, 1], terms) if data.draw(st.booleans()) else np.ones(terms, int)
    right = [number * int(sign) for number, sign in zip(right, signs, strict=True)]
    left = [int(most_left)] * terms
    if data.draw(st.booleans()):
        left = [int(n) for n in generator.integers(0, int(most_left) + 1, terms)]
    true = sum(one * other for one, other in zip(left, right, strict=True))

    # Scaling by powers of two, as quanta do, changes nothing.
    g, h = kind(2.0**-8), kind(2.0**-12)
    x, y = np.array(left, kind) * g, np.array(right, kind) * h
    unit = Fraction(float(g)) * Fraction(float(h))
    assert [int(Fraction(float(v)) / Fraction(float(h))) for v in y] == right
    order = generator.permutation(terms)
    results = [
        x @ y,
        x[order] @ y[order],
        x[::-1] @ y[::-1],
        (x * y).sum(),
        np.cumsum((x * y)[order])[-1],
        x[::2] @ y[::2] + x[1::2] @ y[1::2],
        kind(math.fsum((x * y).tolist())),
    ]
    assert {Fraction(float(result)) / unit for result in results} == {Fraction(true)}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_one_step_beyond_the_bound_a_sum_depends_on_its_order(kind: type) -> None:
    bound = kind(2.0 ** BITS[kind])
    one = kind(1.0)
    assert (bound + one) + one != bound + (one + one)
    # Within the bound it does not.
    below = bound - kind(2.0)
    assert (below + one) + one == below + (one + one)


# ---- the code: every sum of a whole pass


def as_integers(values: Array, exponent: int = 60) -> Array:
    """Return the values, times 2**exponent, as Python's integers, which are never rounded."""
    fractions = [Fraction(float(value)) * 2**exponent for value in values.ravel()]
    assert all(fraction.denominator == 1 for fraction in fractions)
    integers = np.array([int(fraction) for fraction in fractions], object)
    return integers.reshape(values.shape)


def assert_product_is_exact(
    left: Array, right: Array, kind: type, generator: np.random.Generator
) -> None:
    """Check that left @ right has one result: permuted, in float64, and in integers."""
    assert left.dtype == right.dtype == kind
    product = left @ right
    order = generator.permutation(left.shape[1])
    permuted = np.ascontiguousarray(left[:, order]) @ np.ascontiguousarray(right[order])
    assert np.array_equal(permuted, product)
    halves = left[:, ::2] @ right[::2] + left[:, 1::2] @ right[1::2]
    assert np.array_equal(halves, product)
    wide = left.astype(np.float64) @ right.astype(np.float64)
    assert np.array_equal(wide, product)
    integers = as_integers(left) @ as_integers(right)
    assert (as_integers(product, 120) == integers).all()


def is_on_quantum(values: Array, quantum: float | Array) -> bool:
    steps = values.astype(np.float64) / quantum
    return bool((steps == np.rint(steps)).all())


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[Array], list[Array], int, int, int]:
    """Draw weights and biases of very different sizes, samples, the brightest pixel and a seed."""
    sizes = [
        draw(st.integers(1, 60)),
        *draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)),
        draw(st.integers(2, 10)),
    ]
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    weights, biases = [], []
    for number, (inputs, outputs) in enumerate(pairwise(sizes)):
        # Large weights make the first layer's quantum coarse; larger ones than 8 above it could
        # carry back deltas too large for any sum.
        largest = 2.0 ** draw(st.integers(-8, 8 if number == 0 else 3))
        weights.append(generator.uniform(-largest, largest, (inputs, outputs)).astype(np.float32))
        biases.append(generator.uniform(-1.0, 1.0, outputs).astype(np.float32))
    brightest = draw(st.sampled_from([1, 255]))
    return weights, biases, draw(st.integers(1, 20)), brightest, seed


class Recorder(Exact):
    """Exact arithmetic that remembers each layer's deltas."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.deltas: dict[int, Array] = {}

    def quantise_columns(self, layer: int, delta: Array) -> Array:
        self.deltas[layer] = delta
        return super().quantise_columns(layer, delta)


@settings(max_examples=100)
@given(networks())
def test_every_sum_of_a_pass_is_exact(
    case: tuple[list[Array], list[Array], int, int, int],
) -> None:
    weights, biases, samples, brightest, seed = case
    generator = np.random.default_rng(seed)
    arithmetic = Recorder(len(weights))
    layers = quantised([Layer(*layer) for layer in zip(weights, biases, strict=True)], arithmetic)
    classes = weights[-1].shape[1]
    pixels = generator.integers(0, brightest + 1, (samples, len(weights[0])))
    activations, logits = forward(layers, (pixels * PIXELS.quantum).astype(np.float32), arithmetic)
    y = generator.integers(0, classes, samples)
    terms = softmax_terms(logits, arithmetic)
    delta = cross_entropy_derivative(softmax(terms), one_hot(y, classes))
    backward(layers, activations, arithmetic.quantise_output_deltas(delta), arithmetic)

    last = len(layers) - 1
    for number, (W, _) in enumerate(layers):
        kind = np.float64 if number == last else np.float32
        inputs = arithmetic.inputs[number]
        x, dz = activations[number], arithmetic.deltas[number]
        assert is_on_quantum(x, inputs.quantum)
        assert x.min() >= 0.0
        assert x.max() <= inputs.quantum * inputs.levels
        assert is_on_quantum(W, arithmetic.weight_quanta[number])
        assert_product_is_exact(x.astype(kind), W.astype(kind), kind, generator)

        sums = np.abs(dz).astype(np.float64).sum(axis=0)
        assert (as_integers(sums) == as_integers(np.abs(dz)).sum(axis=0)).all()
        by_unit = arithmetic.quantise_columns(number, dz)
        assert_product_is_exact(x.T.astype(kind), by_unit.astype(kind), kind, generator)
        # The bias's gradient is a sum of the same deltas.
        assert (as_integers(by_unit.sum(axis=0)) == as_integers(by_unit).sum(axis=0)).all()
        if number > 0:
            by_sample = arithmetic.quantise_rows(number, dz)
            assert_product_is_exact(by_sample, W.T.astype(kind), kind, generator)

    shifted = logits - logits.max(axis=1, keepdims=True)
    e = arithmetic.quantise_exponentials(arithmetic.exp(shifted))
    assert (as_integers(e.sum(axis=1)) == as_integers(e).sum(axis=1)).all()
    losses = cross_entropy(terms, y)
    rounded = as_integers(round_to(losses, LOSS_QUANTUM))
    assert Fraction(arithmetic.loss_sum(losses)) * 2**60 == rounded.sum()


def test_the_sums_of_a_full_part_of_saturated_units_are_exact() -> None:
    generator = np.random.default_rng(1)
    # All pixels bright, all activations at their ceiling, every weight and error as large as
    # its bound lets it be: 64 weights in the first layer, 16 in the second.
    weights = [
        np.full((64, 16), PIXELS.budget / 64 * 2.0**-12, np.float32),
        np.full((16, 8), HIDDEN.budget / 16 * 2.0**-12, np.float32),
        np.full((8, 2), 3.99993896484375, np.float32) * np.array([1, -1], np.float32),
    ]
    arithmetic = exact_for(weights)
    assert arithmetic.weight_quanta == [FINEST_WEIGHT_QUANTUM, FINEST_WEIGHT_QUANTUM, 2.0**-14]
    for number, inputs in enumerate(arithmetic.inputs):
        kind = np.float64 if number == 2 else np.float32
        x = np.full((LARGEST_MICRO_BATCH, len(weights[number])), inputs.saturation, kind)
        W = round_to(weights[number], arithmetic.weight_quanta[number]).astype(kind)
        assert_product_is_exact(x[:3], W, kind, generator)
        dz = generator.choice([-1.0, 1.0], (LARGEST_MICRO_BATCH, 4)).astype(kind)
        by_unit = arithmetic.quantise_columns(number, dz)
        assert_product_is_exact(x.T, by_unit, kind, generator)


def test_activations_saturate_at_the_end_of_their_quantum() -> None:
    arithmetic = exact_for([np.zeros((2, 2), np.float32)] * 4)
    assert arithmetic.saturation(1) == arithmetic.saturation(2) == 16.0 - 2.0**-5
    assert arithmetic.saturation(3) == 32.0 - 2.0**-16
    # Far beyond it, they still are where every sum is exact.
    layers = [Layer(np.full((2, 2), 16.0, np.float32), np.full(2, 1e6, np.float32))] * 2
    layers.append(Layer(np.ones((2, 10), np.float32), np.zeros(10, np.float32)))
    arithmetic = exact_for([W for W, _ in layers])
    x = np.full((1, 2), PIXELS.saturation, np.float32)
    activations, logits = forward(layers, x, arithmetic)
    assert activations[1].tolist() == [[16.0 - 2.0**-5] * 2]
    assert activations[2].tolist() == [[32.0 - 2.0**-16] * 2]
    assert logits.tolist() == [[2 * (32.0 - 2.0**-16)] * 10]


# ---- weights


def true_sums(rounded: Array) -> Array:
    return np.array([float(sum(column)) for column in np.abs(as_integers(rounded)).T]) / 2.0**60


@given(
    scale=st.integers(-12, 60), inputs=st.integers(1, 300), seed=st.integers(0, 2**32 - 1)
)  # fmt: skip
@example(scale=100, inputs=300, seed=1)
def test_weights_get_the_finest_quantum_that_keeps_their_bound(
    scale: int, inputs: int, seed: int
) -> None:
    W = np.random.default_rng(seed).uniform(-1.0, 1.0, (inputs, 3)) * 2.0**scale
    W = W.astype(np.float32)
    arithmetic = exact_for([W, W, np.zeros((3, 10), np.float32)])
    for layer, number_format in enumerate((PIXELS, HIDDEN)):
        quantum = arithmetic.weight_quanta[layer]
        rounded = round_to(W, arithmetic.weight_quanta[layer])
        assert is_on_quantum(rounded, quantum)
        assert np.abs(rounded - W).max() <= quantum / 2.0
        assert true_sums(rounded).max() <= number_format.budget * quantum
        if quantum > FINEST_WEIGHT_QUANTUM:
            assert true_sums(W).max() > (number_format.budget - inputs / 2.0) * quantum / 2.0


def test_weights_that_outgrow_their_bound_get_a_coarser_quantum_and_stay_exact() -> None:
    generator = np.random.default_rng(2)
    W = generator.uniform(-1.0, 1.0, (20, 5)).astype(np.float32)
    output = np.zeros((5, 10), np.float32)
    arithmetic = exact_for([W, output])
    assert arithmetic.weight_quanta[0] == FINEST_WEIGHT_QUANTUM

    grown = W * 3.0
    rounded = round_to(grown, arithmetic.weight_quanta[0])
    assert true_sums(rounded).max() > PIXELS.budget * FINEST_WEIGHT_QUANTUM
    rounded, _ = arithmetic.quantise_weights([grown, output])
    quantum = arithmetic.weight_quanta[0]
    assert quantum > FINEST_WEIGHT_QUANTUM
    assert true_sums(rounded).max() <= PIXELS.budget * quantum
    assert true_sums(round_to(grown, quantum / 2)).max() > PIXELS.budget * quantum / 2
    assert arithmetic.weight_quanta[1] == budget.OUTPUT_WEIGHT_QUANTUM
    bright = np.full((4, 20), PIXELS.saturation, np.float32)
    assert_product_is_exact(bright, rounded, np.float32, generator)
    # Shrinking again does not make it finer: the quantum would flicker.
    arithmetic.quantise_weights([W * 0.0, output])
    assert arithmetic.weight_quanta[0] == quantum


def test_the_bound_on_weights_is_where_a_sum_would_round() -> None:
    # One weight more than the bound allows, all pixels bright, and float32 has no exact sum.
    weights = np.full(70_000, FINEST_WEIGHT_QUANTUM, np.float32)
    bright = np.full(70_000, PIXELS.saturation, np.float32)
    true = Fraction(70_000 * 255, 2**20)
    assert Fraction(float(np.cumsum(bright * weights)[-1])) != true
    allowed = int(PIXELS.budget)
    total = np.cumsum((bright * weights)[:allowed])[-1]
    assert Fraction(float(total)) == Fraction(allowed * 255, 2**20)
    for count, quantum in ((allowed, 1), (allowed + 1, 2)):
        arithmetic = exact_for([weights[:count, np.newaxis], np.zeros((1, 10), np.float32)])
        assert arithmetic.weight_quanta[0] == quantum * FINEST_WEIGHT_QUANTUM


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_weights_that_are_not_finite_are_caught(bad: float, layer: int) -> None:
    weights = [np.zeros((4, 4), np.float32) for _ in range(3)]
    weights[layer][1, 2] = bad
    with np.errstate(invalid="ignore"), pytest.raises(ExactnessError, match=f"layer {layer + 1} "):
        exact_for(weights)


def test_output_weights_above_their_bound_are_caught() -> None:
    hidden = np.zeros((4, 8), np.float32)
    at_the_bound = np.full((8, 2), OUTPUT_WEIGHT_BOUND / 8, np.float32)
    exact_for([hidden, at_the_bound])
    beyond = at_the_bound.copy()
    beyond[0, 1] += np.float32(2.0 * budget.OUTPUT_WEIGHT_QUANTUM)
    with pytest.raises(ExactnessError, match="weights of a unit in layer 2 add up to 256"):
        exact_for([hidden, beyond])


def test_output_weights_are_on_their_quantum_up_to_their_bound() -> None:
    hidden = np.zeros((4, 2), np.float32)
    W = np.array([[-200.0, 0.0], [0.0, 200.0]]) - 2.0**-15
    W = W.astype(np.float32)
    arithmetic = exact_for([hidden, W])
    assert is_on_quantum(round_to(W, arithmetic.weight_quanta[1]), budget.OUTPUT_WEIGHT_QUANTUM)


# ---- deltas


@given(
    layer=st.sampled_from([0, 1]),
    samples=st.integers(1, LARGEST_MICRO_BATCH),
    exponent=st.integers(-30, 6),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["uniform", "equal", "one large"]),
)
@example(layer=1, samples=512, exponent=0, seed=0, kind="equal")
def test_deltas_by_unit_keep_their_bound_after_rounding(
    layer: int, samples: int, exponent: int, seed: int, kind: str
) -> None:
    arithmetic = exact_for([np.zeros((4, 4), np.float32)] * 3)
    dz = np.random.default_rng(seed).uniform(-1.0, 1.0, (samples, 4))
    if kind == "equal":
        dz[...] = dz[0]
    elif kind == "one large":
        dz[1:] *= 2.0**-12
    dz = round_to(dz * 2.0**exponent, 2.0**-36).astype(np.float32)
    found = arithmetic.quantise_columns(layer, dz)
    limit = (PIXELS, HIDDEN)[layer].budget
    # Of one unit's deltas the finest bit tells what quantum they are on at the coarsest.
    for unit, rounded in zip(dz.T, found.T, strict=True):
        total = sum(abs(Fraction(float(error))) for error in unit)
        quantum = Fraction(2) ** math.floor(math.log2(total / Fraction(limit - 256)) + 1) if total \
            else Fraction(1)  # fmt: skip
        steps = [Fraction(float(error)) / quantum for error in rounded]
        assert all(step.denominator == 1 for step in steps)
        assert sum(map(abs, steps)) <= limit
        assert steps == [round(Fraction(float(error)) / quantum) for error in unit]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_quanta_of_deltas_are_right_next_to_a_power_of_two(layer: int, more: int) -> None:
    # The sum of a unit's deltas is the power times the limit, or a step of 2**-36 off it, too
    # little for float32 to tell.
    limit = int((PIXELS, HIDDEN)[layer].budget) - 256
    total = limit * 2**24 + more  # in steps: the limit times 2**-12
    part = total // LARGEST_MICRO_BATCH >> 16 << 16  # few enough bits for float32
    dz = np.full((LARGEST_MICRO_BATCH, 1), part * 2.0**-36, np.float32)
    left = total - part * (LARGEST_MICRO_BATCH - 2)
    high = left >> 20 << 20
    dz[-2:, 0] = high * 2.0**-36, (left - high) * 2.0**-36
    assert sum(Fraction(float(error)) for error in dz[:, 0]) == Fraction(total, 2**36)
    found = exact_for([np.zeros((4, 1), np.float32)] * 3).quantise_columns(layer, dz)
    quantum = 2.0**-12 if more < 0 else 2.0**-11
    assert (found == round_to(dz, np.float32(quantum))).all()
    assert (found != round_to(dz, np.float32(2.0**-23 / quantum))).any()


@given(
    row=st.integers(-10, 5), exponent=st.integers(-24, 3), seed=st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_deltas_by_sample_keep_their_bound_after_rounding(
    row: int, exponent: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    W = (generator.uniform(-1.0, 1.0, (6, 9)) * 2.0**row).astype(np.float32)
    arithmetic = exact_for([np.zeros((4, 6), np.float32), W, np.zeros((9, 10), np.float32)])
    W = round_to(W, arithmetic.weight_quanta[1])
    dz = (generator.uniform(-1.0, 1.0, (7, 9)) * 2.0**exponent).astype(np.float32)
    found = arithmetic.quantise_rows(1, dz)
    assert_product_is_exact(found, W.T, np.float32, generator)
    # Each sample's deltas move by no more than half a step of the finest quantum the bound allows.
    finest = (
        4.0
        * np.abs(dz).max(axis=1)
        * np.abs(W).sum(axis=1).max()
        / arithmetic.weight_quanta[1]
        / 2**24
    )
    assert (np.abs(found - dz).max(axis=1) <= np.maximum(finest, 2.0**-24) / 2.0).all()


def test_more_samples_than_a_part_holds_are_caught() -> None:
    # Rounding moves 1000 deltas of 32.5 steps up to 33, and 33000 steps are over the 2**15 that
    # a sum with hidden activations can take.
    dz = np.full((1000, 4), 32.5001 * 2.0**-10, np.float32)
    arithmetic = exact_for([np.zeros((4, 4), np.float32)] * 3)
    with pytest.raises(ExactnessError):
        arithmetic.quantise_columns(1, dz)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 2.0**17])
def test_deltas_that_are_too_large_are_caught(bad: float) -> None:
    arithmetic = exact_for([np.zeros((4, 3), np.float32), np.zeros((3, 10), np.float32)])
    dz = np.zeros((5, 3), np.float32)
    dz[2, 1] = bad
    with pytest.raises(ExactnessError, match=r"deltas of layer 1 add up to \S+ in one batch"):
        arithmetic.quantise_columns(0, dz)


def test_deltas_just_below_their_bound_are_not_refused() -> None:
    arithmetic = exact_for([np.zeros((4, 1), np.float32), np.zeros((1, 10), np.float32)])
    dz = np.full((LARGEST_MICRO_BATCH, 1), 255.0, np.float32)
    found = arithmetic.quantise_columns(0, dz)
    assert np.abs(found - dz).max() <= 1.0


def test_weights_too_large_to_carry_deltas_back_are_caught() -> None:
    arithmetic = exact_for([np.zeros((4, 4), np.float32)] * 3)
    arithmetic.row_sums[1] = 2.0**24 * arithmetic.weight_quanta[1]
    with pytest.raises(ExactnessError, match="the weights of layer 2 have grown too large"):
        arithmetic.quantise_rows(1, np.ones((2, 4), np.float32))


# ---- losses


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=50), st.randoms(use_true_random=False))
def test_the_sum_of_losses_has_no_order(losses: list[float], random: Random) -> None:
    arithmetic = exact_for([np.zeros((2, 2), np.float32)] * 2)
    shuffled = losses.copy()
    random.shuffle(shuffled)
    true = sum(round(Fraction(loss) / Fraction(LOSS_QUANTUM)) for loss in losses)
    for order in (losses, shuffled, losses[::-1]):
        assert Fraction(arithmetic.loss_sum(np.array(order))) == true * Fraction(LOSS_QUANTUM)


@pytest.mark.parametrize(
    "losses", [[1.0, np.nan], [np.inf], [LOSS_SUM_BOUND, LOSS_QUANTUM * 4.0], [1e300]]
)
def test_losses_that_are_too_large_are_caught(losses: list[float]) -> None:
    arithmetic = exact_for([np.zeros((2, 2), np.float32)] * 2)
    with pytest.raises(ExactnessError, match="the losses add up to"):
        arithmetic.loss_sum(np.array(losses))


def test_losses_at_their_bound_are_not_refused() -> None:
    arithmetic = exact_for([np.zeros((2, 2), np.float32)] * 2)
    losses = np.full(2**4, LOSS_SUM_BOUND / 2**4)
    assert arithmetic.loss_sum(losses) == LOSS_SUM_BOUND


# ---- the other arithmetic


def test_plain_arithmetic_changes_nothing() -> None:
    plain = Plain(np.float64)
    values = np.random.default_rng(3).uniform(-1.0, 1.0, (5, 3))
    for found in (
        plain.quantise_activations(1, values),
        plain.quantise_exponentials(values),
        plain.quantise_output_deltas(values),
        plain.quantise_rows(1, values),
        plain.quantise_columns(0, values),
    ):
        assert found is values
    assert plain.loss_sum(values) == values.sum()
    assert plain.saturation(1) == np.inf
    assert plain.compute_dtype is plain.accumulate_dtype is np.float64


@pytest.mark.skipif(sys.platform != "linux", reason="the numbers of the directions are Linux's")
@pytest.mark.parametrize("direction", [0x400, 0x800, 0xC00])
def test_another_rounding_direction_is_refused(direction: int) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the directions are x86-64's")
    code = f"""
import ctypes, ctypes.util
from stages.core.exact import Exact
from stages.core.rounding import RoundingError
Exact(2)
ctypes.CDLL(ctypes.util.find_library("m")).fesetround({direction})
try:
    Exact(2)
except RoundingError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "this process does not round to nearest, as exact sums need\n"
