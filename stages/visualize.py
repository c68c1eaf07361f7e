"""Stage 5: draw the report's figures from what the other stages wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stages.core.augmentation import Augmentation, deform, draw
from stages.core.metrics import confusion_matrix
from stages.pipeline.command import run
from stages.pipeline.datasets import load_description, load_raw
from stages.pipeline.files import atomic_write, replaced_together
from stages.pipeline.model_file import MODEL, load_model
from stages.pipeline.params import load_params
from stages.pipeline.schemas import kept_epoch, load_curves, load_scored
from stages.plots import charts, drawing, figures, png

REPORTS = Path("reports")
COLUMNS, ROWS = 10, 4  # of the augmented samples


def main() -> None:
    """Write one PNG for each figure to reports/."""
    params = load_params()
    description = load_description()
    _, shape, names = description
    images, labels, predictions, probabilities = load_scored()
    first_layer, *_ = load_model(MODEL, description.pixels, len(names))
    _, train_loss, validation_loss, validation_accuracy = curves = load_curves()
    training_images, training_labels = load_raw("train")
    originals = training_images[:COLUMNS]
    augmentation = Augmentation(**params.train.augmentation.model_dump())
    generator = np.random.default_rng(params.train.seed)
    deformations = [draw(augmentation, shape, 1, generator) for _ in range(ROWS)]
    deformed = np.stack([deform(originals, one, augmentation) for one in deformations])

    kept = kept_epoch(curves, params.train.keep)
    training = charts.Run("", train_loss, validation_loss, validation_accuracy, kept)
    causes = {
        "on deformed images": bool(augmentation),
        "with units dropped": params.train.dropout > 0,
        "before the weights are averaged": params.train.ema_decay > 0,
    }
    measured = ", ".join(["the epoch's mean", *(cause for cause, holds in causes.items() if holds)])
    counts = confusion_matrix(labels, predictions, len(names))
    wanted = params.visualize
    scored = images, labels, predictions, probabilities, names
    drawn = {
        "prediction_grid": figures.prediction_grid(*scored, wanted.rows, wanted.columns),
        "confident_mistakes": figures.confident_mistakes(*scored, wanted.mistakes),
        "learning_curves": charts.learning_curves(training, measured),
        "confusion_matrix": figures.confusion_matrix(counts, names),
        "first_layer_weights": figures.first_layer_weights(first_layer.W, shape),
        "augmented_samples": figures.augmented_samples(originals, deformed),
        "sample_image": figures.sample_image(training_images[0], names[training_labels[0]]),
    }
    with replaced_together():
        for name, figure in drawn.items():
            path = REPORTS / f"{name}.png"
            with atomic_write(path) as file:
                file.write(png.encode(drawing.render(figure)))
            print(path)


if __name__ == "__main__":
    run(main, no_arguments=True)
