"""The user's own images: IDX, .npy and .npz files, or folders of pictures, checked on reading.

Whatever is wrong with a file becomes one line that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.core.data import MOST_CLASSES, DataError, check, stratified_split
from stages.pipeline.command import InputError
from stages.pipeline.datasets import FASHION_MNIST, LONGEST_NAME, MNIST, Description
from stages.pipeline.formats import (
    IMAGES_MAGIC,
    LABELS_MAGIC,
    Pixels,
    check_size,
    grey,
    read_array,
    read_picture,
    reading,
)
from stages.pipeline.params import PARAMS, FilesParams

Arrays = dict[str, Pixels]

OWN = Path("data/own")
SEED = 1  # of the order of a folder's images and of the test set that is held out
KINDS = "an IDX, .npy or .npz file or a folder"


class Labelled(NamedTuple):
    """A set as its files have it.

    Attributes:
        images: (samples, height, width) uint8.
        labels: (samples,) uint8, from 0 up.
        classes: the names that the files give the classes.
        colour: how many of the images were in colour and have been made grey.
    """

    images: Pixels
    labels: Pixels
    classes: tuple[str, ...]
    colour: int


def read_own(params: FilesParams) -> tuple[Description, Arrays]:
    """Read the sets that the parameters name, under `data/own`.

    Returns:
        The description, and the arrays `x_train`, `y_train`, `x_test` and `y_test`.

    Raises:
        InputError: a file is missing or damaged, or the sets do not fit together.
    """
    if params.name in (MNIST.name, FASHION_MNIST.name):
        raise InputError(f"{PARAMS}: fetch.files.name: {params.name}: is another data set's name")
    given = None if params.classes == "none" else tuple(params.classes)
    if twice := [name for name in given or () if params.classes.count(name) > 1]:
        raise InputError(f"{PARAMS}: fetch.files.classes: {twice[0]}: given twice; must differ")
    train = _read(params.train_images, params.train_labels, given, "train")
    classes, shape = train.classes, train.images.shape[1:]
    if params.test_images == "none":
        try:
            size = round(params.test_fraction * len(train.labels))
            kept, held_out = stratified_split(train.labels, size, SEED)
        except DataError as error:
            raise InputError(
                f"{PARAMS}: fetch.files.test_fraction: {params.test_fraction:g}: {error}"
            ) from None
        test = Labelled(train.images[held_out], train.labels[held_out], classes, 0)
        train = train._replace(images=train.images[kept], labels=train.labels[kept])
    else:
        test = _read(params.test_images, params.test_labels, given or classes, "test")
        if test.images.shape[1:] != shape:
            raise InputError(
                f"{OWN / params.test_images}: images of {_size(test.images)} pixels; "
                f"must be {_size(train.images)} as in {params.train_images}"
            )
    if colour := train.colour + test.colour:
        print(f"{OWN}: {colour:,} images were in colour and are grey now")
    if params.transposed:
        train, test = (s._replace(images=s.images.transpose(0, 2, 1)) for s in (train, test))
    height, width = train.images.shape[1:]
    arrays = {}
    for name, found in (("train", train), ("test", test)):
        arrays[f"x_{name}"] = np.ascontiguousarray(found.images)
        arrays[f"y_{name}"] = np.ascontiguousarray(found.labels)
    return Description(params.name, (height, width), classes), arrays


def _read(images: str, labels: str, classes: tuple[str, ...] | None, part: str) -> Labelled:
    """Read a set and check it; `classes` are its classes' names, if they are known."""
    path = _inside(images)
    keys = f"{PARAMS}: fetch.files.{part}_labels"
    if path.is_dir():
        if labels != "none":
            raise InputError(f"{keys}: {labels}: must be none: the folders in {path} name classes")
        found = _read_folder(path, classes)
    else:
        if labels == "none":
            raise InputError(f"{keys}: none: must name the labels of {images}")
        pixels, colour = _as_images(_array(images, IMAGES_MAGIC), OWN / images)
        numbers = _as_labels(_array(labels, LABELS_MAGIC), OWN / labels)
        found = _named(pixels, numbers, colour, classes, (OWN / images, OWN / labels))
    try:
        check(found.images, found.labels, found.images.shape[1:], len(found.classes))
    except DataError as error:
        raise InputError(f"{OWN / images}: {error}") from None
    return found


