"""Say what the run in the workspace came to, and where its pictures are: how `make repro` ends."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from stages.pipeline.command import InputError, run

METRICS = Path("reports/metrics.json")


class Figures(BaseModel):
    """What is told of a set's figures."""

    accuracy: float


class Metrics(BaseModel):
    """What is told of the metrics."""

    train: Figures
    validation: Figures
    test: Figures


def main() -> None:
    """Print two lines.

    Raises:
        InputError: the metrics are missing or damaged.
    """
    try:
        metrics = Metrics.model_validate_json(METRICS.read_bytes())
    except ValidationError:
        raise InputError(f"{METRICS}: damaged; 'dvc repro' makes it anew") from None
    print(
        f"test accuracy {metrics.test.accuracy:.2%} (validation {metrics.validation.accuracy:.2%}, "
        f"train {metrics.train.accuracy:.2%})"
    )
    print("pictures: reports/prediction_grid.png and others beside it; compare runs: make report")


if __name__ == "__main__":
    run(main)
