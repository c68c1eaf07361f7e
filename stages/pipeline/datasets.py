"""The sets of labelled images, each in two files, x_NAME.npy and y_NAME.npy; x memory-mapped."""

from __future__ import annotations

from pathlib import Path

from stages.core.data import DataError, Set, check
from stages.pipeline.command import InputError
from stages.pipeline.files import load_array

RAW = Path("data/raw")
PROCESSED = Path("data/processed")


def load_raw(name: str) -> Set:
    """Read a set as it was fetched, images (samples, 28, 28) uint8 and labels (samples,).

    Raises:
        InputError: a file is missing or damaged, or the two are no set of labelled images.
    """
    return _load(RAW, name, (28, 28))


def load_processed(name: str) -> Set:
    """Read a set as it is trained on, x (samples, 784) uint8 and y (samples,).

    Raises:
        InputError: as for `load_raw`.
    """
    return _load(PROCESSED, name, (784,))


def _load(folder: Path, name: str, image: tuple[int, ...]) -> Set:
    path = folder / f"x_{name}.npy"
    images, labels = load_array(path, memory_map=True), load_array(folder / f"y_{name}.npy")
    try:
        check(images, labels, image)
    except DataError as error:
        raise InputError(f"{path}, y_{name}.npy: {error}") from None
    return images, labels
