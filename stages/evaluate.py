"""Stage 4: score the network on the training, validation and test sets.

This is the only stage that opens the test set.
"""

from __future__ import annotations

import numpy as np

from stages.core.exact import ExactnessError
from stages.core.metrics import class_metrics, confusion_matrix
from stages.core.network import softmax, softmax_terms
from stages.core.prediction import logits_of, predict, quantise, score
from stages.pipeline.command import InputError, run
from stages.pipeline.datasets import load_description, load_processed, load_raw
from stages.pipeline.files import replaced_together, save_csv, save_json
from stages.pipeline.model_file import MODEL, load_model
from stages.pipeline.params import load_params
from stages.pipeline.schemas import CONFUSION, METRICS, PER_CLASS, Scored, save_scored


def main() -> None:
    """Write the metrics, the per-class figures, the confusion table and the scored test set."""
    load_params()
    try:
        with replaced_together():
            evaluate()
    except ExactnessError as error:
        raise InputError(f"{MODEL}: {error}") from None


def evaluate() -> None:
    """Score the model on the three sets.

    Raises:
        ExactnessError: the model's numbers are too large.
    """
    description = load_description()
    classes = len(description.classes)
    x_test, y_test = load_raw("test")
    parameters, arithmetic = quantise(load_model(MODEL, description.pixels, classes))

    metrics = {}
    for name, (x, y) in (
        ("train", load_processed("train")),
        ("validation", load_processed("validation")),
        ("test", (x_test, y_test)),
    ):
        scored = score(parameters, x, y, arithmetic)
        metrics[name] = {
            "accuracy": round(scored.accuracy, 6),
            "error_rate": round(scored.error_rate, 6),
            "loss": round(scored.loss, 6),
        }
        print(f"{name}: accuracy {metrics[name]['accuracy']:.2%}, loss {metrics[name]['loss']:.4f}")
    save_json(METRICS, metrics)

    logits = logits_of(parameters, x_test, arithmetic)
    predictions = predict(logits)
    per_class = class_metrics(confusion_matrix(y_test, predictions, classes))
    save_csv(
        PER_CLASS,
        ("class", *per_class._fields),
        [
            (label, f"{precision:.6f}", f"{recall:.6f}", f"{f1:.6f}", support)
            for label, (precision, recall, f1, support) in enumerate(zip(*per_class, strict=True))
        ],
    )
    save_csv(CONFUSION, ("actual", "predicted"), zip(y_test, predictions, strict=True))
    probabilities = softmax(softmax_terms(logits, arithmetic)).astype(np.float32)
    save_scored(Scored(x_test, y_test, predictions.astype(np.uint8), probabilities))


if __name__ == "__main__":
    run(main, no_arguments=True)
