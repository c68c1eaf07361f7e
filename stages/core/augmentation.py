"""New handwriting from old: the images with random changes of shape and of their strokes.

Every pixel of a deformed image is read from the original at a displaced place, between the four
pixels around it (bilinear interpolation), and rounded to a pixel's 256 levels. The displacement is
affine (rotation, scale, shear, shift) plus elastic: at each pixel an independent random vector,
smoothed with a Gaussian (Simard, Steinkraus and Platt, "Best Practices for Convolutional Neural
Networks Applied to Visual Document Analysis", 2003, section 2).

A stroke's edge is a ramp of grey levels. Made steeper with its bright end held still, it leaves
the stroke thinner; with its dark end held still, thicker.

One deformation serves a group of `GROUP` images that stand side by side in a shuffled batch: they
are stored pixel by pixel, so that reading a displaced pixel copies a row of the whole group. That
makes a deformation cheaper than the network it feeds. The next epoch shuffles again.

The same bytes everywhere: the random numbers are uniform; coordinates come from elementwise
operations; the Gaussian's sums are exact, the noise being multiples of 2**-8 and the kernel of
2**-12, at most 2**20 steps in each pass and so 2**32 in both, within float64's 2**53.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.core import Array
from stages.core.elementary import PI, exp, sin_and_cos
from stages.core.exact import round_to_grid

SIDE = 28
GROUP = 16
"""Images, side by side in a batch, that share a deformation."""

_PADDED = SIDE + 2


@dataclass(frozen=True)
class Augmentation:
    """How strong the deformations are: all but the elastic, the end of a uniform range around 0.

    Attributes:
        rotation: degrees.
        scale: share of the size, of width and height independently.
        shear: pixels sideways for each pixel up.
        shift: pixels, sideways and upwards independently.
        elastic: Simard's alpha, pixels of displacement for a smoothed noise of 1.
        smoothness: Simard's sigma, the Gaussian's standard deviation in pixels.
        thickness: how much steeper the strokes' edges become, as a share of their steepness:
            thicker strokes above 0, thinner ones below.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    smoothness: float = 4.0
    thickness: float = 0.0

    def __bool__(self) -> bool:
        """Say whether anything is deformed at all."""
        return any(
            (self.rotation, self.scale, self.shear, self.shift, self.elastic, self.thickness)
        )


NO_AUGMENTATION = Augmentation()


class Deformations(NamedTuple):
    """Where a deformed image's pixels are read and how it is inked, for each group of images.

    Attributes:
        places: (groups, 784) index, in an image with a border of one empty pixel, of the upper
            left of the four pixels around each place.
        weights: (groups, 4, 784) bilinear weights of upper left, upper right, lower left and
            lower right, float32.
        thickness: (groups,) change of the strokes' thickness, float32.
    """

    places: Array
    weights: Array
    thickness: Array


def draw(augmentation: Augmentation, groups: int, generator: np.random.Generator) -> Deformations:
    """Draw a deformation for each of `groups` groups."""

    def uniform(strength: float, *shape: int) -> Array:
        return (2.0 * generator.random((groups, *shape)) - 1.0) * strength

    sin, cos = sin_and_cos(uniform(augmentation.rotation * PI / 180.0, 1))
    width = 1.0 + uniform(augmentation.scale, 1)
    height = 1.0 + uniform(augmentation.scale, 1)
    shear = uniform(augmentation.shear, 1)
    centre = (SIDE - 1) / 2.0
    v, u = (grid.reshape(1, -1) - centre for grid in np.mgrid[:SIDE, :SIDE].astype(np.float64))
    x = (u + shear * v) * width
    y = v * height
    x, y = cos * x - sin * y, sin * x + cos * y
    x += uniform(augmentation.shift, 1) + centre
    y += uniform(augmentation.shift, 1) + centre
    if augmentation.elastic:
        x += augmentation.elastic * _smooth_noise(augmentation.smoothness, groups, generator)
        y += augmentation.elastic * _smooth_noise(augmentation.smoothness, groups, generator)

    thickness = uniform(augmentation.thickness)

    # Beyond the border everything is as empty as the border itself.
    x = np.minimum(np.maximum(x, -1.0), SIDE - 2.0**-20)
    y = np.minimum(np.maximum(y, -1.0), SIDE - 2.0**-20)
    left, top = np.floor(x), np.floor(y)
    right_share, lower_share = x - left, y - top
    left_share, upper_share = 1.0 - right_share, 1.0 - lower_share
    weights = np.stack(
        [
            upper_share * left_share,
            upper_share * right_share,
            lower_share * left_share,
            lower_share * right_share,
        ],
        axis=1,
    )
    places = ((top + 1.0) * _PADDED + left + 1.0).astype(np.intp)
    return Deformations(places, weights.astype(np.float32), thickness.astype(np.float32))


