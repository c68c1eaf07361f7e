"""The optimizers against Keras and against their papers; the schedules against their formulas."""

from __future__ import annotations

import math
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import Array
from stages.core.elementary import power
from stages.core.optimizers import Adam, Momentum
from stages.core.schedules import scheduled

SHAPE = (7, 3)
SAMPLES = 64


def steps_of(
    optimizer: Momentum | Adam, start: Array, gradients: list[Array], rates: list[float]
) -> list[Array]:
    """Return the weights after each step, from mean gradients that are handed over as sums."""
    w = start.copy()
    slots = [np.zeros_like(w) for _ in range(optimizer.slots)]
    after = []
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        optimizer.update(w, gradient * SAMPLES, slots, rate, SAMPLES, step)
        after.append(w.copy())
    return after


def a_start_and_gradients(steps: int, dtype: type = np.float32) -> tuple[Array, list[Array]]:
    """Return weights, and gradients of very different sizes, one element's always 0."""
    generator = np.random.default_rng(11)
    scales = 10.0 ** generator.integers(-6, 2, SHAPE)
    gradients = [generator.uniform(-1.0, 1.0, SHAPE) * scales for _ in range(steps)]
    for gradient in gradients:
        gradient[0, 0] = 0.0
    return generator.uniform(-0.5, 0.5, SHAPE).astype(dtype), [g.astype(dtype) for g in gradients]


@pytest.mark.parametrize("name", ["sgd", "sgd without momentum", "adam"])
def test_steps_agree_with_keras(tensorflow: ModuleType, name: str) -> None:
    keras = tensorflow.keras
    start, gradients = a_start_and_gradients(steps=12, dtype=np.float64)
    # A rate that changes on the way, as under a schedule.
    rates = [1 / 16 if step < 6 else 1 / 128 for step in range(12)]
    ours, theirs = {
        "sgd": (Momentum(0.9), keras.optimizers.SGD(momentum=0.9)),
        "sgd without momentum": (Momentum(0.0), keras.optimizers.SGD()),
        "adam": (Adam(), keras.optimizers.Adam(epsilon=1e-7)),
    }[name]
    variable = tensorflow.Variable(start)
    for step, after in enumerate(steps_of(ours, start, gradients, rates)):
        theirs.learning_rate.assign(rates[step])
        theirs.apply_gradients([(tensorflow.constant(gradients[step]), variable)])
        # Keras holds its constants in float32, where 1 - 0.999 is off by 1.3e-5 of itself.
        assert np.allclose(after - start, variable.numpy() - start, rtol=2e-5, atol=2e-6)
    assert not np.allclose(after, start, atol=0.01)


def test_momentum_by_hand() -> None:
    start = np.array([1.0, -2.0])
    gradients = [np.array([1.0, 0.5]), np.array([2.0, -1.0]), np.array([0.0, 0.0])]
    after = steps_of(Momentum(0.5), start, gradients, [0.1, 0.1, 0.1])
    # v: (-0.1, -0.05), then (-0.25, 0.075), then (-0.125, 0.0375).
    expected = [[0.9, -2.05], [0.65, -1.975], [0.525, -1.9375]]
    assert np.allclose(after, expected, rtol=1e-15)


def test_without_momentum_a_step_is_rate_times_the_mean_gradient() -> None:
    start, gradients = a_start_and_gradients(steps=1, dtype=np.float64)
    (after,) = steps_of(Momentum(0.0), start, gradients, [0.3])
    assert np.allclose(after, start - 0.3 * gradients[0], rtol=1e-14)


def test_adam_agrees_with_the_paper_written_out() -> None:
    start, gradients = a_start_and_gradients(steps=9, dtype=np.float64)
    w, m, v = start.copy(), np.zeros(SHAPE), np.zeros(SHAPE)
    found = steps_of(Adam(), start, gradients, [0.01] * 9)
    for t, g in enumerate(gradients, start=1):
        m = 0.9 * m + (1 - 0.9) * g
        v = 0.999 * v + (1 - 0.999) * g**2
        w = w - 0.01 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        assert np.allclose(found[t - 1], w, rtol=1e-12, atol=1e-14)


def test_adams_first_step_is_the_rate_whatever_the_gradients_size() -> None:
    gradient = np.array([1e-2, -1.0, 300.0])
    (after,) = steps_of(Adam(), np.zeros(3), [gradient], [0.02])
    assert np.allclose(after, [-0.02, 0.02, -0.02], rtol=1e-3)


@pytest.mark.parametrize("optimizer", [Momentum(0.9), Adam()], ids=["sgd", "adam"])
def test_a_zero_gradient_from_the_start_moves_nothing(optimizer: Momentum | Adam) -> None:
    start, gradients = a_start_and_gradients(steps=5)
    for after in steps_of(optimizer, start, gradients, [0.1] * 5):
        assert after[0, 0] == start[0, 0]


