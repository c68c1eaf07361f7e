"""From images to what the network eats: flattened, checked and split."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from stages.core import Array

CLASSES = 10

Set = tuple[Array, Array]

_SAMPLE = 8192
_CHUNK = 512
_LANES = 32
"""The columns looked at are a multiple of these: products like it, and there are few ways of it."""


class DataError(ValueError):
    """Arrays that are not what a set of labelled digit images must be."""


def check(images: Array, labels: Array, image: tuple[int, ...]) -> None:
    """Check a labelled set of images.

    Args:
        images: must be (samples, *image) uint8.
        labels: must be (samples,) uint8 from 0 to 9, with every class present.
        image: the shape of one image.

    Raises:
        DataError: names what is wrong.
    """
    if images.shape[1:] != image or images.dtype != np.uint8:
        raise DataError(
            f"images are {images.dtype} of shape {images.shape}; "
            f"must be uint8 of shape (n, {', '.join(map(str, image))})"
        )
    if labels.shape != images.shape[:1] or labels.dtype != np.uint8:
        raise DataError(
            f"labels are {labels.dtype} of shape {labels.shape}; "
            f"must be uint8 of shape ({len(images)},)"
        )
    counts = np.bincount(labels, minlength=CLASSES)
    if len(counts) > CLASSES:
        raise DataError(f"a label is {labels.max()}; must be from 0 to {CLASSES - 1}")
    if not counts.all():
        raise DataError(f"no image of class {counts.argmin()}; every class must be present")


def flatten(images: Array) -> Array:
    """Return images (samples, height, width) as rows of pixels (samples, height * width)."""
    return images.reshape(len(images), -1)


def joined(first: Set, second: Set) -> Set:
    """Return two labelled sets, x (samples, pixels) and y (samples,) each, as one."""
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def stratified_split(labels: Array, held_out: int, seed: int) -> tuple[Array, Array]:
    """Choose `held_out` samples at random, each class in proportion to its share.

    Shares are rounded down, and the classes with the largest remainders take the samples still
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
    counts = np.bincount(labels, minlength=CLASSES)
    quotas, remainders = np.divmod(counts * held_out, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: held_out - quotas.sum()]] += 1
    if (quotas == 0).any() or (quotas == counts).any():
        raise DataError(
            f"cannot hold {held_out} of {len(labels)} images out: "
            "a class would be missing on one side"
        )
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label, quota in enumerate(quotas):
        chosen[generator.permutation(np.flatnonzero(labels == label))[:quota]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


class Look(NamedTuple):
    """How far images are looked at: beyond the first `inputs` columns all of them are dark.

    The images are those from `start` on, up to `stop`.
    """

    start: int
    stop: int
    inputs: int


class Images(NamedTuple):
    """Images as training reads them.

    Most of an image is dark, and what is dark adds nothing to any sum. With the pixels in order of
    use, an image's last ones are mostly dark, and can be left out.

    Attributes:
        x: (samples, pixels) uint8, the pixels in the order of `pixels`.
        pixels: (pixels,) which pixel of an image stands in each column.
        used: (samples,) for each image, how many columns there are up to its last bright one.
    """

    x: Array
    pixels: Array
    used: Array

    @classmethod
    def as_they_are(cls, x: Array) -> Images:
        """Return images (samples, pixels) uint8 with nothing moved and nothing left out."""
        samples, pixels = x.shape
        return cls(x, np.arange(pixels), np.full(samples, pixels, np.int16))

    @classmethod
    def by_use(cls, x: Array) -> Images:
        """Return a copy of the images (samples, pixels) uint8, often used pixels first."""
        samples, count = x.shape
        pixels = np.argsort(-np.count_nonzero(x[:_SAMPLE], axis=0), kind="stable")
        moved, used = np.empty(x.shape, np.uint8), np.empty(samples, np.int16)
        numbers = np.arange(1, count + 1, dtype=np.int16)
        for start in range(0, samples, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            np.take(x[chunk], pixels, axis=1, out=moved[chunk], mode="clip")
            used[chunk] = ((moved[chunk] > 0) * numbers).max(axis=1)
        return cls(moved, pixels, used)

    def in_strips(self, images: Array) -> tuple[Array, list[Look]]:
        """Cut images into up to three strips that are looked at less and less far.

        Args:
            images: (samples,) which images.

        Returns:
            The same with those used furthest first, and the strips.
        """
        used = self.used[images]
        order = (-used).argsort(kind="stable")
        samples, columns = len(images), self.x.shape[1]
        looks: list[Look] = []
        for start, stop in pairwise([0, samples // 8, samples // 2, samples]):
            inputs = min(-(-int(used[order[start]]) // _LANES) * _LANES, columns)
            if looks and looks[-1].inputs == inputs:
                start = looks.pop().start
            if start < stop:
                looks.append(Look(start, stop, inputs))
        return images[order], looks