def _smooth_noise(sigma: float, groups: int, generator: np.random.Generator) -> Array:
    """Return (groups, 784) uniform noise from -1 to 1, smoothed with a Gaussian of width sigma."""
    noise = generator.integers(-(2**8), 2**8 + 1, (groups, SIDE, SIDE)) * 2.0**-8
    distance = np.subtract.outer(np.arange(SIDE), np.arange(SIDE)) / sigma
    kernel = exp(-0.5 * distance * distance)
    reach = np.arange(-4 * SIDE, 4 * SIDE + 1) / sigma
    # Normalised over the whole line: at the border the noise outside is taken as 0.
    kernel /= round_to_grid(exp(-0.5 * reach * reach), 2.0**-40).sum()
    kernel = round_to_grid(kernel, 2.0**-12)
    return (kernel @ (noise @ kernel)).reshape(groups, -1)


class Scratch:
    """The buffers of `deform`, which it uses again and again."""

    def __init__(self, images: int = GROUP) -> None:
        self.bordered = np.zeros((_PADDED, _PADDED, images), np.float32)
        self.total = np.empty((SIDE * SIDE, images), np.float32)
        self.term = np.empty((SIDE * SIDE, images), np.float32)


def deform(pixels: Array, deformations: Deformations, group: int, scratch: Scratch) -> Array:
    """Return the images of one group, deformed.

    Args:
        pixels: (images, 784) uint8, at most `GROUP` of them.
        deformations: as drawn.
        group: which of them.
        scratch: buffers to work in.

    Returns:
        (images, 784) float32 view of whole numbers from 0 to 255.
    """
    images = len(pixels)
    bordered = scratch.bordered[..., :images]
    bordered[1:-1, 1:-1] = pixels.T.reshape(SIDE, SIDE, images)
    rows = bordered.reshape(_PADDED * _PADDED, images)
    total, term = scratch.total[:, :images], scratch.term[:, :images]
    places, weights = deformations.places[group], deformations.weights[group]
    for corner, offset in enumerate((0, 1, _PADDED, _PADDED + 1)):
        target = total if corner == 0 else term
        np.take(rows, places + offset, axis=0, out=target, mode="clip")
        target *= weights[corner, :, np.newaxis]
        if corner:
            total += term
    _change_thickness(total, deformations.thickness[group])
    np.rint(total, out=total)
    return total.T


def _change_thickness(pixels: Array, thickness: float) -> None:
    """Make strokes thicker (above 0) or thinner (below 0), pixels from 0 to 255, in place."""
    if thickness > 0.0:
        pixels *= 1.0 + thickness
        np.minimum(pixels, 255.0, out=pixels)
    elif thickness < 0.0:
        pixels -= 255.0
        pixels *= 1.0 - thickness
        pixels += 255.0
        np.maximum(pixels, 0.0, out=pixels)


def augmented(images: Array, augmentation: Augmentation, generator: np.random.Generator) -> Array:
    """Return images (images, 784) uint8 once more, deformed: the same shape and type."""
    deformations = draw(augmentation, -(-len(images) // GROUP), generator)
    scratch = Scratch()
    deformed = np.empty_like(images)
    for group, start in enumerate(range(0, len(images), GROUP)):
        part = slice(start, start + GROUP)
        deformed[part] = deform(images[part], deformations, group, scratch)
    return deformed
