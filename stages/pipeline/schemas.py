"""What the files between the stages hold: one schema each, checked by whoever reads the file.

The sets of images have theirs in `stages.pipeline.datasets`, the model in
`stages.pipeline.model_file`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.data import DataError, check
from stages.pipeline.command import InputError
from stages.pipeline.datasets import load_description
from stages.pipeline.files import Array, damaged, load_arrays, load_bytes, save_arrays

SCORED = Path("data/scored.npz")
CURVES = Path("reports/learning_curves.csv")
CONFUSION = Path("reports/confusion.csv")
PER_CLASS = Path("reports/per_class.csv")
METRICS = Path("reports/metrics.json")
LARGEST_LOSS = 10**10  # training stops before


class Scored(NamedTuple):
    """The test set and what the network makes of it.

    Attributes:
        images: (samples, height, width) uint8.
        labels: (samples,) uint8, the true classes.
        predictions: (samples,) uint8, the most probable classes.
        probabilities: (samples, classes) float32.
    """

    images: Array
    labels: Array
    predictions: Array
    probabilities: Array


def save_scored(scored: Scored, path: Path = SCORED) -> None:
    """Write the scored test set."""
    save_arrays(path, scored._asdict())


def load_scored(path: Path = SCORED) -> Scored:
    """Read the scored test set.

    Raises:
        InputError: an array is missing, superfluous, or not what `Scored` says of this data set.
    """
    _, shape, names = load_description()
    arrays = load_arrays(path)
    if set(arrays) != set(Scored._fields):
        raise InputError(
            f"{path}: holds {', '.join(sorted(arrays)) or 'nothing'}; "
            f"must hold {', '.join(Scored._fields)}"
        )
    scored = Scored(**arrays)
    try:
        check(scored.images, scored.labels, shape, len(names))
        _check_predictions(scored, len(names))
    except DataError as error:
        raise InputError(f"{path}: {error}") from None
    return scored


def _check_predictions(scored: Scored, classes: int) -> None:
    samples = len(scored.labels)
    for name, dtype, shape in (
        ("predictions", np.uint8, (samples,)),
        ("probabilities", np.float32, (samples, classes)),
    ):
        array: Array = getattr(scored, name)
        if array.dtype != dtype or array.shape != shape:
            raise DataError(
                f"{name} are {array.dtype} of shape {array.shape}; "
                f"must be {np.dtype(dtype)} of shape {shape}"
            )
    predictions, probabilities = scored.predictions, scored.probabilities
    if predictions.max() >= classes:
        raise DataError(f"a prediction is {predictions.max()}; must be from 0 to {classes - 1}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DataError("a probability is not a number from 0 to 1")
    if (abs(probabilities.sum(axis=1) - 1) > 1e-4).any():
        raise DataError("an image's probabilities do not add up to 1")
    chosen = probabilities[np.arange(samples), predictions]
    if (chosen < probabilities.max(axis=1) - 1e-6).any():
        raise DataError("a prediction is not the most probable class")


Fraction = Annotated[float, Field(ge=0, le=1)]


class SetMetrics(BaseModel):
    """How well the network does on a set: fractions of its images, and the mean cross-entropy."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    accuracy: Fraction
    error_rate: Fraction
    loss: Annotated[float, Field(ge=0, le=LARGEST_LOSS)]


class Metrics(BaseModel):
    """The metrics of the three sets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: SetMetrics
    validation: SetMetrics
    test: SetMetrics


def parse_metrics(content: bytes, name: object) -> Metrics:
    """Return the metrics that a JSON file holds.

    Args:
        content: of the file.
        name: what a refusal calls it.

    Raises:
        InputError: a figure is missing or out of range.
    """
    try:
        return Metrics.model_validate_json(content)
    except ValidationError as error:
        raise damaged(name, error) from None


class Curves(NamedTuple):
    """What each epoch of a training showed, (epochs,) each: numbers from 1, means, a fraction."""

    epoch: Array
    train_loss: Array
    validation_loss: Array
    validation_accuracy: Array


class Confusion(NamedTuple):
    """The classes of each test image, (samples,) integers each."""

    actual: Array
    predicted: Array


class PerClass(NamedTuple):
    """The figures of each class on the test set, (classes,) each."""

    label: Array
    precision: Array
    recall: Array
    f1: Array
    support: Array


class Column(NamedTuple):
    """The numbers that may stand in a table's column."""

    lowest: int
    highest: int
    whole: bool = False

    def allows(self, values: Array) -> Array:
        """Return for each number whether it may."""
        inside: Array = (values >= self.lowest) & (values <= self.highest)
        return inside & (values == np.rint(values)) if self.whole else inside

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.lowest} to {self.highest}"


