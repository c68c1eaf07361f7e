"""Whether one run is better than another by more than another seed would make it."""

from __future__ import annotations

from math import sqrt
from statistics import stdev
from typing import Any, NamedTuple

from stages.pipeline.schemas import Metrics
from tools.study import Studies


class Judged(NamedTuple):
    """A run.

    Attributes:
        metrics: None if they are not known.
        parameters: what a study of them would have, `tools.study.studied_parameters`; None if they
            are not those of this version of the code.
        trained_on_validation: whether the validation images were trained on, too.
    """

    metrics: Metrics | None
    parameters: dict[str, Any] | None
    trained_on_validation: bool


def verdict(old: Judged, new: Judged, studies: Studies) -> str:
    """Return a line that says whether the new run is better.

    The validation set decides, so that the test set stays out of every choice; only where one side
    was trained on it does the test set. Two runs with the same parameters and other seeds differ
    with sqrt(2) times the standard deviation that a study of them measured: a difference within
    twice that says nothing.
    """
    if not (old.metrics and new.metrics):
        return "No verdict: the metrics of both sides are needed."
    name = "test" if old.trained_on_validation or new.trained_on_validation else "validation"
    before, after = (100 * getattr(side.metrics, name).accuracy for side in (old, new))
    change = round(after - before, 4)
    figures = f"{name} accuracy {before:.2f} % to {after:.2f} %"
    if not change:
        return f"No difference: {name} accuracy {before:.2f} % on both sides."
    figures += f", {change:+.2f} points".replace("-", "\N{MINUS SIGN}")
    direction = "Better" if change > 0 else "Worse"
    for side in (old, new):
        for recipe, study in studies.items():
            if side.parameters == study.chosen and len(study.results) > 1:
                accuracies = [getattr(result, f"{name}_accuracy") for result in study.results]
                spread = 2 * sqrt(2) * 100 * stdev(accuracies)
                if abs(change) <= spread:
                    direction = "Within the seeds' spread"
                return (
                    f"{direction}: {figures}; another seed alone makes up to {spread:.2f} "
                    f"({len(accuracies)} seeds of {recipe})."
                )
    return f"{direction}: {figures}; how far seeds spread is not known without a study of them."
