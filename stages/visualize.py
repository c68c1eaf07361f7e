"""Stage 5: draw the report's pictures from what the other stages wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.core.augmentation import Augmentation, deform, draw
from stages.pipeline.command import InputError, run
from stages.pipeline.datasets import load_raw
from stages.pipeline.files import Array, atomic_write, load_arrays, load_csv
from stages.pipeline.params import load_params
from stages.plots import figures, png

SCORED = Path("data/scored.npz")
MODEL = Path("models/model.npz")
REPORTS = Path("reports")
COLUMNS, ROWS = 10, 4  # of the augmented samples
CURVES = REPORTS / "learning_curves.csv"


def main() -> None:
    """Write one PNG for each picture to reports/."""
    params = load_params()
    images, labels, probabilities = _arrays(SCORED, "images", "labels", "probabilities")
    predictions = probabilities.argmax(axis=1)
    (W1,) = _arrays(MODEL, "W1")
    train_loss, validation_loss, validation_accuracy = _columns(
        CURVES, "train_loss", "validation_loss", "validation_accuracy"
    )
    training_images, training_labels = load_raw("train")
    originals = training_images[:COLUMNS]
    augmentation = Augmentation(**params.train.augmentation.model_dump())
    generator = np.random.default_rng(params.train.seed)
    shape, rows = originals.shape[1:], range(ROWS)
    drawn = [draw(augmentation, shape, groups=1, generator=generator) for _ in rows]
    deformed = np.stack([deform(originals, one, augmentation) for one in drawn])

    for name, figure in (
        (
            "prediction_grid",
            figures.prediction_grid(
                images, labels, predictions, params.visualize.rows, params.visualize.columns
            ),
        ),
        (
            "confident_mistakes",
            figures.confident_mistakes(images, labels, probabilities, params.visualize.mistakes),
        ),
        (
            "learning_curves",
            figures.learning_curves(train_loss, validation_loss, validation_accuracy),
        ),
        ("confusion_matrix", figures.confusion_matrix(labels, predictions)),
        ("first_layer_weights", figures.first_layer_weights(W1)),
        ("augmented_samples", figures.augmented_samples(originals, deformed)),
        ("sample_image", figures.sample_image(training_images[0], training_labels[0])),
    ):
        path = REPORTS / f"{name}.png"
        with atomic_write(path) as file:
            file.write(png.encode(figures.render(figure)))
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
    run(main, no_arguments=True)
