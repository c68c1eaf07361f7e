"""`make committee`: networks of a study that decide together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_study import Outcome, studied, studies

from stages.core import Array
from stages.pipeline.command import InputError
from stages.pipeline.datasets import DESCRIPTION
from tools import committee
from tools.seed import probabilities_file


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return a project in which three seeds have been studied, and how that went."""
    project = tmp_path_factory.mktemp("committee")
    return project, studied(project, seeds=3)


@pytest.fixture
def project(first: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project = shutil.copytree(first[0], tmp_path / "project")
    monkeypatch.chdir(project)
    return project


def refusal(monkeypatch: pytest.MonkeyPatch, recipe: str) -> str:
    monkeypatch.setattr("sys.argv", ["committee", recipe])
    with pytest.raises(InputError) as caught:
        committee.main()
    return str(caught.value)


def test_a_worked_example() -> None:
    # Networks 1 and 2 err once each, on other images, and are sure of what they know.
    networks: Array = np.array(
        [[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]],
         [[0.4, 0.6], [0.1, 0.9], [0.1, 0.9], [0.6, 0.4]]]
    )  # fmt: skip
    one, two = committee.committees(networks, np.array([0, 1, 1, 0]))
    assert (one.networks, two.networks) == (1, 2)
    assert one.accuracy == 0.75  # right: 1/2, 1/2, 1, 1
    assert one.standard_error == pytest.approx((4 * 0.0625 / 3) ** 0.5 / 2)
    assert (two.accuracy, two.standard_error) == (1.0, 0.0)


def test_a_study_is_followed_by_its_committees(
    first: tuple[Path, Outcome], project: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert first[1].trained == [1, 2, 3]
    monkeypatch.setattr("sys.argv", ["committee", "quick"])
    committee.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| 1", "| 2", "| 3"]
    accuracies = [result["test_accuracy"] for result in studies(project)["quick"]["results"]]
    assert rows[0][1] == f"{np.mean(accuracies):.2%}"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda array: np.roll(array, 1, axis=0), "must hold the probabilities that were scored"),
        (lambda array: array.astype(np.float32), "must hold the probabilities that were scored"),
        (lambda array: array[:-1], "must hold the probabilities that were scored"),
        (
            lambda array: np.pad(array, ((0, 0), (0, 1))),
            "must hold the probabilities that were scored",
        ),
        (None, "no such file: seed 2 is another clone's"),
    ],
)
def test_probabilities_of_something_else_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, change: object, line: str
) -> None:
    path = probabilities_file(studies(project)["quick"]["parameters"], 2)
    if callable(change):
        np.save(path, change(np.load(path)))
    else:
        path.unlink()
    said = refusal(monkeypatch, "quick")
    assert said.startswith(f"{path}: {line}")
    assert said.endswith('"make study RECIPE=quick SEEDS=2 HERE=1" trains it here')


def test_labels_of_another_data_set_are_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / DESCRIPTION
    path.write_text(path.read_text().replace('"mnist"', '"clothes"'))
    assert refusal(monkeypatch, "quick") == (
        "reports/studies.json: quick: needs mnist, but data/raw holds clothes: set fetch.dataset "
        "in params.yaml to it, then try again"
    )


def test_a_study_that_there_is_not(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, "none") == (
        "reports/studies.json: 'none': no such study: must be one of quick"
    )
