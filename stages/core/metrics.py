"""How good predictions are, class by class: confusion, precision, recall and F1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core import Array


class ClassMetrics(NamedTuple):
    """Figures of each class, (classes,) each; a ratio without cases is 0."""

    precision: Array
    recall: Array
    f1: Array
    support: Array


def confusion_matrix(labels: Array, predictions: Array, classes: int) -> Array:
    """Return (classes, classes) counts: rows are the true classes, columns the predicted ones."""
    pairs = labels.astype(np.intp) * classes + predictions
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_metrics(confusion: Array) -> ClassMetrics:
    """Return each class's precision, recall and F1 = 2 precision recall / (precision + recall).

    Args:
        confusion: (classes, classes) counts, rows true, columns predicted.
    """
    hits = np.diag(confusion)
    predicted, actual = confusion.sum(axis=0), confusion.sum(axis=1)
    return ClassMetrics(
        precision=hits / np.maximum(predicted, 1),
        recall=hits / np.maximum(actual, 1),
        f1=2 * hits / np.maximum(predicted + actual, 1),
        support=actual,
    )
