"""The confusion matrix and the figures of each class against a slow count by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.core import Array
from stages.core.metrics import class_metrics, confusion_matrix

CLASSES = 5

pairs = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=60
)


def arrays(cases: list[tuple[int, int]]) -> tuple[Array, Array]:
    labels, predictions = np.array(cases).T
    return labels.astype(np.uint8), predictions


@given(pairs)
def test_confusion_matrix_counts_each_pair(cases: list[tuple[int, int]]) -> None:
    confusion = confusion_matrix(*arrays(cases), CLASSES)
    expected = [[cases.count((t, p)) for p in range(CLASSES)] for t in range(CLASSES)]
    assert confusion.tolist() == expected


@given(pairs)
def test_class_metrics_agree_with_a_count_by_hand(cases: list[tuple[int, int]]) -> None:
    found = class_metrics(confusion_matrix(*arrays(cases), CLASSES))
    for label in range(CLASSES):
        hits = sum(1 for true, predicted in cases if true == predicted == label)
        predicted_so = sum(1 for _, predicted in cases if predicted == label)
        actually_so = sum(1 for true, _ in cases if true == label)
        precision = hits / predicted_so if predicted_so else 0.0
        recall = hits / actually_so if actually_so else 0.0
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        assert found.support[label] == actually_so
        assert found.precision[label] == precision
        assert found.recall[label] == recall
        assert np.isclose(found.f1[label], f1, rtol=1e-15)


def test_a_worked_example_with_a_class_never_predicted_and_one_that_never_occurs() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2], np.uint8)
    predictions = np.array([0, 0, 1, 1, 3, 0])
    confusion = confusion_matrix(labels, predictions, 4)
    assert confusion.tolist() == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    found = class_metrics(confusion)
    assert found.precision.tolist() == [2 / 3, 1 / 2, 0.0, 0.0]
    assert found.recall.tolist() == [2 / 3, 1 / 2, 0.0, 0.0]
    assert found.f1.tolist() == [2 / 3, 1 / 2, 0.0, 0.0]
    assert found.support.tolist() == [3, 2, 1, 0]


def test_many_labels_of_the_smallest_type_do_not_overflow() -> None:
    labels = np.full(70_000, 9, np.uint8)
    confusion = confusion_matrix(labels, labels, 10)
    assert confusion[9, 9] == 70_000
    assert confusion.sum() == 70_000


def test_perfect_predictions_score_1_in_every_class() -> None:
    labels = np.arange(10, dtype=np.uint8).repeat(3)
    found = class_metrics(confusion_matrix(labels, labels.astype(np.intp), 10))
    for figures in (found.precision, found.recall, found.f1):
        assert figures.tolist() == [1.0] * 10
    assert found.support.tolist() == [3] * 10
