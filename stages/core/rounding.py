"""What the proof of exact sums assumes of the processor."""

from __future__ import annotations

from typing import Any

import numpy as np


class RoundingError(OSError):
    """The processor is not set to compute as IEEE 754 does by default."""


def check_rounding() -> None:
    """Check that this process rounds as IEEE 754 does by default, as the proof assumes.

    Raises:
        RoundingError: it rounds in another direction, or flushes small numbers to zero.
    """
    formats: list[tuple[Any, int, float]] = [
        (np.float32, 24, 2.0**-149),
        (np.float64, 53, 2.0**-1074),
    ]
    for dtype, bits, smallest in formats:
        ones, half = np.array([1.0, 1.0, -1.0], dtype), 2.0**-bits
        added = ones + np.array([half, 1.5 * half, -half], dtype)
        if added.tolist() != [1.0, 1.0 + 2.0 * half, -1.0]:
            raise RoundingError("this process does not round to nearest, as exact sums need")
        if not (np.array([smallest * 2.0], dtype) * dtype(0.5)).all():
            raise RoundingError("this process flushes small numbers to zero, unlike exact sums")
