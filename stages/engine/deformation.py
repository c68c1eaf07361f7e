"""Augmentation, one compiled pass per group of images: as `stages.core.augmentation`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core import Array
from stages.core.augmentation import GROUP, NOISE_LEVELS, Deformations
from stages.engine.compiler import entry_kernel, exact_kernel, kernel
from stages.engine.layout import SparseImages
from stages.engine.products import compress


@exact_kernel
def smooth(noise, down, along, middle, smoothed):
    """Smooth integers (height, width) along both axes: `_smooth_noise`."""
    height, width = noise.shape
    for y in range(height):
        for x in range(width):
            middle[y, x] = 0.0
        for k in range(width):
            value = noise[y, k] / NOISE_LEVELS
            for x in range(width):
                middle[y, x] += value * along[k, x]
    for y in range(height):
        for x in range(width):
            smoothed[y, x] = 0.0
        for k in range(height):
            factor = down[y, k]
            for x in range(width):
                smoothed[y, x] += factor * middle[k, x]


@kernel
def displace(x, y, deformations, group, elastic, x_noise, y_noise):
    """Find where each pixel is read: `coordinates`."""
    height, width = x.shape
    sin, cos = deformations.sin[group, 0], deformations.cos[group, 0]
    x_scale, y_scale = deformations.x_scale[group, 0], deformations.y_scale[group, 0]
    shear = deformations.shear[group, 0]
    x_centre, y_centre = (width - 1) / 2.0, (height - 1) / 2.0
    x_shift = deformations.x_shift[group, 0] + x_centre
    y_shift = deformations.y_shift[group, 0] + y_centre
    for row in range(height):
        v = row - y_centre
        for column in range(width):
            u = column - x_centre
            sheared, scaled = (u + shear * v) * x_scale, v * y_scale
            to_x = (cos * sheared - sin * scaled) + x_shift
            to_y = (sin * sheared + cos * scaled) + y_shift
            if elastic != 0.0:
                to_x += elastic * x_noise[row, column]
                to_y += elastic * y_noise[row, column]
            x[row, column] = min(max(to_x, -1.0), width - 2.0**-20)
            y[row, column] = min(max(to_y, -1.0), height - 2.0**-20)


@kernel
def interpolate(pixels, x, y, thickness, out):
    """Read a group's pixels between their neighbours, and thicken: `deform`."""
    height, width = x.shape
    steeper, thinner = np.float32(1.0) + thickness, np.float32(1.0) - thickness
    white = np.float32(255.0)
    for row in range(height):
        for column in range(width):
            left, top = np.floor(x[row, column]), np.floor(y[row, column])
            right_weight, lower_weight = x[row, column] - left, y[row, column] - top
            left_weight, upper_weight = 1.0 - right_weight, 1.0 - lower_weight
            a = np.float32(upper_weight * left_weight)
            b = np.float32(upper_weight * right_weight)
            c = np.float32(lower_weight * left_weight)
            d = np.float32(lower_weight * right_weight)
            upper, lower = pixels[np.int64(top) + 1], pixels[np.int64(top) + 2]
            first = np.int64(left) + 1
            upper_left, upper_right = upper[first], upper[first + 1]
            lower_left, lower_right = lower[first], lower[first + 1]
            total = out[row * width + column]
            for i in range(GROUP):
                value = upper_left[i] * a
                value += upper_right[i] * b
                value += lower_left[i] * c
                value += lower_right[i] * d
                if thickness > 0.0:
                    value = min(value * steeper, white)
                elif thickness < 0.0:
                    value = max((value - white) * thinner + white, np.float32(0.0))
                total[i] = np.uint8(np.rint(value))


class Group(NamedTuple):
    """What a group's deformation needs: coordinates, noise, pixels with a dark edge, the result."""

    x: Array
    y: Array
    x_noise: Array
    y_noise: Array
    middle: Array
    pixels: Array
    deformed: Array
    image: Array


def deform(
    images: Array, order: Array, start: int, shape: tuple[int, int], deformations: Deformations,
    elastic: float, down: Array, along: Array, deformed: SparseImages, keep_zeros: bool,
) -> None:  # fmt: skip
    """Deform the images `order[start]`, ... in groups, each with the next deformation.

    Args:
        images: (samples, height * width) uint8.
        order: (samples,) the epoch's.
        start: a multiple of GROUP.
        shape: (height, width).
        deformations: as drawn for these groups.
        elastic: strength of the elastic deformation, 0 for none.
        down: (height, height) the Gaussian.
        along: (width, width) the Gaussian.
        deformed: a ring of sparse images: image n of the epoch becomes the row n % rows.
        keep_zeros: whether that holds dark pixels, too.
    """
    height, width = shape
    room = Group(
        *(np.empty(shape) for _ in range(5)),
        pixels=np.zeros((height + 2, width + 2, GROUP), np.float32),
        deformed=np.empty((height * width, GROUP), np.uint8),
        image=np.empty(height * width, np.uint8),
    )
    deform_groups(
        room, images, order, start, deformations, elastic, down, along, deformed, keep_zeros
    )


@entry_kernel
def deform_groups(
    room, images, order, start, deformations, elastic, down, along, deformed, keep_zeros
):
    """Do that."""
    height, width = room.x.shape
    x, y, pixels, image = room.x, room.y, room.pixels, room.image
    for group in range(len(deformations.thickness)):
        first = start + group * GROUP
        last = min(first + GROUP, len(order))
        for n in range(first, last):
            source = images[order[n]]
            for row in range(height):
                for column in range(width):
                    pixels[row + 1, column + 1, n - first] = source[row * width + column]
        if elastic != 0.0:
            smooth(deformations.x_noise[group], down, along, room.middle, room.x_noise)
            smooth(deformations.y_noise[group], down, along, room.middle, room.y_noise)
        displace(x, y, deformations, group, elastic, room.x_noise, room.y_noise)
        interpolate(pixels, x, y, deformations.thickness[group], room.deformed)
        for n in range(first, last):
            for p in range(height * width):
                image[p] = room.deformed[p, n - first]
            row = n % len(deformed.bounds)
            compress(
                image, 0, row * len(image), deformed.pixels, deformed.brightness,
                deformed.bounds[row], keep_zeros,
            )  # fmt: skip