LOSS, FRACTION = Column(0, LARGEST_LOSS), Column(0, 1)
LABEL, COUNT = Column(0, 255, whole=True), Column(1, 2**31, whole=True)
CURVES_COLUMNS = {
    "epoch": COUNT,
    "train_loss": LOSS,
    "validation_loss": LOSS,
    "validation_accuracy": FRACTION,
}
CONFUSION_COLUMNS = {"actual": LABEL, "predicted": LABEL}
PER_CLASS_COLUMNS = {
    "class": LABEL,
    "precision": FRACTION,
    "recall": FRACTION,
    "f1": FRACTION,
    "support": COUNT,
}


def load_curves(path: Path = CURVES) -> Curves:
    """Read the learning curves.

    Raises:
        InputError: the file is missing or not what `parse_curves` takes.
    """
    return parse_curves(load_bytes(path), path)


def parse_curves(content: bytes, name: object) -> Curves:
    """Return the learning curves that a CSV file holds.

    Args:
        content: of the file.
        name: what a refusal calls it.

    Raises:
        InputError: a number is missing or out of range, or the epochs are not 1, 2, 3, ...
    """
    curves = Curves(*_columns(content, CURVES_COLUMNS, name))
    if (curves.epoch != np.arange(1, len(curves.epoch) + 1)).any():
        raise InputError(f"{name}: epoch: must be 1, 2, 3, ... from row to row")
    return curves


def kept_epoch(curves: Curves, keep: str) -> int:
    """Return the epoch whose weights are kept, by `train.keep`: the last or the first best one."""
    accuracy = curves.validation_accuracy
    return int(accuracy.argmax()) + 1 if keep == "best" else len(accuracy)


def parse_confusion(content: bytes, name: object) -> Confusion:
    """Return the labels and predictions that a CSV file holds; as `parse_curves`."""
    columns = _columns(content, CONFUSION_COLUMNS, name)
    return Confusion(*(column.astype(np.intp) for column in columns))


def parse_per_class(content: bytes, name: object) -> PerClass:
    """Return the figures of each class that a CSV file holds; as `parse_curves`."""
    table = PerClass(*_columns(content, PER_CLASS_COLUMNS, name))
    if (table.label != np.arange(len(table.label))).any():
        raise InputError(f"{name}: class: must be 0, 1, 2, ... from row to row")
    return table


def _columns(content: bytes, columns: Mapping[str, Column], name: object) -> list[Array]:
    """Return a table's columns, (rows,) float64 each, as checked by their schema."""
    try:
        header, *rows = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
    except (ValueError, csv.Error) as error:
        reason = "it is empty" if content == b"" else str(error).split("\n", 1)[0]
        raise InputError(f"{name}: not a readable CSV table ({reason})") from None
    if header != list(columns):
        raise InputError(f"{name}: the first line must be {','.join(columns)}")
    if not rows:
        raise InputError(f"{name}: no rows; must hold at least one")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise InputError(
                f"{name}: row {number}: must hold {len(columns)} values, not {len(row)}"
            )
    found: list[Array] = []
    for (title, column), texts in zip(columns.items(), zip(*rows, strict=True), strict=True):
        values = np.array([_number(text) for text in texts])
        if (wrong := ~column.allows(values)).any():
            first = int(wrong.argmax())
            raise InputError(
                f"{name}: row {first + 1}: {title}: {texts[first][:40]}: must be {column}"
            )
        found.append(values)
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
