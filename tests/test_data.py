"""The checks on a data set and the stratified split."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import Array
from stages.core.data import DataError, check, joined, stratified_split

CLASSES = 10


def labels_with_counts(counts: list[int], seed: int = 0) -> Array:
    labels = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    return np.random.default_rng(seed).permutation(labels)


@st.composite
def labels_and_sizes(draw: st.DrawFn) -> tuple[Array, int, int]:
    counts = draw(st.lists(st.integers(20, 90), min_size=CLASSES, max_size=CLASSES))
    # From a fifth to four fifths, every class keeps samples on both sides.
    held_out = draw(st.integers(sum(counts) // 5 + 1, sum(counts) * 4 // 5))
    seed = draw(st.integers(0, 2**32 - 1))
    return labels_with_counts(counts, seed), held_out, seed


@given(labels_and_sizes())
def test_split_has_the_exact_size_and_loses_no_sample(case: tuple[Array, int, int]) -> None:
    labels, held_out, seed = case
    kept, chosen = stratified_split(labels, held_out, seed)
    assert len(chosen) == held_out
    assert sorted([*kept.tolist(), *chosen.tolist()]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert chosen.tolist() == sorted(chosen.tolist())


@given(labels_and_sizes())
def test_split_gives_each_class_its_share_to_within_one_sample(
    case: tuple[Array, int, int],
) -> None:
    labels, held_out, seed = case
    _, chosen = stratified_split(labels, held_out, seed)
    for label in range(CLASSES):
        share = Fraction(int((labels == label).sum()) * held_out, len(labels))
        assert abs(int((labels[chosen] == label).sum()) - share) < 1


def test_split_of_equal_classes_is_equal() -> None:
    kept, chosen = stratified_split(labels_with_counts([60] * CLASSES), 100, seed=3)
    assert np.bincount(labels_with_counts([60] * CLASSES)[chosen]).tolist() == [10] * CLASSES
    assert len(kept) == 500


def test_the_largest_remainders_take_the_missing_samples() -> None:
    # 10 % of these counts: 1.9, 1.5, 1.6 and 7 times 2.0. Rounded down they miss two samples,
    # which go to 1.9 and 1.6.
    labels = labels_with_counts([19, 15, 16, *[20] * 7])
    _, chosen = stratified_split(labels, 19, seed=5)
    assert np.bincount(labels[chosen]).tolist() == [2, 1, 2, *[2] * 7]


def test_split_of_mnist_labels_is_the_same_in_every_run_and_differs_by_seed(
    mnist: dict[str, Array],
) -> None:
    labels = mnist["y_train"]
    first, again, other = (stratified_split(labels, 5000, seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert len(first) == len(other) == 5000
    # By chance alone the two would share 5000 * 5000 / 60000, about 417.
    assert 200 < len(np.intersect1d(first, other)) < 700


def test_the_held_out_samples_are_not_simply_the_first_of_their_class() -> None:
    labels = np.repeat(np.arange(CLASSES, dtype=np.uint8), 100)
    _, chosen = stratified_split(labels, 500, seed=1)
    within_class = chosen % 100
    assert 40 < within_class.mean() < 60


@pytest.mark.parametrize("held_out", [0, 5, 599, 600])
def test_split_refuses_to_leave_a_class_empty_on_one_side(held_out: int) -> None:
    labels = labels_with_counts([60] * CLASSES)
    with pytest.raises(DataError, match=rf"cannot hold {held_out} of 600 images out"):
        stratified_split(labels, held_out, seed=1)


def test_split_refuses_labels_without_one_of_the_classes() -> None:
    labels = labels_with_counts([60] * CLASSES)
    with pytest.raises(DataError, match="a class would be missing"):
        stratified_split(labels[labels != 4], 100, seed=1)


def test_two_sets_are_joined_in_their_order() -> None:
    first = np.zeros((2, 3, 4), np.uint8), np.array([1, 2], np.uint8)
    second = np.ones((1, 3, 4), np.uint8), np.array([3], np.uint8)
    images, labels = joined(first, second)
    assert images.shape == (3, 3, 4)
    assert images[:, 0, 0].tolist() == [0, 0, 1]
    assert labels.tolist() == [1, 2, 3]


def test_mnist_passes_the_check(mnist: dict[str, Array]) -> None:
    check(mnist["x_train"], mnist["y_train"], (28, 28), CLASSES)
    check(mnist["x_test"], mnist["y_test"], (28, 28), CLASSES)


IMAGES = np.zeros((20, 28, 28), np.uint8)
LABELS = np.tile(np.arange(CLASSES, dtype=np.uint8), 2)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.reshape(20, 784), LABELS, r"images are uint8 of shape \(20, 784\); must be uint8"),
        (IMAGES[:, :, 1:], LABELS, r"images are uint8 of shape \(20, 28, 27\); must be uint8"),
        (IMAGES.astype(np.float32), LABELS, "images are float32 .* must be uint8"),
        (IMAGES, LABELS[:19], r"labels are uint8 of shape \(19,\); must be .* shape \(20,\)"),
        (IMAGES, LABELS[:, None], r"labels are uint8 of shape \(20, 1\); must be"),
        (IMAGES, LABELS.astype(np.int64), "labels are int64 .* must be uint8"),
        (IMAGES, np.where(LABELS == 7, 10, LABELS).astype(np.uint8), "a label is 10; .* 0 to 9"),
        (IMAGES, np.where(LABELS == 7, 255, LABELS).astype(np.uint8), "a label is 255; .* 0 to 9"),
        (IMAGES, np.where(LABELS == 4, 3, LABELS).astype(np.uint8), "no image of class 4"),
        (IMAGES[:0], LABELS[:0], "no image of class 0"),
    ],
)
def test_check_names_what_is_wrong(images: Array, labels: Array, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        check(images, labels, (28, 28), CLASSES)
    assert "\n" not in str(caught.value)


def test_check_accepts_a_small_good_set() -> None:
    check(IMAGES, LABELS, (28, 28), CLASSES)
    check(IMAGES.reshape(20, 784), LABELS, (784,), CLASSES)
