"""Stage 1: get the four arrays of the data set, MNIST's the same bytes whatever the source."""

from __future__ import annotations

from stages.pipeline.command import run
from stages.pipeline.datasets import FASHION_MNIST, MNIST, RAW, Description, save_description
from stages.pipeline.files import replaced_together, save_array
from stages.pipeline.own_images import read_own
from stages.pipeline.params import FetchParams, load_params
from stages.pipeline.sources import Arrays, fetch_fashion_mnist, fetch_mnist


def main() -> None:
    """Write the four arrays and the data set's description to data/raw."""
    # Nothing is written before all four arrays are verified.
    description, arrays = fetch(load_params().fetch)
    with replaced_together():
        for name, array in arrays.items():
            save_array(RAW / f"{name}.npy", array)
        save_description(description)
    report(arrays)


def fetch(params: FetchParams) -> tuple[Description, Arrays]:
    """Return the data set that the parameters choose.

    Raises:
        InputError: no source gave it, or a file of it is bad.
    """
    match params.dataset:
        case "mnist":
            return MNIST, fetch_mnist(params.sources)
        case "fashion_mnist":
            return FASHION_MNIST, fetch_fashion_mnist()
        case "files":
            return read_own(params.files)


def report(arrays: Arrays) -> None:
    """Print the shapes, the range of values and an example label."""
    print("---Shape Info---")
    print(f"Training Images shape: {arrays['x_train'].shape}")
    print(f"Training Labels shape: {arrays['y_train'].shape}")
    print(f"Test Images shape: {arrays['x_test'].shape}")
    print(f"Test Labels shape: {arrays['y_test'].shape}")
    print("---Value Info---")
    print(f"Pixel Value Range : {arrays['x_train'].min()} to {arrays['x_train'].max()}")
    print(f"Example Label : {arrays['y_train'][0]}")


if __name__ == "__main__":
    run(main, no_arguments=True)
