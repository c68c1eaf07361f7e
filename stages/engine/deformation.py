"""Augmentation, one compiled pass per group of images: as `stages.core.augmentation`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core import Array
from stages.core.augmentation import GROUP, NOISE_LEVELS, Deformations
from stages.engine.compiler import entry_kernel, kernel
from stages.engine.layout import CACHE_LINE, LANES, TILE, SparseImages
from stages.engine.vectors import combine, prefetch


@kernel
def smooth(noise, down, along, room, smoothed):
    """Smooth integers (height, width) along both axes: as in `coordinates`.

    `along` and what is smoothed have padded rows.
    """
    (height, width), stride = noise.shape, along.shape[1]
    factors, middle = room.factors, room.middle.reshape(-1)
    for y in range(height):
        for k in range(width):
            factors[k] = noise[y, k] / NOISE_LEVELS
        for x in range(0, stride, LANES):
            combine(
                LANES, middle, y * stride + x, along.reshape(-1), x, stride, None, factors, 0,
                width, False,
            )  # fmt: skip
    flat = smoothed.reshape(-1)
    for y in range(height):
        for x in range(0, stride, LANES):
            combine(LANES, flat, y * stride + x, middle, x, stride, None, down[y], 0, height, False)


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
def gather(images, order, first, last, room):
    """Read a group's images, each pixel's values side by side; note which are dark in all."""
    height, width = room.x.shape
    flat, starts, count = images.reshape(-1), room.starts, last - first
    for i in range(count):
        starts[i] = order[first + i] * images.shape[1]
    for row in range(height):
        for column in range(width):
            values, lit = room.pixels[row + 1, column + 1], np.uint8(0)
            for i in range(count):
                value = flat[starts[i] + np.uint64(row * width + column)]
                values[i] = value
                lit |= value
            room.lit[row + 1, column + 1] = lit


@kernel
def interpolate(room, thickness, keep_zeros):
    """Read a group's pixels between their neighbours, and thicken: `deform`.

    Those that are dark in all images of the group are left out. `room.ends` gets the number of
    those found up to the end of each tile.
    """
    height, width = room.x.shape
    steeper, thinner = np.float32(1.0) + thickness, np.float32(1.0) - thickness
    white, found = np.float32(255.0), 0
    for row in range(height):
        for column in range(width):
            x, y, place = room.x[row, column], room.y[row, column], row * width + column
            if place % TILE == 0:
                room.ends[place // TILE] = found
            left, top = np.floor(x), np.floor(y)
            first, above = np.uint64(left + 1.0), np.uint64(top + 1.0)
            right, below = first + np.uint64(1), above + np.uint64(1)
            if not (
                keep_zeros
                or room.lit[above, first] | room.lit[above, right]
                | room.lit[below, first] | room.lit[below, right]
            ):  # fmt: skip
                continue
            right_weight, lower_weight = x - left, y - top
            left_weight, upper_weight = 1.0 - right_weight, 1.0 - lower_weight
            a = np.float32(upper_weight * left_weight)
            b = np.float32(upper_weight * right_weight)
            c = np.float32(lower_weight * left_weight)
            d = np.float32(lower_weight * right_weight)
            upper_left, upper_right = room.pixels[above, first], room.pixels[above, right]
            lower_left, lower_right = room.pixels[below, first], room.pixels[below, right]
            total = room.deformed[found]
            for i in range(GROUP):
                value = np.float32(upper_left[i]) * a
                value += np.float32(upper_right[i]) * b
                value += np.float32(lower_left[i]) * c
                value += np.float32(lower_right[i]) * d
                if thickness > 0.0:
                    value = min(value * steeper, white)
                elif thickness < 0.0:
                    value = max((value - white) * thinner + white, np.float32(0.0))
                total[i] = np.uint8(np.rint(value))
            room.places[found] = place
            found += 1
    room.ends[len(room.ends) - 1] = found


@kernel
def write_row(room, i, images, row, keep_zeros):
    """Write the group's deformed image i as a sparse row of `images`."""
    place, bounds = np.uint64(row * room.x.size), images.bounds[row]
    for tile in range(len(bounds) - 1):
        bounds[tile] = place
        # Unsigned: of a signed index the compiler tests whether it counts from the end.
        for k in range(np.uint64(room.ends[tile]), np.uint64(room.ends[tile + 1])):
            value = room.deformed[k, i]
            images.pixels[place], images.brightness[place] = room.places[k], value
            place += np.uint64((value != 0) | keep_zeros)
    bounds[len(bounds) - 1] = place


class Group(NamedTuple):
    """What the deformation of a group of images needs.

    Attributes:
        x: (height, width) where each pixel is read, float64.
        y: see there.
        x_noise: (height, width padded to whole vectors) smoothed, float64.
        y_noise: see there.
        middle: the same, smoothed along one axis alone.
        factors: (width,) a row of noise, float64.
        starts: (GROUP,) where each image starts among all images, uint64.
        pixels: (height + 2, width + 2, GROUP) the images with a dark edge, uint8.
        lit: (height + 2, width + 2) 0 where all images are dark, uint8.
        deformed: (pixels, GROUP) those of the deformed images that are not dark in all, uint8.
        places: (pixels,) which these are, uint16.
        ends: (tiles + 1,) how many of them come before each tile.
    """

    x: Array
    y: Array
    x_noise: Array
    y_noise: Array
    middle: Array
    factors: Array
    starts: Array
    pixels: Array
    lit: Array
    deformed: Array
    places: Array
    ends: Array


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
    along = np.pad(along, ((0, 0), (0, -width % LANES)))
    room = Group(
        *(np.empty(shape) for _ in range(2)),
        *(np.empty((height, along.shape[1])) for _ in range(3)),
        factors=np.empty(width),
        starts=np.empty(GROUP, np.uint64),
        pixels=np.zeros((height + 2, width + 2, GROUP), np.uint8),
        lit=np.zeros((height + 2, width + 2), np.uint8),
        deformed=np.empty((height * width, GROUP), np.uint8),
        places=np.empty(height * width, np.uint16),
        ends=np.empty(deformed.bounds.shape[1], np.int64),
    )
    deform_groups(
        room, images, order, start, deformations, elastic, down, along, deformed, keep_zeros
    )


@entry_kernel
def deform_groups(
    room, images, order, start, deformations, elastic, down, along, deformed, keep_zeros
):
    """Do what `deform` says, with the room that it made."""
    for group in range(len(deformations.thickness)):
        first = start + group * GROUP
        last = min(first + GROUP, len(order))
        gather(images, order, first, last, room)
        for n in range(last, min(last + GROUP, len(order))):
            for p in range(0, images.shape[1], CACHE_LINE):
                prefetch(images, order[n] * images.shape[1] + p)
        if elastic != 0.0:
            smooth(deformations.x_noise[group], down, along, room, room.x_noise)
            smooth(deformations.y_noise[group], down, along, room, room.y_noise)
        displace(room.x, room.y, deformations, group, elastic, room.x_noise, room.y_noise)
        interpolate(room, deformations.thickness[group], keep_zeros)
        for n in range(first, last):
            write_row(room, n - first, deformed, n % len(deformed.bounds), keep_zeros)
