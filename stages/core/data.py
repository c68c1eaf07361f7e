"""Labelled images: checked, split and joined."""

from __future__ import annotations

import numpy as np

from stages.core import Array

LabelledImages = tuple[Array, Array]

MOST_CLASSES = 64
"""For which the sums of `stages.core.exact` are proved."""


class DataError(ValueError):
    """Arrays that are not what a set of labelled images must be."""


def check(images: Array, labels: Array, shape: tuple[int, ...], classes: int) -> None:
    """Check a labelled set of images.

    Args:
        images: must be (samples, *shape) uint8.
        labels: must be (samples,) uint8 from 0 to classes - 1, with every class present.
        shape: of one image.
        classes: how many there are.

    Raises:
        DataError: names what is wrong.
    """
    if images.shape[1:] != shape or images.dtype != np.uint8:
        raise DataError(
            f"images are {images.dtype} of shape {images.shape}; "
            f"must be uint8 of shape (n, {', '.join(map(str, shape))})"
        )
    if labels.shape != images.shape[:1] or labels.dtype != np.uint8:
        raise DataError(
            f"labels are {labels.dtype} of shape {labels.shape}; "
            f"must be uint8 of shape ({len(images)},)"
        )
    counts = np.bincount(labels, minlength=classes)
    if len(counts) > classes:
        raise DataError(f"a label is {labels.max()}; must be from 0 to {classes - 1}")
    if not counts.all():
        raise DataError(f"no image of class {counts.argmin()}; every class must be present")


def require_pixels(images: Array) -> None:
    """Refuse images whose pixels are not whole numbers from 0 to 255.

    Raises:
        TypeError: the images are not uint8.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images are {images.dtype}; must be uint8, from 0 to 255")


def joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """Return two sets of images (samples, height, width) and labels (samples,) as one."""
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def stratified_split(labels: Array, held_out: int, seed: int) -> tuple[Array, Array]:
    """Choose `held_out` samples at random, each class in proportion to its size.

    Quotas are rounded down, and the classes with the largest remainders take the samples still
    missing (the largest-remainder method), so the sizes are exact.

    Args:
        labels: (samples,) class of each sample.
        held_out: how many to choose, fewer than there are samples.
        seed: of the random choice.

    Returns:
        Indices of the samples kept and of those held out, both ascending.

    Raises:
        DataError: a class would be left without samples on one of the two sides.
    """
    counts = np.bincount(labels)
    quotas, remainders = np.divmod(counts * held_out, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: held_out - quotas.sum()]] += 1
    if (quotas == 0).any() or (quotas >= counts).any():
        raise DataError(
            f"cannot hold {held_out} of {len(labels)} images out: "
            "a class would be missing on one side"
        )
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label, quota in enumerate(quotas):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