def _named(
    images: Pixels, labels: NDArray[np.int64], colour: int, classes: tuple[str, ...] | None,
    paths: tuple[Path, Path],
) -> Labelled:  # fmt: skip
    """Put images and labels together; labels that count from 1 are made to count from 0."""
    if len(labels) != len(images):
        raise InputError(
            f"{paths[1]}: {len(labels):,} labels; must be {len(images):,}, one for each image of "
            f"{paths[0]}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    first = 1 if lowest == 1 else 0
    if classes is not None and highest == len(classes) - 1:
        first = 0
    most = len(classes) if classes is not None else MOST_CLASSES
    if lowest < 0 or highest - first >= most:
        wrong = lowest if lowest < 0 else highest
        raise InputError(
            f"{paths[1]}: a label is {wrong}; must be from {first} to {first + most - 1}"
        )
    if classes is None:
        classes = tuple(str(label) for label in range(first, highest + 1))
        if len(classes) < 2:
            raise InputError(f"{paths[1]}: every label is {lowest}; must be 2 classes or more")
    return Labelled(images, (labels - first).astype(np.uint8), classes, colour)


def _inside(name: str) -> Path:
    """Return the path of a name under `data/own`; an array's name in an archive is cut off."""
    path = OWN / name.partition(":")[0]
    if not path.exists():
        raise InputError(f"{path}: no such file: must be {KINDS} in {OWN}")
    return path


def _array(name: str, magic: int) -> NDArray[Any]:
    return read_array(_inside(name), name.partition(":")[2], magic)


def _as_images(array: NDArray[Any], path: Path) -> tuple[Pixels, int]:
    """Return an array as images (samples, height, width) uint8, and how many were in colour."""
    if array.ndim == 1:
        raise InputError(
            f"{path}: holds {array.shape} numbers, must hold images: is it the labels?"
        )
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise InputError(
            f"{path}: has shape {array.shape}; must be (images, height, width), or "
            "(images, height, width, 3) in colour"
        )
    check_size(array.shape[1], array.shape[2], path)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        lowest, highest = float(array.min()), float(array.max())
        raise InputError(
            f"{path}: holds {array.dtype} from {lowest:g} to {highest:g}; must be whole numbers "
            "from 0 to 255, saved as uint8"
        )
    pixels = array.astype(np.uint8)
    return (grey(pixels), len(pixels)) if pixels.ndim == 4 else (pixels, 0)


def _as_labels(array: NDArray[Any], path: Path) -> NDArray[np.int64]:
    """Return an array as labels (samples,)."""
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{path}: holds {array.dtype} of shape {array.shape}; must be whole numbers of shape "
            "(images,)"
        )
    if int(array.max()) >= 2**31:  # more than an int64 may hold
        raise InputError(f"{path}: a label is {array.max()}; must count from 0 or 1")
    return array.astype(np.int64)


def _read_folder(path: Path, classes: tuple[str, ...] | None) -> Labelled:
    """Read a folder with a folder of pictures for each class."""
    folders = [f for f in _listed(path) if f.is_dir()]
    if not folders:
        raise InputError(f"{path}: no folder in it: must hold one folder of images for each class")
    names = tuple(folder.name for folder in folders)
    if all(name.isdecimal() for name in names):
        names = tuple(sorted(names, key=int))
    expected = names if classes is None else classes
    if set(names) != set(expected):
        odd = sorted(set(names) ^ set(expected))[0]
        known = "has no folder" if odd in expected else "has a folder"
        raise InputError(
            f"{path}: {known} {odd}; the folders must be the classes {', '.join(expected[:9])}"
        )
    if not 2 <= len(expected) <= MOST_CLASSES:
        raise InputError(
            f"{path}: {len(expected)} folders; must be 2 to {MOST_CLASSES}, the classes"
        )
    if wrong := [
        n for n in expected if len(n) > LONGEST_NAME or not n.isprintable() or n.strip() != n
    ]:
        raise InputError(
            f"{path}: {wrong[0]}: must be a name of at most {LONGEST_NAME} printable characters"
        )
    images: list[Pixels] = []
    labels: list[int] = []
    colour = 0
    for label, name in enumerate(expected):
        files = [file for file in _listed(path / name) if file.is_file()]
        if not files:
            raise InputError(f"{path / name}: no image in it: every class must have one")
        for file in files:
            image, coloured = read_picture(file)
            if images and image.shape != images[0].shape:
                raise InputError(
                    f"{file}: {image.shape[0]} x {image.shape[1]} pixels; must be "
                    f"{images[0].shape[0]} x {images[0].shape[1]} as the images before it"
                )
            images.append(image)
            labels.append(label)
            colour += coloured
    # Shuffled, or the figures' first images would all be of the first class.
    order = np.random.default_rng(SEED).permutation(len(images))
    x, y = np.stack(images)[order], np.array(labels, np.uint8)[order]
    return Labelled(x, y, tuple(expected), colour)


def _listed(folder: Path) -> Sequence[Path]:
    """Return what is in a folder by name, hidden files and notes left out."""
    with reading(folder, "a readable folder"):
        found = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    return [path for path in found if path.suffix.lower() not in (".md", ".txt", ".dvc", ".ini")]


def _size(images: Pixels) -> str:
    return f"{images.shape[1]} x {images.shape[2]}"
