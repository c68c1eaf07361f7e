"""Whatever is read is validated where it is read: the files between the stages, fault by fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.pipeline.command import InputError
from stages.pipeline.datasets import (
    DESCRIPTION,
    MNIST,
    Description,
    load_description,
    save_description,
)
from stages.pipeline.files import save_arrays
from stages.pipeline.model_file import load_model
from stages.pipeline.schemas import (
    Curves,
    Scored,
    kept_epoch,
    load_scored,
    parse_confusion,
    parse_curves,
    parse_metrics,
    parse_per_class,
    save_scored,
)
from tests.checks.small_project import images_and_labels

IMAGES, LABELS = images_and_labels(20, seed=1)
GOOD = {"name": "mnist", "shape": [28, 28], "classes": list("0123456789")}
PROBABILITIES = np.eye(10, dtype=np.float32)[LABELS]
SCORED = Scored(IMAGES, LABELS, LABELS, PROBABILITIES)


def changed(array: np.ndarray[Any, Any], place: Any, value: Any) -> np.ndarray[Any, Any]:
    copy = array.copy()
    copy[place] = value
    return copy


@pytest.fixture(autouse=True)
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_description(MNIST)


def test_a_description_comes_back_as_it_was_written() -> None:
    wide = Description("signs", (20, 32), ("give way", "stop", "no entry"))
    save_description(wide)
    assert load_description() == wide
    assert wide.pixels == 640


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"shape": [28]}, "shape: "),
        ({"shape": [28, 65]}, "shape.1: "),
        ({"shape": [28, "28"]}, "shape.1: "),
        ({"classes": ["one"]}, "classes: "),
        ({"classes": ["one", "one"]}, "classes: .* one is given twice"),
        ({"classes": ["one", "two\nlines"]}, "classes.1: .*printable"),
        ({"classes": ["one", ""]}, "classes.1: "),
        ({"name": 5}, "name: "),
        ({"more": 5}, "more: "),
    ],
)
def test_a_description_that_is_none_is_refused(changes: dict[str, object], complaint: str) -> None:
    DESCRIPTION.write_text(json.dumps(GOOD | changes))
    with pytest.raises(InputError, match=f"^{DESCRIPTION}: damaged: {complaint}"):
        load_description()


def test_a_scored_set_comes_back_as_it_was_written(tmp_path: Path) -> None:
    save_scored(SCORED, tmp_path / "scored.npz")
    for name, array in load_scored(tmp_path / "scored.npz")._asdict().items():
        np.testing.assert_array_equal(array, getattr(SCORED, name), strict=True)


@pytest.mark.parametrize(
    ("name", "array", "complaint"),
    [
        ("probabilities", PROBABILITIES[0], r"float32 of shape \(10,\); must be float32 of shape"),
        ("probabilities", PROBABILITIES[:, :9], r"must be float32 of shape \(20, 10\)"),
        ("probabilities", PROBABILITIES.astype(np.float64), "float64 .* must be float32"),
        ("probabilities", changed(PROBABILITIES, 0, np.nan), "not a number from 0 to 1"),
        ("probabilities", changed(PROBABILITIES, (0, 1), -1), "not a number from 0 to 1"),
        ("probabilities", np.full_like(PROBABILITIES, 0.2), "do not add up to 1"),
        ("probabilities", PROBABILITIES[::-1].copy(), "not the most probable class"),
        ("predictions", LABELS.astype(np.int64), "int64 .* must be uint8"),
        ("predictions", LABELS[:-1], r"must be uint8 of shape \(20,\)"),
        ("predictions", changed(LABELS, 3, 10), "a prediction is 10; must be from 0 to 9"),
        ("labels", changed(LABELS, 3, 10), "a label is 10; must be from 0 to 9"),
        ("labels", LABELS[:-1], r"must be uint8 of shape \(20,\)"),
        ("images", IMAGES.reshape(20, -1), r"must be uint8 of shape \(n, 28, 28\)"),
        ("images", IMAGES / np.float32(255), "images are float32"),
        ("extra", LABELS, "must hold images, labels, predictions, probabilities"),
    ],
)
def test_a_scored_set_that_is_none_is_refused(
    tmp_path: Path, name: str, array: Any, complaint: str
) -> None:
    path = tmp_path / "scored.npz"
    save_arrays(path, SCORED._asdict() | {name: array})
    with pytest.raises(InputError, match=rf"^{path}: .*{complaint}"):
        load_scored(path)


@pytest.mark.parametrize(
    ("units", "W1", "complaint"),
    [
        (0, None, r"W1 has shape \(784, 0\) and b1 \(0,\); must be \(784, 1\) and \(1,\)"),
        (3, np.ones(784, np.float32), r"W1 has shape \(784,\) .* must be \(784, 3\) and \(3,\)"),
        (3, np.full((784, 3), np.nan, np.float32), "W1 has values that are not finite"),
    ],
)
def test_a_model_without_units_or_of_another_rank_or_not_finite_is_refused(
    tmp_path: Path, units: int, W1: Any, complaint: str
) -> None:
    shapes = {"W1": (784, units), "b1": (units,), "W2": (units, 10), "b2": (10,)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_arrays(tmp_path / "model.npz", arrays if W1 is None else arrays | {"W1": W1})
    with pytest.raises(InputError, match=complaint):
        load_model(tmp_path / "model.npz", inputs=784, classes=10)


HEADER = "epoch,train_loss,validation_loss,validation_accuracy\n"


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ("", "no rows; must hold at least one"),
        ("1,1e300,0.2,0.9\n", "row 1: train_loss: 1e300: must be a number from 0 to 10000000000"),
        ("1,0.3,-1e40,0.9\n", "row 1: validation_loss: -1e40: must be a number"),
        ("1,nan,0.2,0.9\n", "row 1: train_loss: nan: must be"),
        ("1,0.3,0.2,0.9\n2,0.3,,0.9\n", "row 2: validation_loss: : must be"),
        ("1,0.3,0.2,1.5\n", "row 1: validation_accuracy: 1.5: must be a number from 0 to 1"),
        ("1,0.3,0.2\n", "row 1: must hold 4 values, not 3"),
        ("1.5,0.3,0.2,0.9\n", "row 1: epoch: 1.5: must be a whole number from 1 to"),
        ("2,0.3,0.2,0.9\n", "epoch: must be 1, 2, 3"),
        ('1,0.3,0.2,"0.9\n', "not a readable CSV table"),
    ],
)
def test_curves_that_are_none_are_refused_with_row_and_column(rows: str, complaint: str) -> None:
    with pytest.raises(InputError, match=f"^curves.csv: .*{complaint}"):
        parse_curves((HEADER + rows).encode(), "curves.csv")


@pytest.mark.parametrize(
    ("parse", "content", "complaint"),
    [
        (parse_curves, b"", "it is empty"),
        (parse_curves, b"\xff\xfe", "not a readable CSV table"),
        (parse_curves, b"epoch,loss\n1,0.3\n", f"the first line must be {HEADER.strip()}"),
        (parse_confusion, b"actual,predicted\n3,-1\n", "row 1: predicted: -1: must be a whole"),
        (
            parse_per_class,
            b"class,precision,recall,f1,support\n1,0,0,0,9\n",
            "class: must be 0, 1, 2",
        ),
        (parse_metrics, b'{"train": {"accuracy": 2}}', "damaged: train.accuracy: "),
    ],
)
def test_tables_and_metrics_that_are_none_are_refused(
    parse: Any, content: bytes, complaint: str
) -> None:
    with pytest.raises(InputError, match=f"^a file: .*{complaint}"):
        parse(content, "a file")


def test_the_epoch_kept_is_the_last_or_the_first_of_the_best() -> None:
    accuracy = np.array([0.5, 0.75, 0.75, 0.25])
    curves = Curves(np.arange(1, 5), accuracy, accuracy, accuracy)
    assert kept_epoch(curves, "best") == 2
    assert kept_epoch(curves, "last") == 4
