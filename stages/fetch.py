"""Stage 1: get MNIST's four arrays, the same bytes whatever the source."""

from __future__ import annotations

from stages.pipeline.command import run
from stages.pipeline.datasets import MNIST, RAW, save_description
from stages.pipeline.files import save_array
from stages.pipeline.params import load_params
from stages.pipeline.sources import Arrays, fetch_mnist


def main() -> None:
    """Write the four arrays and the data set's description to data/raw."""
    # Nothing is written before all four arrays are verified.
    arrays = fetch_mnist(load_params().fetch.sources)
    for name, array in arrays.items():
        save_array(RAW / f"{name}.npy", array)
    save_description(MNIST)
    report(arrays)


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
