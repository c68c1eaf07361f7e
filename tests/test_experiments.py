"""The table of experiments, from what `dvc exp show --json` prints."""

from __future__ import annotations

from typing import Any

import pytest

from tools.experiments import WIDTH, rows, table

PARAMETERS = {"train": {f"parameter_{n}": n for n in range(40)} | {"epochs": 60}}


def revision(accuracy: float | None, error: str | None = None, **changed: int) -> dict[str, Any]:
    parameters = {"train": PARAMETERS["train"] | changed}
    error_rate = round(1 - (accuracy or 0), 6)
    metrics = {
        part: {"accuracy": accuracy, "error_rate": error_rate, "loss": 0.1}
        for part in ("train", "validation", "test")
    }
    data = {
        "params": {"params.yaml": {"data": parameters}},
        "metrics": {"reports/metrics.json": {"data": metrics}} if accuracy else {},
    }
    return {"rev": "0123456789", "name": None, "data": data, "error": error}


def experiment(name: str | None, state: str | None, found: dict[str, Any]) -> dict[str, Any]:
    executor = {"state": state} if state else None
    return {"name": name, "executor": executor, "revs": [found]}


def listed(*experiments: dict[str, Any]) -> list[str]:
    commit = revision(0.98) | {"experiments": list(experiments)}
    workspace = revision(0.98) | {"experiments": None}
    return table(rows([workspace, commit])).splitlines()


def test_the_best_come_first_and_what_has_no_result_of_its_own_last() -> None:
    lines = listed(
        experiment("running", "running", revision(0.999, epochs=1)),
        experiment("worse", None, revision(0.97, epochs=2)),
        experiment("broken", "failed", revision(None, "no such thing")),
        experiment("better", "success", revision(0.99, epochs=30)),
        experiment(None, None, revision(0.975, epochs=5)),
    )
    assert [line.split()[0] for line in lines] == [
        "experiment", "better", "(this", "0123456", "worse", "running", "broken",
    ]  # fmt: skip
    assert lines[1].split() == ["better", "99.00%", "99.00%", "train.epochs=30"]
    assert lines[5].split() == ["running", "running", "train.epochs=1"]


@pytest.mark.parametrize("metrics", [None, 3, {}, {"validation": 1, "test": 1}])
def test_metrics_of_another_shape_are_no_result(metrics: object) -> None:
    found = revision(0.97)
    found["data"]["metrics"]["reports/metrics.json"]["data"] = metrics
    (_, _, line) = listed(experiment("odd", None, found))
    assert line.split() == ["odd", "no", "result"]


def test_many_changes_fit_a_line() -> None:
    every = {name: value + 1 for name, value in PARAMETERS["train"].items()}
    (_, _, line) = listed(experiment("recipe", None, revision(0.97, **every)))
    assert len(line) <= WIDTH
    assert line.split()[3] == "train.parameter_0=1"
    shown = line.count("=")
    assert line.endswith(f"and {len(every) - shown} more")
