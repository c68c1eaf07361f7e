"""The preparation of images as MNIST's, against MNIST itself and fractions."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest

from stages.core import Array
from tools.handwriting import centred

SHAPE = (28, 28)


def centred_in_fractions(ink: Array, shape: tuple[int, int]) -> Array:
    """Return what `centred` must, pixel by pixel, in exact fractions."""
    frame: Array = np.zeros(shape, np.uint8)
    rows, columns = np.nonzero(ink)
    if not len(rows):
        return frame
    box = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(int).tolist()
    height, width = len(box), len(box[0])
    pixel = Fraction(max(height, width), 5 * min(shape) // 7)

    def average(row: int, column: int) -> int:
        total = Fraction(0)
        for i in range(floor(row * pixel), min(height, ceil((row + 1) * pixel))):
            for j in range(floor(column * pixel), min(width, ceil((column + 1) * pixel))):
                down = min((row + 1) * pixel, i + 1) - max(row * pixel, i)
                across = min((column + 1) * pixel, j + 1) - max(column * pixel, j)
                total += box[i][j] * down * across
        return floor(total / pixel**2 + Fraction(1, 2))

    size = ceil(height / pixel), ceil(width / pixel)
    scaled = [[average(i, j) for j in range(size[1])] for i in range(size[0])]
    mass = sum(map(sum, scaled))
    if mass == 0:
        return frame
    weighted = [(i, j, value) for i, row in enumerate(scaled) for j, value in enumerate(row)]
    places = []
    for axis in (0, 1):
        middle = sum((cell[axis] + Fraction(1, 2)) * cell[2] for cell in weighted) / mass
        start = shape[axis] // 2 - floor(middle)
        places.append(min(max(start, 0), shape[axis] - size[axis]))
    for i, j, value in weighted:
        frame[places[0] + i, places[1] + j] = value
    return frame


@pytest.mark.parametrize("shape", [SHAPE, (32, 24), (7, 9)], ids=str)
def test_centred_is_the_average_in_exact_fractions(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        size = generator.integers(1, 60, 2)
        inked = generator.random(size) < generator.choice([0.02, 0.5, 1])
        ink = (generator.integers(0, 256, size) * inked).astype(np.uint8)
        assert (centred(ink, shape) == centred_in_fractions(ink, shape)).all()


def test_centred_leaves_mnist_as_it_is(mnist: dict[str, Array]) -> None:
    images = mnist["x_train"][:2000]
    same = [(centred(image, SHAPE) == image).all() for image in images]
    assert np.mean(same) > 0.999


def test_centred_finds_a_digit_again_wherever_and_however_large_it_stands(
    mnist: dict[str, Array],
) -> None:
    digit = mnist["x_train"][0]
    page = np.zeros((900, 700), np.uint8)
    page[310:590, 20:300] = digit.repeat(10, axis=0).repeat(10, axis=1)
    assert (centred(page, SHAPE) == digit).all()


def test_centred_keeps_everything_in_the_frame_however_uneven_the_ink() -> None:
    ink = np.ones((400, 400), np.uint8)
    ink[:, :20] = 255
    ink[:20] = 255
    found = centred(ink, SHAPE)
    assert np.count_nonzero(found) == 20 * 20
    assert (found[8:, 8:] > 0).all()


def test_centred_returns_an_empty_frame_without_ink() -> None:
    faint = np.eye(1000, dtype=np.uint8)
    for ink in (np.zeros((5, 6), np.uint8), faint, np.zeros((0, 3), np.uint8)):
        assert not centred(ink, SHAPE).any()


def test_centred_refuses_anything_but_bytes() -> None:
    with pytest.raises(TypeError, match="uint8"):
        centred(np.zeros((4, 4)), SHAPE)
