"""Train a recipe of recipes.yaml with seeds 1, 2, ... and score each network on the test set, once.

Every finished seed is kept in reports/studies.json at once, and is not trained again as long as
the recipe's parameters are the same; one that is interrupted goes on from its checkpoint. The code
of finished seeds is not compared: after a change of it that changes results, remove the recipe from
the file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated, Any

from stages.pipeline import threads  # noqa: F401  (before NumPy)

# isort: split
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stages.core.data import LabelledImages
from stages.core.prediction import quantise, score
from stages.pipeline.command import InputError, Parser, run
from stages.pipeline.datasets import MNIST, load_description, load_processed, load_raw
from stages.pipeline.files import atomic_write, check_regular, save_json
from stages.pipeline.params import PARAMS, Params
from stages.plots import charts, drawing, png
from stages.train import train
from tools.recipe import RECIPES, load_recipe

STUDIES = Path("reports/studies.json")
FIGURE = Path("reports/studies.png")
CHECKPOINT = Path(".dvc/tmp/study.checkpoint.npz")  # beside the one of the train stage
MOST_SEEDS = 1000


class Result(BaseModel):
    """What one seed came to: accuracies as parts of 1, the mean loss, and seconds of training.

    How long a training took that was interrupted is not known.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    seed: int
    validation_accuracy: Annotated[float, Field(ge=0, le=1)]
    test_accuracy: Annotated[float, Field(ge=0, le=1)]
    test_loss: Annotated[float, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)] | None


def _checked(parameters: dict[str, Any]) -> dict[str, Any]:
    """Check what is read of the parameters; the rest is only compared."""
    match parameters:
        case {"train": {"hidden_sizes": [*sizes]}} if all(type(size) is int for size in sizes):
            return parameters
    raise ValueError("must hold train.hidden_sizes, a list of whole numbers")


class Study(BaseModel):
    """A recipe's parameters, all but the seed, and its results by ascending seed."""

    model_config = ConfigDict(extra="forbid")

    parameters: Annotated[dict[str, Any], AfterValidator(_checked)]
    results: Annotated[list[Result], Field(min_length=1)]

    @property
    def test_accuracies(self) -> list[float]:
        """The accuracy of each seed's network."""
        return [result.test_accuracy for result in self.results]


Studies = dict[str, Study]


def main() -> None:
    """Train the seeds that are missing and write both reports and the table."""
    parser = Parser(prog="python -m tools.study", description=__doc__)
    parser.add_argument("recipe", help="its name in recipes.yaml")
    parser.add_argument("seeds", help="how many")
    arguments = parser.parse_args()
    if not (arguments.seeds.isdecimal() and 1 <= int(arguments.seeds) <= MOST_SEEDS):
        raise InputError(f"seeds: {arguments.seeds}: must be a whole number from 1 to {MOST_SEEDS}")
    studies = load_studies()
    try:
        study(arguments.recipe, load_recipe(arguments.recipe), int(arguments.seeds), studies)
    finally:  # after Ctrl-C, too
        if studies:
            accuracies = {name: entry.test_accuracies for name, entry in studies.items()}
            with atomic_write(FIGURE) as file:
                file.write(png.encode(drawing.render(charts.studies(accuracies))))
    print(table(studies))


