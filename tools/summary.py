"""Say what the run in the workspace came to, and where its figures are: how `make repro` ends."""

from __future__ import annotations

from stages.pipeline.command import Parser, run
from stages.pipeline.files import load_bytes
from stages.pipeline.schemas import METRICS, parse_metrics


def main() -> None:
    """Print two lines.

    Raises:
        InputError: the metrics are missing or damaged.
    """
    Parser(prog="python -m tools.summary", description=__doc__).parse_args()
    metrics = parse_metrics(load_bytes(METRICS), METRICS)
    print(
        f"test accuracy {metrics.test.accuracy:.2%} (validation {metrics.validation.accuracy:.2%}, "
        f"train {metrics.train.accuracy:.2%})"
    )
    print("figures: reports/prediction_grid.png and others beside it; compare runs: make report")


if __name__ == "__main__":
    run(main)
