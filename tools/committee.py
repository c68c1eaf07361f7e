"""Score committees of a study's networks on the test set: the mean of their probabilities.

As Ciresan, Meier, Gambardella and Schmidhuber: Better Digit Recognition with a Committee of Simple
Neural Nets (ICDAR 2011). `make study` keeps each network's probabilities for this.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from stages.pipeline import threads  # noqa: F401  (before NumPy)

# isort: split
import numpy as np

from stages.core import Array
from stages.pipeline.command import InputError, Parser, run
from stages.pipeline.datasets import load_description, load_raw
from stages.pipeline.files import load_array
from tools.seed import probabilities_file
from tools.study import STUDIES, Study, dataset_of, load_studies, require_dataset

MOST_NETWORKS = 7  # of which there are 127 committees


class Committees(NamedTuple):
    """How well committees of one size do.

    Attributes:
        networks: in each.
        accuracy: the mean of all such committees' accuracies.
        standard_error: of this mean, from sampling the test images.
    """

    networks: int
    accuracy: float
    standard_error: float


def main() -> None:
    """Print a table of the committees of a study's first seeds."""
    parser = Parser(prog="python -m tools.committee", description=__doc__)
    parser.add_argument("recipe", help=f"the study's name in {STUDIES}")
    name = parser.parse_args().recipe
    studies = load_studies()
    if name not in studies:
        raise InputError(f"{STUDIES}: {name!r}: no such study: must be one of {', '.join(studies)}")
    require_dataset(dataset_of(studies[name].parameters), f"{STUDIES}: {name}")
    _, labels = load_raw("test")
    shape = len(labels), len(load_description().classes)
    probabilities = load_probabilities(name, studies[name], labels, shape)
    print("| networks | test accuracy | standard error |\n|--:|--:|--:|")
    for networks, accuracy, error in committees(probabilities, labels):
        print(f"| {networks} | {accuracy:.2%} | {error:.2%} |")


def load_probabilities(name: str, study: Study, labels: Array, shape: tuple[int, int]) -> Array:
    """Return the probabilities of a study's first networks, (networks, samples, classes) float64.

    Args:
        name: of the study, for a refusal to name.
        study: the networks' results.
        labels: (samples,) of the test set.
        shape: (samples, classes) of a network's probabilities.

    Raises:
        InputError: those of a seed are missing, or are not those that were scored.
    """
    found = []
    for result in study.results[:MOST_NETWORKS]:
        path = probabilities_file(study.parameters, result.seed)
        recipe, _, grid = name.partition(" ")
        command = f"make study RECIPE={recipe}" + f" SET='{grid}'" * bool(grid)
        here = f'"{command} SEEDS={result.seed} HERE=1" trains it here'
        if not path.exists():
            raise InputError(f"{path}: no such file: seed {result.seed} is another clone's; {here}")
        probabilities = load_array(path)
        if not (
            probabilities.dtype == np.float64
            and probabilities.shape == shape
            and round(float((probabilities.argmax(axis=1) == labels).mean()), 6)
            == result.test_accuracy
        ):
            raise InputError(
                f"{path}: must hold the probabilities that were scored: remove it; {here}"
            )
        found.append(probabilities)
    return np.stack(found)


def committees(probabilities: Array, labels: Array) -> Iterator[Committees]:
    """Yield how committees of 1, 2, ... networks do, the mean over all committees of each size.

    Args:
        probabilities: (networks, samples, classes) float64.
        labels: (samples,).
    """
    for size in range(1, len(probabilities) + 1):
        chosen = [list(members) for members in combinations(range(len(probabilities)), size)]
        correct = np.zeros(len(labels))
        for members in chosen:
            mean = probabilities[members].mean(axis=0)
            correct += mean.argmax(axis=1) == labels
        correct /= len(chosen)
        yield Committees(size, correct.mean(), correct.std(ddof=1) / len(labels) ** 0.5)


if __name__ == "__main__":
    run(main)
