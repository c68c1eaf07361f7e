"""exp, log and cos from additions, multiplications and divisions alone.

A C library's `exp` may differ from another's in the last bit, and so may NumPy's on another CPU.
IEEE 754 defines `+ - * /` and rounding to an integer to the last bit, so these functions give
the same bits everywhere. NumPy evaluates each operation as a pass of its own, hence no compiler
can fuse two of them into one rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

LN2 = 0.6931471805599453
PI = 3.141592653589793
SQRT_HALF = 0.7071067811865476

# exp is tabulated at multiples of 1/256 down to LOWEST, where e**LOWEST is below 2**-46.
STEPS_PER_UNIT = 256
LOWEST = -32.0


def _exp_table() -> Float64:
    """Return e**(-k / 256) for k = 0, 1, ...

    Each is Taylor's series at a 32nd of the exponent, squared 5 times.
    """
    steps = int(LOWEST) * STEPS_PER_UNIT
    reduced = np.arange(0.0, steps - 1, -1.0) / (STEPS_PER_UNIT * 32.0)
    series = np.ones_like(reduced)
    for n in range(24, 0, -1):
        series = 1.0 + series * reduced / n
    for _ in range(5):
        series = series * series
    return series


EXP_TABLE = _exp_table()


def exp(x: Float64) -> Float64:
    """Return e**x for x <= 0, to a relative error of 2e-9; below -32 it stays at e**-32.

    With x = (r - k) / 256, k a whole number and |r| <= 1/2: e**x = e**(-k / 256) * e**(r / 256),
    the first from a table, the second as 1 + r / 256 + (r / 256)**2 / 2.
    """
    r = np.maximum(x, LOWEST)
    r *= -STEPS_PER_UNIT
    k = np.rint(r)
    np.subtract(k, r, out=r)
    series = r * (0.5 / STEPS_PER_UNIT**2)
    series += 1.0 / STEPS_PER_UNIT
    series *= r
    series += 1.0
    series *= EXP_TABLE.take(k.astype(np.intp), mode="clip")
    return series


def log(x: Float64) -> Float64:
    """Return the natural logarithm of x > 0, to a relative error of about 1e-15.

    x = m * 2**n with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh(t) = 2 (t + t**3/3 + ...)
    with t = (m - 1) / (m + 1).
    """
    m, n = np.frexp(x)
    low = m < SQRT_HALF
    m = np.where(low, 2.0 * m, m)
    n = n - low
    t = (m - 1.0) / (m + 1.0)
    square = t * t
    series = np.zeros_like(t)
    for odd in range(21, 0, -2):
        series = series * square + 1.0 / odd
    result: Float64 = n * LN2 + 2.0 * t * series
    return result


def cos(x: float) -> float:
    """Return the cosine of x in [0, pi], by Taylor's series about the nearer of 0 and pi."""
    if x > PI / 2:
        return -cos(PI - x)
    series = 1.0
    for n in range(20, 0, -2):
        series = 1.0 - series * x * x / (n * (n - 1))
    return series


def sin_and_cos(x: Float64) -> tuple[Float64, Float64]:
    """Return the sine and cosine of x in [-pi, pi], by Taylor's series: to 1e-9 or better."""
    square = x * x
    sine, cosine = np.ones_like(x), np.ones_like(x)
    for n in range(24, 0, -2):
        sine = 1.0 - sine * square / (n * (n + 1))
        cosine = 1.0 - cosine * square / (n * (n - 1))
    return x * sine, cosine


def power(base: float, exponent: int) -> float:
    """Return base**exponent by repeated squaring: multiplications only, the same everywhere."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result
