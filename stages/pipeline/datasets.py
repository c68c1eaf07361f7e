"""The sets of labelled images, each in two files, x_NAME.npy and y_NAME.npy; x memory-mapped."""

from __future__ import annotations

from pathlib import Path

from stages.core.data import DataError, LabelledImages, check
from stages.pipeline.command import InputError
from stages.pipeline.files import load_array

RAW = Path("data/raw")
PROCESSED = Path("data/processed")
SHAPE = (28, 28)
CLASS_NAMES = tuple("0123456789")
CLASSES = len(CLASS_NAMES)


def load_raw(name: str) -> LabelledImages:
    """Read a set as it was fetched, images (samples, 28, 28) uint8 and labels (samples,).

    Raises:
        InputError: a file is missing or damaged, or the two are no set of labelled images.
    """
    return _load(RAW, name, SHAPE)


def load_processed(name: str) -> LabelledImages:
    """Read a set that the preprocess stage wrote, with its rows of pixels as images again.

    Raises:
        InputError: as for `load_raw`.
    """
    images, labels = _load(PROCESSED, name, (SHAPE[0] * SHAPE[1],))
    return images.reshape(-1, *SHAPE), labels


def _load(folder: Path, name: str, shape: tuple[int, ...]) -> LabelledImages:
    path = folder / f"x_{name}.npy"
    images, labels = load_array(path, memory_map=True), load_array(folder / f"y_{name}.npy")
    try:
        check(images, labels, shape, CLASSES)
    except DataError as error:
        raise InputError(f"{path}, y_{name}.npy: {error}") from None
    return images, labels
