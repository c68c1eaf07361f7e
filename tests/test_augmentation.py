"""Augmentation against a slow and plain bilinear reading of each pixel, and its promises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from stages.core.augmentation import (
    GROUP,
    NO_AUGMENTATION,
    SIDE,
    Augmentation,
    Deformations,
    Scratch,
    augmented,
    deform,
    draw,
)

SHAPE = Augmentation(rotation=10, scale=0.1, shear=0.1, shift=2, elastic=34, smoothness=4)


def images(count: int = GROUP) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, SIDE * SIDE), dtype=np.uint8)


def read_bilinearly(image: np.ndarray, x: float, y: float) -> float:
    """Read an image between its pixels; outside it is 0."""
    left, top = math.floor(x), math.floor(y)
    total = 0.0
    for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
            if 0 <= row < SIDE and 0 <= column < SIDE:
                total += float(image[row, column]) * share_x * share_y
    return total


def places_of(deformations: Deformations, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Recover x and y of every pixel from the upper-left corners and the weights."""
    row, column = np.divmod(deformations.places[group].astype(int), SIDE + 2)
    weights = deformations.weights[group].astype(float)
    return column - 1 + weights[1] + weights[3], row - 1 + weights[2] + weights[3]


@pytest.mark.parametrize(
    "augmentation", [SHAPE, Augmentation(shift=14), Augmentation(rotation=180)]
)
def test_each_pixel_is_read_bilinearly_at_its_place(augmentation: Augmentation) -> None:
    deformations = draw(augmentation, 2, np.random.default_rng(1))
    originals = images(3)
    result = deform(originals, deformations, 1, Scratch())
    x, y = places_of(deformations, 1)
    for image, deformed in zip(originals.reshape(-1, SIDE, SIDE), result, strict=True):
        expected = [read_bilinearly(image, *place) for place in zip(x, y, strict=True)]
        np.testing.assert_allclose(deformed, expected, atol=0.501)


@pytest.mark.parametrize(
    ("thickness", "expected"),
    [(0.0, [0, 40, 128, 200, 255]), (1.0, [0, 80, 255, 255, 255]), (-1.0, [0, 0, 1, 145, 255])],
)
def test_steeper_edges_make_strokes_thicker_or_thinner(
    thickness: float, expected: list[int]
) -> None:
    still = draw(NO_AUGMENTATION, 1, np.random.default_rng(1))
    edge = np.zeros((1, SIDE * SIDE), np.uint8)
    edge[0, 400:405] = [0, 40, 128, 200, 255]
    inked = still._replace(thickness=np.full(1, thickness, np.float32))
    result = deform(edge, inked, 0, Scratch())
    assert result[0, 400:405].tolist() == expected
    assert not np.delete(result[0], range(400, 405)).any()


def test_thickness_is_drawn_on_both_sides_of_0_and_leaves_the_shape_alone() -> None:
    drawn = draw(Augmentation(thickness=2), 1000, np.random.default_rng(1))
    assert drawn.thickness.dtype == np.float32
    assert np.quantile(drawn.thickness, [0.0, 0.25, 0.5, 0.75, 1.0]) == pytest.approx(
        [-2, -1, 0, 1, 2], abs=0.2
    )
    still = draw(NO_AUGMENTATION, 1, np.random.default_rng(1))
    np.testing.assert_array_equal(drawn.places[0], still.places[0])
    np.testing.assert_array_equal(drawn.weights[0], still.weights[0])


def test_no_strength_changes_nothing() -> None:
    assert not NO_AUGMENTATION
    originals = images(40)
    np.testing.assert_array_equal(
        augmented(originals, NO_AUGMENTATION, np.random.default_rng(1)), originals
    )


@pytest.mark.parametrize("degrees", [90.0, -90.0, 30.0])
def test_a_rotation_turns_the_image(degrees: float) -> None:
    class Fixed:
        """A generator whose first number is the rotation's full strength, all others 0."""

        def __init__(self) -> None:
            self.first = 1.0 if degrees > 0 else 0.0

        def random(self, shape: tuple[int, ...]) -> np.ndarray:
            value, self.first = self.first, 0.5
            return np.full(shape, value)

    deformations = draw(Augmentation(rotation=abs(degrees)), 1, Fixed())
    x, y = places_of(deformations, 0)
    centre = (SIDE - 1) / 2
    v, u = (grid.ravel() - centre for grid in np.mgrid[:SIDE, :SIDE])
    angle = math.radians(degrees)
    inside = u**2 + v**2 < (SIDE / 2 - 1) ** 2
    expected_x = math.cos(angle) * u - math.sin(angle) * v + centre
    expected_y = math.sin(angle) * u + math.cos(angle) * v + centre
    np.testing.assert_allclose(x[inside], expected_x[inside], atol=1e-4)
    np.testing.assert_allclose(y[inside], expected_y[inside], atol=1e-4)


def test_elastic_displacements_have_the_size_that_the_smoothing_predicts() -> None:
    deformations = draw(Augmentation(elastic=34, smoothness=4), 400, np.random.default_rng(1))
    middle = SIDE // 2 * SIDE + SIDE // 2
    moved = [places_of(deformations, group)[0][middle] - SIDE // 2 for group in range(400)]
    # Uniform noise has deviation 1/sqrt(3); a normalised Gaussian leaves 1 / (2 sigma sqrt(pi)).
    expected = 34 / math.sqrt(3) / (2 * 4 * math.sqrt(math.pi))
    assert np.std(moved) == pytest.approx(expected, rel=0.1)
    assert abs(np.mean(moved)) < 0.25


def test_images_of_a_group_share_a_deformation_and_groups_differ() -> None:
    same = np.repeat(images(1), 2 * GROUP, axis=0)
    result = augmented(same, replace(SHAPE, thickness=1.0), np.random.default_rng(1))
    assert (result[:GROUP] == result[0]).all()
    assert (result[GROUP:] == result[GROUP]).all()
    assert (result[0] != result[GROUP]).any()


def test_pixels_stay_within_their_levels_and_ink_is_neither_made_nor_lost() -> None:
    blob = np.zeros((GROUP, SIDE, SIDE), np.uint8)
    blob[:, 10:18, 10:18] = 255
    mild = Augmentation(rotation=10, shear=0.1, shift=2)
    result = augmented(blob.reshape(GROUP, -1), mild, np.random.default_rng(5))
    assert result.dtype == np.uint8
    np.testing.assert_allclose(result.sum(axis=1), blob[0].sum(), rtol=0.05)
