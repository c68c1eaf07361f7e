"""Stage 2: flatten the training images, check them, and split a validation set off.

Pixels stay uint8: a pixel's brightness, from 0 to 1, is its value / 256, which the core multiplies
in when a batch is gathered. Measured against float32 files this is a quarter of the size (47 MB
against 188), loads in a quarter of the time, and gathers a batch about three times as fast, since
the random rows of a batch are fetched from memory at a byte a pixel.
"""

from __future__ import annotations

from pathlib import Path

from stages.core.data import DataError, check, flatten, stratified_split
from stages.errors import InputError, run
from stages.files import load_array, save_array
from stages.params import load_params

RAW = Path("data/raw")
PROCESSED = Path("data/processed")


def main() -> None:
    """Write the training and validation images and labels to data/processed."""
    params = load_params().preprocess
    images, labels = load_array(RAW / "x_train.npy"), load_array(RAW / "y_train.npy")
    try:
        check(images, labels)
        kept, held_out = stratified_split(labels, params.validation_size, params.seed)
    except DataError as error:
        raise InputError(f"{RAW}/x_train.npy, y_train.npy: {error}") from None
    for name, chosen in (("train", kept), ("validation", held_out)):
        save_array(PROCESSED / f"x_{name}.npy", flatten(images[chosen]))
        save_array(PROCESSED / f"y_{name}.npy", labels[chosen])
        print(f"{name}: {len(chosen)} images of {images[0].size} pixels")


if __name__ == "__main__":
    run(main)
