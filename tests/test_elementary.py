"""exp, log and cos against the C library, NumPy and decimal arithmetic of 40 digits."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import Array
from stages.core.elementary import LN2, LOWEST, PI, SQRT_HALF, cos, exp, log


def decimal_exp(x: float) -> Decimal:
    with localcontext() as context:
        context.prec = 40
        return Decimal(x).exp()


def decimal_log(x: float) -> Decimal:
    with localcontext() as context:
        context.prec = 40
        return Decimal(x).ln()


def relative_error(found: float, true: Decimal) -> float:
    with localcontext() as context:
        context.prec = 40
        return float(abs(Decimal(float(found)) - true) / abs(true))


def test_exp_keeps_its_stated_error_over_its_whole_range() -> None:
    x = np.linspace(LOWEST, 0.0, 200_001)
    assert np.abs(exp(x) / np.exp(x) - 1.0).max() < 2e-9


@given(st.floats(LOWEST, 0.0))
def test_exp_agrees_with_decimal_arithmetic(x: float) -> None:
    assert relative_error(exp(np.array([x]))[0], decimal_exp(x)) < 2e-9


def test_the_table_of_exp_is_as_good_as_float64() -> None:
    # At multiples of 1/256 nothing but the table is used.
    for k in range(0, int(-LOWEST) * 256 + 1, 97):
        assert relative_error(exp(np.array([-k / 256.0]))[0], decimal_exp(-k / 256.0)) < 2e-14


def test_exp_is_1_at_0_and_stays_positive_however_low() -> None:
    floor = math.exp(LOWEST)
    found = exp(np.array([0.0, -0.0, LOWEST, -33.0, -745.2, -1e300, -math.inf]))
    assert found[:2].tolist() == [1.0, 1.0]
    assert np.allclose(found[2:], floor, rtol=2e-9, atol=0.0)


def test_exp_never_falls_as_x_rises() -> None:
    x = np.linspace(-2.0, 0.0, 100_001)
    assert (np.diff(exp(x)) >= 0.0).all()


def test_exp_leaves_its_argument_alone() -> None:
    x = np.array([-40.0, -1.0])
    exp(x)
    assert x.tolist() == [-40.0, -1.0]


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_log_agrees_with_decimal_arithmetic(x: float) -> None:
    true = decimal_log(x)
    found = log(np.array([x]))[0]
    assert found == 0.0 if true == 0 else relative_error(found, true) < 1.5e-15


@pytest.mark.parametrize("centre", [1.0, SQRT_HALF, 0.5, 2.0, 1.0 / math.e])
def test_log_is_accurate_where_its_pieces_meet(centre: float) -> None:
    x = centre
    for _ in range(20):
        x = math.nextafter(x, 0.0)
    for _ in range(41):
        true = decimal_log(x)
        found = log(np.array([x]))[0]
        assert found == 0.0 if true == 0 else relative_error(found, true) < 1.5e-15
        x = math.nextafter(x, 10.0)


def test_log_of_powers_of_two_and_of_the_softmax_sums() -> None:
    assert log(np.array([1.0]))[0] == 0.0
    powers = np.arange(-60, 61)
    assert np.allclose(log(2.0**powers), powers * math.log(2.0), rtol=4e-16, atol=0.0)
    sums = np.linspace(1.0, 10.0, 10_001)
    assert np.allclose(log(sums), np.log(sums), rtol=2e-15, atol=0.0)


@given(st.floats(0.0, math.pi))
def test_cos_agrees_with_the_c_library(x: float) -> None:
    assert abs(cos(x) - math.cos(x)) < 4e-16


def test_cos_at_known_points() -> None:
    assert cos(0.0) == 1.0
    assert cos(PI) == -1.0
    assert cos(PI / 3.0) == pytest.approx(0.5, abs=4e-16)
    assert cos(PI / 2.0) == pytest.approx(0.0, abs=4e-16)


def test_constants_are_the_nearest_floats() -> None:
    assert math.log(2.0) == LN2
    assert math.pi == PI
    assert math.sqrt(0.5) == SQRT_HALF


@pytest.mark.parametrize("function", [exp, log])
def test_an_elements_bits_do_not_depend_on_the_array_around_it(
    function: Callable[[Array], Array],
) -> None:
    # NumPy's own loops treat the tail of an array, or strided memory, differently.
    x = np.random.default_rng(1).random((37, 23)) * -30.0
    if function is log:
        x = -x
    whole = function(x)
    assert np.array_equal(function(x[::3, ::2]), whole[::3, ::2])
    assert np.array_equal(function(np.asfortranarray(x)), whole)
    assert np.array_equal([function(x[i : i + 1, 5]) for i in range(37)], whole[:, 5:6])
