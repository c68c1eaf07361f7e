"""The training's checkpoint: what an interrupted `train` stage resumes from.

It lies where Git and DVC ignore everything and is no output: it changes no hash, and the stage
removes it at its end. It counts only for the very same training: each part of its fingerprint (the
parameters, the data, the code) must have the same digest.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.network import Layer
from stages.core.state import State
from stages.core.training import Epoch
from stages.pipeline.command import InputError
from stages.pipeline.files import Array, load_arrays, save_arrays

CHECKPOINT = Path(".dvc/tmp/train.checkpoint.npz")

Fingerprint = Mapping[str, str]


def fingerprint_of(settings: Mapping[str, Any], arrays: Sequence[Array]) -> Fingerprint:
    """Return a digest of all that decides a training's result: parameters, data and code."""
    code = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        # What is run as a script, such as the stage itself, is known as __main__ alone.
        if path and (name.startswith("stages") or name == "__main__"):
            code.update(Path(path).read_bytes())
    return {
        "parameters": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "data": digest_of(arrays),
        "code": code.hexdigest(),
    }


def digest_of(arrays: Iterable[Array]) -> str:
    """Return the SHA-256 of some arrays: their types, shapes and numbers."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)  # no copy of what may be a mapped file
    return digest.hexdigest()


def _digest_of_all(arrays: Mapping[str, Array]) -> str:
    return digest_of([np.array(list(arrays)), *arrays.values()])


def save_checkpoint(
    fingerprint: Fingerprint, state: State, curves: Sequence[Epoch], path: Path
) -> None:
    """Write the state after an epoch, with the curves up to it."""
    layers = [layer for network in (*state.networks, state.kept) for layer in network]
    arrays = {
        **{name: np.array(digest) for name, digest in fingerprint.items()},
        "curves": np.array(curves, np.float64),
        "done": np.array([state.epoch, state.step]),
        "best_accuracy": np.array(state.best_accuracy),
        "weight_quanta": np.array(state.weight_quanta),
        "layers": np.array(len(state.kept)),
        **{f"array{i}": array for i, array in enumerate(a for layer in layers for a in layer)},
    }
    save_arrays(path, arrays | {"digest": np.array(_digest_of_all(arrays))})


def load_checkpoint(fingerprint: Fingerprint, path: Path) -> tuple[State, list[Epoch]] | str | None:
    """Return the state and the curves to go on from.

    Returns:
        None if there is no checkpoint, and why it does not count if it does not.
    """
    if not path.exists():
        return None
    try:
        arrays = load_arrays(path)
        others = [name for name in fingerprint if str(arrays[name]) != fingerprint[name]]
        if others:
            return f"{path}: ignored: it was made with other {' and '.join(others)}"
        if str(arrays.pop("digest")) != _digest_of_all(arrays):
            raise ValueError("it is not what was saved")
        flat = [arrays[f"array{i}"] for i in range(sum(n.startswith("array") for n in arrays))]
        layers = [Layer(W, b) for W, b in zip(flat[::2], flat[1::2], strict=True)]
        size = int(arrays["layers"])
        *networks, kept = (layers[i : i + size] for i in range(0, len(layers), size))
        epoch, step = arrays["done"].tolist()
        best_accuracy, quanta = float(arrays["best_accuracy"]), arrays["weight_quanta"].tolist()
        state = State(epoch, step, best_accuracy, quanta, networks, kept)
        curves = [Epoch(int(n), *map(float, losses)) for n, *losses in arrays["curves"]]
    except (InputError, KeyError, TypeError, ValueError) as error:
        return f"{path}: ignored: damaged ({error})"
    return state, curves
