"""New handwriting from old: training images with random changes of shape and of stroke thickness.

Every pixel of a deformed image is read from the original at a displaced position, between the four
pixels around it (bilinear interpolation), and rounded to a pixel's 256 levels. The displacement is
affine (rotation, scale, shear, shift) plus elastic: at each pixel an independent random vector,
smoothed with a Gaussian (Simard, Steinkraus and Platt, "Best Practices for Convolutional Neural
Networks Applied to Visual Document Analysis", 2003, section 2).

A stroke's edge is a ramp of grey levels. Steepened with its bright end held still, it leaves the
stroke thinner; with its dark end held still, thicker.

One deformation serves a group of `GROUP` images that are neighbours in a shuffled epoch, which
makes drawing it cheaper than the network it feeds. The next epoch shuffles again.

The same bytes everywhere: the random numbers are uniform; coordinates come from elementwise
operations; the Gaussian's sums are exact, the noise being multiples of 2**-8 and the kernel of
2**-12, at most 2**20 quanta in each pass and so 2**32 in both, within float64's 2**53.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.core import Array
from stages.core.elementary import PI, exp, sin_and_cos
from stages.core.exact import round_to

GROUP = 16
"""Images, neighbours in an epoch's order, that share a deformation."""
GROUPS_PER_DRAW = 64
"""Groups whose deformations come from one stream of random numbers."""
CHUNK = GROUP * GROUPS_PER_DRAW
"""Images of these groups."""
NOISE_LEVELS = 2**8


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the deformations: all but the elastic one, the end of a uniform range around 0.

    Attributes:
        rotation: degrees.
        scale: fraction of the size, of width and height independently.
        shear: pixels sideways for each pixel up.
        shift: pixels, sideways and upwards independently.
        elastic: Simard's alpha, pixels of displacement for a smoothed noise of 1.
        smoothness: Simard's sigma, the Gaussian's standard deviation in pixels.
        thickness: steepens stroke edges by up to this fraction: thicker strokes above 0, thinner
            ones below.
    """

    rotation: float
    scale: float
    shear: float
    shift: float
    elastic: float
    smoothness: float
    thickness: float

    def __bool__(self) -> bool:
        """Return whether anything is deformed at all."""
        return any(
            (self.rotation, self.scale, self.shear, self.shift, self.elastic, self.thickness)
        )


class Deformations(NamedTuple):
    """What is drawn for each group of images; all (groups, 1) but for the last three.

    Attributes:
        sin: of the rotation.
        cos: of the rotation.
        x_scale: factor along the rows.
        y_scale: factor along the columns.
        shear: pixels sideways for each pixel up.
        x_shift: pixels.
        y_shift: pixels.
        x_noise: (groups, height, width) integers up to `NOISE_LEVELS`; none without elastic ones.
        y_noise: the same.
        thickness: (groups,) change of the strokes' thickness, float32.
    """

    sin: Array
    cos: Array
    x_scale: Array
    y_scale: Array
    shear: Array
    x_shift: Array
    y_shift: Array
    x_noise: Array
    y_noise: Array
    thickness: Array

    def of(self, groups: Array) -> Deformations:
        """Return those of some groups, (groups,) bool."""
        return Deformations(*(drawn[groups] if len(drawn) else drawn for drawn in self))


def draw(
    augmentation: Augmentation, shape: tuple[int, int], groups: int, generator: np.random.Generator
) -> Deformations:
    """Draw a deformation of images of a shape (height, width) for each of `groups` groups."""

    def uniform(strength: float, *size: int) -> Array:
        return (2.0 * generator.random((groups, *size)) - 1.0) * strength

    def noise() -> Array:
        count = groups if augmentation.elastic else 0
        return generator.integers(-NOISE_LEVELS, NOISE_LEVELS + 1, (count, *shape))

    sin, cos = sin_and_cos(uniform(augmentation.rotation * PI / 180.0, 1))
    return Deformations(
        sin=sin,
        cos=cos,
        x_scale=1.0 + uniform(augmentation.scale, 1),
        y_scale=1.0 + uniform(augmentation.scale, 1),
        shear=uniform(augmentation.shear, 1),
        x_shift=uniform(augmentation.shift, 1),
        y_shift=uniform(augmentation.shift, 1),
        x_noise=noise(),
        y_noise=noise(),
        thickness=uniform(augmentation.thickness).astype(np.float32),
    )


def coordinates(
    deformations: Deformations, augmentation: Augmentation, shape: tuple[int, int]
) -> tuple[Array, Array]:
    """Return where each pixel of a deformed image is read, x and y (groups, height * width)."""
    height, width = shape
    rows, columns = (a.reshape(1, -1) for a in np.mgrid[:height, :width].astype(np.float64))
    x_centre, y_centre = (width - 1) / 2.0, (height - 1) / 2.0
    u, v = columns - x_centre, rows - y_centre
    x = (u + deformations.shear * v) * deformations.x_scale
    y = v * deformations.y_scale
    sin, cos = deformations.sin, deformations.cos
    x, y = cos * x - sin * y, sin * x + cos * y
    x += deformations.x_shift + x_centre
    y += deformations.y_shift + y_centre
    if augmentation.elastic:
        down, along = (gaussian(augmentation.smoothness, size) for size in shape)
        for target, noise in ((x, deformations.x_noise), (y, deformations.y_noise)):
            smoothed = down @ (noise / NOISE_LEVELS @ along)
            target += augmentation.elastic * smoothed.reshape(target.shape)
    # Beyond the border everything is as empty as the border itself.
    x = np.minimum(np.maximum(x, -1.0), width - 2.0**-20)
    y = np.minimum(np.maximum(y, -1.0), height - 2.0**-20)
    return x, y


def gaussian(sigma: float, size: int) -> Array:
    """Return the matrix (size, size) that smooths a line of pixels with a Gaussian of width sigma.

    Its rows are normalised over the whole line: beyond the border the noise is taken as 0.
    """
    distance = np.subtract.outer(np.arange(size), np.arange(size)) / sigma
    kernel = exp(-0.5 * distance * distance)
    reach = np.arange(-4 * size, 4 * size + 1) / sigma
    kernel /= round_to(exp(-0.5 * reach * reach), 2.0**-40).sum()
    return round_to(kernel, 2.0**-12)


def deform(images: Array, deformations: Deformations, augmentation: Augmentation) -> Array:
    """Return images, deformed.

    Args:
        images: (samples, height, width) uint8; each `GROUP` of them shares a deformation.
        deformations: as drawn, for all of their groups.
        augmentation: they were drawn with.

    Returns:
        (samples, height, width) uint8.
    """
    samples, height, width = images.shape
    deformed = np.empty_like(images)
    bordered = np.zeros((height + 2, width + 2, GROUP), np.float32)
    pixels = bordered.reshape(-1, GROUP)
    places = zip(*coordinates(deformations, augmentation, (height, width)), strict=True)
    for group, (x, y) in enumerate(places):
        part = slice(group * GROUP, min((group + 1) * GROUP, samples))
        count = part.stop - part.start
        bordered[1:-1, 1:-1, :count] = images[part].transpose(1, 2, 0)
        left, top = np.floor(x), np.floor(y)
        right_weight, lower_weight = x - left, y - top
        left_weight, upper_weight = 1.0 - right_weight, 1.0 - lower_weight
        upper_left = ((top + 1.0) * (width + 2) + left + 1.0).astype(np.intp)
        total = _weighted(pixels[upper_left], upper_weight * left_weight)
        total += _weighted(pixels[upper_left + 1], upper_weight * right_weight)
        total += _weighted(pixels[upper_left + width + 2], lower_weight * left_weight)
        total += _weighted(pixels[upper_left + width + 3], lower_weight * right_weight)
        thickened = np.rint(_change_thickness(total, deformations.thickness[group]))
        deformed[part] = thickened[:, :count].T.reshape(count, height, width)
    return deformed


def _weighted(pixels: Array, weights: Array) -> Array:
    """Return pixels (positions, images) float32 times weights (positions,), rounded to float32."""
    weighted: Array = pixels * weights.astype(np.float32)[:, np.newaxis]
    return weighted


def _change_thickness(pixels: Array, thickness: Array) -> Array:
    """Return pixels from 0 to 255 with thicker (thickness > 0) or thinner (< 0) strokes."""
    if thickness > 0.0:
        return np.minimum(pixels * (1.0 + thickness), np.float32(255.0))
    if thickness < 0.0:
        return np.maximum((pixels - 255.0) * (1.0 - thickness) + 255.0, np.float32(0.0))
    return pixels


def augment(
    images: Array, augmentation: Augmentation, seed: Sequence[int], rows: Array | None = None
) -> Array:
    """Return an epoch's images (samples, height, width) uint8, deformed.

    Args:
        images: in the epoch's order.
        augmentation: how strongly; none of it returns the images as they are.
        seed: of the random numbers; each `GROUPS_PER_DRAW` groups have a stream of their own.
        rows: indices of the images that are needed, all if not given; the others may be anything.
    """
    if not augmentation:
        return images
    deformed = np.empty_like(images)
    needed = np.ones(-(-len(images) // GROUP), bool)
    if rows is not None:
        needed[:] = False
        needed[rows // GROUP] = True
    for chunk, start in enumerate(range(0, len(images), CHUNK)):
        groups = needed[start // GROUP :][:GROUPS_PER_DRAW]
        part = start + np.flatnonzero(groups.repeat(GROUP)[: len(images) - start])
        deformations = draw_chunk(augmentation, images.shape[1:], len(images), seed, chunk)
        deformed[part] = deform(images[part], deformations.of(groups), augmentation)
    return deformed


def draw_chunk(
    augmentation: Augmentation, shape: tuple[int, int], samples: int, seed: Sequence[int],
    chunk: int,
) -> Deformations:  # fmt: skip
    """Draw the deformations of the `chunk`-th `CHUNK` images of an epoch of `samples` images."""
    first = chunk * GROUPS_PER_DRAW
    groups = min(GROUPS_PER_DRAW, -(-samples // GROUP) - first)
    return draw(augmentation, shape, groups, np.random.default_rng([*seed, first]))
