"""Stage 5: draw the report's pictures from what the other stages wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages import pictures, png
from stages.errors import InputError, run
from stages.files import Array, load_array, load_arrays, load_csv, replacing
from stages.params import load_params

RAW = Path("data/raw")
SCORED = Path("data/scored.npz")
MODEL = Path("models/model.npz")
REPORTS = Path("reports")
CURVES = REPORTS / "learning_curves.csv"


def main() -> None:
    """Write one PNG for each picture to reports/."""
    params = load_params().visualize
    images, labels, probabilities = _arrays(SCORED, "images", "labels", "probabilities")
    predictions = probabilities.argmax(axis=1)
    (W1,) = _arrays(MODEL, "W1")
    train_loss, validation_loss, validation_accuracy = _columns(
        CURVES, "train_loss", "validation_loss", "validation_accuracy"
    )
    sample = load_array(RAW / "x_train.npy", memory_map=True)[0]
    sample_label = load_array(RAW / "y_train.npy", memory_map=True)[0]

    for name, figure in (
        (
            "prediction_grid",
            pictures.prediction_grid(images, labels, predictions, params.rows, params.columns),
        ),
        (
            "confident_mistakes",
            pictures.confident_mistakes(images, labels, probabilities, params.mistakes),
        ),
        (
            "learning_curves",
            pictures.learning_curves(train_loss, validation_loss, validation_accuracy),
        ),
        ("confusion_matrix", pictures.confusion_matrix(labels, predictions)),
        ("first_layer_weights", pictures.first_layer_weights(W1)),
        ("sample_image", pictures.sample_image(sample, sample_label)),
    ):
        path = REPORTS / f"{name}.png"
        with replacing(path) as file:
            file.write(png.encode(pictures.render(figure)))
        print(path)


def _arrays(path: Path, *names: str) -> list[Array]:
    arrays = load_arrays(path)
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"{path}: no array {missing[0]}; must hold {', '.join(names)}")
    return [arrays[name] for name in names]


def _columns(path: Path, *names: str) -> Array:
    """Return the named columns as rows of numbers, (names, epochs)."""
    rows = load_csv(path)
    if not rows:
        raise InputError(f"{path}: no epochs; must hold one row for each")
    try:
        columns = np.array([[float(row[name]) for row in rows] for name in names])
    except (KeyError, TypeError, ValueError):
        columns = np.array(np.nan)
    if not np.isfinite(columns).all():
        raise InputError(f"{path}: must hold a finite number for {', '.join(names)} in each row")
    return columns


if __name__ == "__main__":
    run(main)
