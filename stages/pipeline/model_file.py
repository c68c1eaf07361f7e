"""The model file: every layer's `W` and `b`, by the names W1, b1, W2, b2, ..."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.core.network import Layer
from stages.pipeline.command import InputError
from stages.pipeline.files import load_arrays, save_arrays

MODEL = Path("models/model.npz")


def save_model(path: Path, parameters: Sequence[Layer]) -> None:
    """Write the layers as float32 arrays, `W` as (inputs, outputs)."""
    save_arrays(
        path,
        {
            f"{name}{number}": array
            for number, layer in enumerate(parameters, start=1)
            for name, array in layer._asdict().items()
        },
    )


def load_model(path: Path, inputs: int, classes: int) -> list[Layer]:
    """Read the layers and check that they form a network from `inputs` to `classes`.

    Raises:
        InputError: an array is missing, superfluous, of the wrong type or shape, or not finite.
    """
    arrays = load_arrays(path)
    layers = len(arrays) // 2
    expected = [f"{name}{number}" for number in range(1, layers + 1) for name in "Wb"]
    if not expected or set(arrays) != set(expected):
        raise InputError(
            f"{path}: holds {', '.join(sorted(arrays)) or 'nothing'}; must hold W1, b1, W2, b2, ..."
        )
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise InputError(f"{path}: {name} is {array.dtype}; must be float32")
        if not np.isfinite(array).all():
            raise InputError(f"{path}: {name} has values that are not finite")
    units = inputs
    for number in range(1, layers + 1):
        W, b = arrays[f"W{number}"], arrays[f"b{number}"]
        outputs = classes if number == layers else b.size
        if W.shape != (units, outputs) or b.shape != (outputs,) or outputs == 0:
            wanted = max(outputs, 1)
            raise InputError(
                f"{path}: W{number} has shape {W.shape} and b{number} {b.shape}; "
                f"must be ({units}, {wanted}) and ({wanted},)"
            )
        units = outputs
    return [Layer(arrays[f"W{number}"], arrays[f"b{number}"]) for number in range(1, layers + 1)]
