"""Augmentation against a slow and plain bilinear reading of each pixel, and its promises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from stages.core.augmentation import (
    GROUP,
    GROUPS_PER_DRAW,
    Augmentation,
    augment,
    coordinates,
    deform,
    draw,
)

NO_AUGMENTATION = Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, smoothness=4.0, thickness=0.0)
SIDE = 28


def strengths(**changes: float) -> Augmentation:
    return replace(NO_AUGMENTATION, **changes)


SHAPE = strengths(rotation=10, scale=0.1, shear=0.1, shift=2, elastic=34)


def images(count: int = GROUP, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, height, width), dtype=np.uint8)


def read_bilinearly(image: np.ndarray, x: float, y: float) -> float:
    """Read an image between its pixels; outside it is 0."""
    height, width = image.shape
    left, top = math.floor(x), math.floor(y)
    total = 0.0
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < height and 0 <= column < width:
                total += float(image[row, column]) * share_x * share_y
    return total


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (20, 32)])
@pytest.mark.parametrize("augmentation", [SHAPE, strengths(shift=14), strengths(rotation=180)])
def test_each_pixel_is_read_bilinearly_at_its_position(
    augmentation: Augmentation, shape: tuple[int, int]
) -> None:
    drawn = draw(augmentation, shape, 2, np.random.default_rng(1))
    originals = images(GROUP + 3, *shape)
    result = deform(originals, drawn, augmentation)
    x, y = coordinates(drawn, augmentation, shape)
    for n in (0, GROUP, GROUP + 2):
        expected = [
            read_bilinearly(originals[n], *position)
            for position in zip(x[n // GROUP], y[n // GROUP], strict=True)
        ]
        np.testing.assert_allclose(result[n].ravel(), expected, atol=0.501)


@pytest.mark.parametrize(
    ("thickness", "expected"),
    [(0.0, [0, 40, 128, 200, 255]), (1.0, [0, 80, 255, 255, 255]), (-1.0, [0, 0, 1, 145, 255])],
)
def test_steeper_edges_make_strokes_thicker_or_thinner(
    thickness: float, expected: list[int]
) -> None:
    still = draw(NO_AUGMENTATION, (SIDE, SIDE), 1, np.random.default_rng(1))
    edge = np.zeros((1, SIDE, SIDE), np.uint8)
    edge[0, 14, 8:13] = [0, 40, 128, 200, 255]
    inked = still._replace(thickness=np.full(1, thickness, np.float32))
    result = deform(edge, inked, NO_AUGMENTATION)
    assert result[0, 14, 8:13].tolist() == expected
    assert result.sum() == sum(expected)


def test_thickness_is_drawn_on_both_sides_of_0_and_leaves_the_shape_alone() -> None:
    drawn = draw(strengths(thickness=2), (SIDE, SIDE), 1000, np.random.default_rng(1))
    assert drawn.thickness.dtype == np.float32
    assert np.quantile(drawn.thickness, [0.0, 0.25, 0.5, 0.75, 1.0]) == pytest.approx(
        [-2, -1, 0, 1, 2], abs=0.2
    )
    x, y = coordinates(drawn, NO_AUGMENTATION, (SIDE, SIDE))
    rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
    assert (x == columns).all()
    assert (y == rows).all()


def test_no_strength_changes_nothing() -> None:
    assert not NO_AUGMENTATION
    originals = images(40)
    np.testing.assert_array_equal(augment(originals, NO_AUGMENTATION, [1]), originals)
    drawn = draw(NO_AUGMENTATION, (SIDE, SIDE), 3, np.random.default_rng(1))
    np.testing.assert_array_equal(deform(originals, drawn, NO_AUGMENTATION), originals)


@pytest.mark.parametrize("degrees", [90.0, -90.0, 30.0])
def test_a_rotation_turns_the_image(degrees: float) -> None:
    class Fixed:
        """A generator whose first number is the rotation's full strength, all others 0."""

        def __init__(self) -> None:
            self.first = 1.0 if degrees > 0 else 0.0

        def random(self, shape: tuple[int, ...]) -> np.ndarray:
            value, self.first = self.first, 0.5
            return np.full(shape, value)

        def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
            return np.zeros(shape, np.int64)

    turned = strengths(rotation=abs(degrees))
    (x,), (y,) = coordinates(draw(turned, (SIDE, SIDE), 1, Fixed()), turned, (SIDE, SIDE))
    centre = (SIDE - 1) / 2
    v, u = (a.ravel() - centre for a in np.mgrid[:SIDE, :SIDE])
    angle = math.radians(degrees)
    inside = u**2 + v**2 < (SIDE / 2 - 1) ** 2
    expected_x = math.cos(angle) * u - math.sin(angle) * v + centre
    expected_y = math.sin(angle) * u + math.cos(angle) * v + centre
    np.testing.assert_allclose(x[inside], expected_x[inside], atol=1e-4)
    np.testing.assert_allclose(y[inside], expected_y[inside], atol=1e-4)


def test_elastic_displacements_have_the_size_that_the_smoothing_predicts() -> None:
    elastic = strengths(elastic=34)
    drawn = draw(elastic, (SIDE, SIDE), 400, np.random.default_rng(1))
    x, _ = coordinates(drawn, elastic, (SIDE, SIDE))
    moved = x[:, SIDE // 2 * SIDE + SIDE // 2] - SIDE // 2
    # Uniform noise has deviation 1/sqrt(3); a normalised Gaussian leaves 1 / (2 sigma sqrt(pi)).
    expected = 34 / math.sqrt(3) / (2 * 4 * math.sqrt(math.pi))
    assert np.std(moved) == pytest.approx(expected, rel=0.1)
    assert abs(np.mean(moved)) < 0.25


def test_images_of_a_group_share_a_deformation_and_groups_differ() -> None:
    same = np.repeat(images(1), 2 * GROUP, axis=0)
    result = augment(same, replace(SHAPE, thickness=1.0), [1])
    assert (result[:GROUP] == result[0]).all()
    assert (result[GROUP:] == result[GROUP]).all()
    assert (result[0] != result[GROUP]).any()


def test_pixels_stay_within_their_levels_and_ink_is_neither_made_nor_lost() -> None:
    blob = np.zeros((GROUP, SIDE, SIDE), np.uint8)
    blob[:, 10:18, 10:18] = 255
    result = augment(blob, strengths(rotation=10, shear=0.1, shift=2), [5])
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result.sum(axis=(1, 2)), blob[0].sum(), rtol=0.05)


def test_each_draw_has_random_numbers_of_its_own() -> None:
    drawn_at_once = GROUP * GROUPS_PER_DRAW
    originals = images(drawn_at_once + 5, 8, 8)
    result = augment(originals, SHAPE, [3, 1])
    for first, part in (
        (0, slice(0, drawn_at_once)),
        (GROUPS_PER_DRAW, slice(drawn_at_once, None)),
    ):
        groups = -(-len(originals[part]) // GROUP)
        drawn = draw(SHAPE, (8, 8), groups, np.random.default_rng([3, 1, first]))
        np.testing.assert_array_equal(result[part], deform(originals[part], drawn, SHAPE))