@pytest.mark.parametrize("optimizer", [Momentum(0.9), Adam()], ids=["sgd", "adam"])
def test_slices_updated_in_any_order_give_the_bits_of_the_whole(optimizer: Momentum | Adam) -> None:
    start, gradients = a_start_and_gradients(steps=4)
    whole = steps_of(optimizer, start, gradients, [0.1] * 4)[-1]
    pieces = np.empty_like(whole)
    for rows in (slice(5, 7), slice(0, 1), slice(1, 5)):
        part = [gradient[rows] for gradient in gradients]
        pieces[rows] = steps_of(optimizer, start[rows], part, [0.1] * 4)[-1]
    assert pieces.tobytes() == whole.tobytes()


@pytest.mark.parametrize("optimizer", [Momentum(0.9), Adam()], ids=["sgd", "adam"])
def test_float32_weights_are_not_promoted(optimizer: Momentum | Adam) -> None:
    start, gradients = a_start_and_gradients(steps=2)
    assert steps_of(optimizer, start, gradients, [0.1] * 2)[-1].dtype == np.float32


@given(st.floats(0.5, 1.0, exclude_max=True), st.integers(0, 2000))
def test_power_agrees_with_rational_arithmetic(base: float, exponent: int) -> None:
    true = Fraction(base) ** exponent
    if true > Fraction(1, 2**1000):
        assert abs(Fraction(power(base, exponent)) / true - 1) < Fraction(1, 10**12)
    else:
        assert 0.0 <= power(base, exponent) < 2.0**-999


def test_power_of_simple_numbers() -> None:
    assert [power(2.0, n) for n in range(12)] == [2.0**n for n in range(12)]
    assert power(0.9, 0) == 1.0
    assert power(0.9, 1) == 0.9


PROGRESS = np.linspace(0.0, 1.0, 1000, endpoint=False).tolist()


def test_a_constant_rate_stays() -> None:
    assert {scheduled(0.3, "constant", progress) for progress in PROGRESS} == {0.3}


def test_the_step_schedule_falls_at_half_and_at_three_quarters() -> None:
    found = [scheduled(0.4, "step", p) for p in (0.0, 0.49999, 0.5, 0.74999, 0.75, 0.99999)]
    assert found == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004], rel=1e-15)


def test_the_cosine_schedule_agrees_with_its_formula_and_with_keras(
    tensorflow: ModuleType,
) -> None:
    theirs = tensorflow.keras.optimizers.schedules.CosineDecay(0.2, decay_steps=100)
    for step in range(0, 100, 9):
        found = scheduled(0.2, "cosine", step / 100)
        assert found == pytest.approx(0.1 * (1.0 + math.cos(math.pi * step / 100)), rel=1e-13)
        assert found == pytest.approx(float(theirs(step)), rel=1e-4)


def test_the_cosine_schedule_passes_its_landmarks() -> None:
    assert scheduled(0.2, "cosine", 0.0) == 0.2
    assert scheduled(0.2, "cosine", 0.5) == pytest.approx(0.1, rel=1e-15)
    assert 0.0 < scheduled(0.2, "cosine", 0.999) < 1e-6


def test_the_one_cycle_schedule_rises_linearly_and_falls_along_a_cosine() -> None:
    for progress in PROGRESS:
        if progress < 0.3:
            expected = 0.25 / 25 + (0.25 - 0.25 / 25) * progress / 0.3
        else:
            expected = 0.25 * (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2
        assert scheduled(0.25, "one_cycle", progress) == pytest.approx(expected, rel=1e-10)


def test_the_one_cycle_schedule_passes_its_landmarks() -> None:
    assert scheduled(0.25, "one_cycle", 0.0) == pytest.approx(0.01, rel=1e-15)
    assert scheduled(0.25, "one_cycle", 0.3) == pytest.approx(0.25, rel=1e-15)
    assert scheduled(0.25, "one_cycle", 0.65) == pytest.approx(0.125, rel=1e-15)
    assert 0.0 < scheduled(0.25, "one_cycle", 0.9999) < 1e-7


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle"])
def test_no_schedule_leaves_the_range_from_0_to_the_peak(schedule: str) -> None:
    rates = [scheduled(0.7, schedule, progress) for progress in PROGRESS]
    assert max(rates) == pytest.approx(0.7, rel=1e-4)
    assert all(0.0 < rate <= 0.7 for rate in rates)
    after_the_peak = rates[rates.index(max(rates)) :]
    assert after_the_peak == sorted(after_the_peak, reverse=True)