def load_studies() -> Studies:
    """Read the results so far.

    Raises:
        InputError: the file is damaged.
    """
    try:
        check_regular(STUDIES)
        return TypeAdapter(Studies).validate_json(STUDIES.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise InputError(
            f"{STUDIES}: damaged: {': '.join(filter(None, [place, problem['msg']]))}; "
            f"'git restore {STUDIES}' brings the committed one back"
        ) from None


def study(name: str, params: Params, seeds: int, studies: Studies) -> None:
    """Train and score a recipe with the seeds up to `seeds` that `studies` lacks, and save each."""
    parameters = studied_parameters(params)
    known, results = studies.get(name), []
    if known and known.parameters == parameters:
        results = known.results
    elif known:
        print(f"{name}: new parameters: its {len(known.results)} old results will go")
    done = {result.seed for result in results}
    missing = [seed for seed in range(1, seeds + 1) if seed not in done]
    if not missing:
        return
    if (fetched := load_description().name) != described(params):
        raise InputError(
            f"{RECIPES}: {name}: trains on {described(params)}, but data/raw holds {fetched}: set "
            f"fetch.dataset in {PARAMS} to the recipe's, then try again"
        )
    sets, test_set = (load_processed("train"), load_processed("validation")), load_raw("test")
    for seed in missing:
        print(f"{name}: seed {seed} of {seeds}", flush=True)
        results = [*results, trained_and_scored(name, params, seed, *sets, test_set)]
        studies[name] = Study(parameters=parameters, results=results)
        save_json(STUDIES, {name: entry.model_dump() for name, entry in studies.items()})
        CHECKPOINT.unlink(missing_ok=True)


def described(params: Params) -> str:
    """Return the name of the data set that the parameters choose."""
    fetch = params.fetch
    return fetch.files.name if fetch.dataset == "files" else fetch.dataset


def studied_parameters(params: Params) -> dict[str, Any]:
    """Return the parameters that a study's results depend on; MNIST goes without saying."""
    sections: dict[str, Any] = {"preprocess": True, "train": True}
    if params.fetch.dataset == "files":
        sections["fetch"] = {"dataset", "files"}
    elif params.fetch.dataset != "mnist":
        sections["fetch"] = {"dataset"}
    return params.model_dump(include=sections, exclude={"train": {"seed"}})


def trained_and_scored(
    name: str,
    params: Params,
    seed: int,
    training_set: LabelledImages,
    validation_set: LabelledImages,
    test_set: LabelledImages,
) -> Result:
    """Train a recipe with a seed and score the network that is kept.

    Raises:
        InputError: the training diverged.
    """
    start = time.perf_counter()
    seeded = params.train.model_copy(update={"seed": seed})
    trained = train(seeded, training_set, validation_set, CHECKPOINT, f"{RECIPES}: {name}: train")
    seconds = time.perf_counter() - start
    parameters, arithmetic = quantise(trained.parameters)
    validation, test = (score(parameters, *labelled, arithmetic)
                        for labelled in (validation_set, test_set))  # fmt: skip
    return Result(
        seed=seed,
        validation_accuracy=round(validation.accuracy, 6),
        test_accuracy=round(test.accuracy, 6),
        test_loss=round(test.loss, 6),
        seconds=None if trained.resumed else round(seconds, 1),
    )


def table(studies: Studies) -> str:
    """Return the studies as a table in Markdown; after ± stands the sample's standard deviation.

    The seconds are the median of the seeds'.
    """
    lines = [
        "| recipe | network | parameters | test accuracy | best | worst | seeds | seconds |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, entry in studies.items():
        sizes = _sizes(entry)
        parameters = sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes or []))
        accuracies = entry.test_accuracies
        seconds = [result.seconds for result in entry.results if result.seconds is not None]
        cells = [
            name,
            "-".join(map(str, sizes)) if sizes else "?",
            f"{parameters:,}" if sizes else "?",
            f"{mean(accuracies):.2%}{_deviation(accuracies)}",
            f"{max(accuracies):.2%}",
            f"{min(accuracies):.2%}",
            f"{len(accuracies)}",
            f"{median(seconds):.0f}" if seconds else "?",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _sizes(entry: Study) -> list[int] | None:
    """Return the units of a study's layers, if its data set is a known one or the one at hand."""
    description = MNIST  # or Fashion-MNIST, of the same shape with as many classes
    if files := entry.parameters.get("fetch", {}).get("files"):
        try:
            description = load_description()
        except InputError:
            return None
        if description.name != files["name"]:
            return None
    hidden = entry.parameters["train"]["hidden_sizes"]
    return [description.pixels, *hidden, len(description.classes)]


def _deviation(values: Sequence[float]) -> str:
    """Return ` ± ` and the standard deviation; one value has none."""
    return f" ± {stdev(values):.2%}" if len(values) > 1 else ""


if __name__ == "__main__":
    run(main)
