"""Train a recipe with one seed and score the network that is kept on the test set, once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from stages.pipeline import threads  # noqa: F401  (before NumPy)

# isort: split
from pydantic import BaseModel, ConfigDict, Field

from stages.core import Array
from stages.core.data import LabelledImages
from stages.core.prediction import classify, quantise, score
from stages.pipeline.datasets import load_processed, load_raw
from stages.pipeline.interrupts import raise_lost_interrupt
from stages.pipeline.params import TrainParams
from stages.train import train

Sets = tuple[LabelledImages, LabelledImages, LabelledImages]
"""The training, the validation and the test set."""


class Task(NamedTuple):
    """A training that a study needs: the recipe's name, the parameters and their origin.

    The parameters hold the seed; the origin is the file and section, for a refusal to name.
    """

    name: str
    params: TrainParams
    section: str

    def __str__(self) -> str:
        return f"{self.name}: seed {self.params.seed}"


class Result(BaseModel):
    """What one seed came to: accuracies as parts of 1, and the mean loss."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    seed: int
    validation_accuracy: Annotated[float, Field(ge=0, le=1)]
    test_accuracy: Annotated[float, Field(ge=0, le=1)]
    test_loss: Annotated[float, Field(ge=0)]


class Outcome(NamedTuple):
    """What the training of a seed gave.

    Attributes:
        result: for the study's report.
        seconds: of training, None if a checkpoint held its beginning.
        probabilities: (samples, classes) float64, of the test images.
    """

    result: Result
    seconds: float | None
    probabilities: Array


def probabilities_file(parameters: Mapping[str, Any], seed: int) -> Path:
    """Return where a study with these parameters keeps a seed's probabilities, for committees."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:16]
    return Path(f".dvc/tmp/study.{digest}.{seed}.npy")


def load_sets() -> Sets:
    """Read the images that a study needs.

    Raises:
        InputError: a file is missing or damaged.
    """
    return load_processed("train"), load_processed("validation"), load_raw("test")


def trained_and_scored(
    params: TrainParams,
    section: str,
    sets: Sets,
    checkpoint: Path,
    check: Callable[[], None] = raise_lost_interrupt,
) -> Outcome:
    """Train a recipe and score the network that is kept.

    Args:
        params: how to train, the seed included.
        section: the file and section of the parameters, for a refusal to name.
        sets: the images.
        checkpoint: as for `stages.train.train`; it stays for the caller to remove.
        check: called after every epoch; what it raises ends the training.

    Raises:
        InputError: the training diverged.
    """
    training_set, validation_set, test_set = sets
    start = time.perf_counter()
    trained = train(params, training_set, validation_set, checkpoint, section, check=check)
    seconds = round(time.perf_counter() - start, 1)
    parameters, arithmetic = quantise(trained.parameters)
    validation, test = (score(parameters, *labelled, arithmetic)
                        for labelled in (validation_set, test_set))  # fmt: skip
    result = Result(
        seed=params.seed,
        validation_accuracy=round(validation.accuracy, 6),
        test_accuracy=round(test.accuracy, 6),
        test_loss=round(test.loss, 6),
    )
    _, probabilities = classify(parameters, test_set[0])
    return Outcome(result, None if trained.resumed else seconds, probabilities)
