"""Train a recipe of recipes.yaml with seeds 1, 2, ... and score each network on the test set, once.

With --set every combination of some parameters' values is trained, each a study of its own. With
--cluster the seeds are shared out to the workers of a Dask cluster, one per worker at a time.

Every finished seed is kept in reports/studies.json at once, and is not trained again as long as
the recipe's parameters are the same, but with --here those that another clone has trained are; one
that is interrupted resumes from its checkpoint. How long each took is no result and stands in a
file of its own, reports/study_times.json. The code of finished seeds is not compared: after a
change of it that changes results, remove the recipe from the file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Annotated, Any, TypeVar

from stages.pipeline import threads  # noqa: F401  (before NumPy)

# isort: split
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stages.pipeline.checkpoint import digest_of
from stages.pipeline.command import InputError, Parser, run, whole_number
from stages.pipeline.datasets import MNIST, load_description, load_raw
from stages.pipeline.files import atomic_write, check_regular, damaged, save_array, save_json
from stages.pipeline.params import PARAMS, Params
from stages.plots import charts, drawing, png
from tools.grid import combinations
from tools.recipe import RECIPES, load_recipe
from tools.seed import Outcome, Result, Task, load_sets, probabilities_file, trained_and_scored

STUDIES = Path("reports/studies.json")
TIMES = Path("reports/study_times.json")
FIGURE = Path("reports/studies.png")
CHECKPOINT = Path(".dvc/tmp/study.checkpoint.npz")  # beside the one of the train stage
MOST_SEEDS = 1000

T = TypeVar("T")


def _checked(parameters: dict[str, Any]) -> dict[str, Any]:
    """Check what is read of the parameters; the rest is only compared."""
    match parameters:
        case {"train": {"hidden_sizes": [*sizes]}} if all(type(size) is int for size in sizes):
            pass
        case _:
            raise ValueError("must hold train.hidden_sizes, a list of whole numbers")
    match parameters.get("fetch", {"dataset": MNIST.name}):
        case {"files": files}:
            if isinstance(files, dict) and isinstance(files.get("name"), str):
                return parameters
        case {"dataset": str()}:
            return parameters
    raise ValueError("must hold in fetch the name of a data set, if anything")


def _ascending(results: list[Result]) -> list[Result]:
    seeds = [result.seed for result in results]
    if seeds != sorted(set(seeds)):
        raise ValueError("must hold each seed once, ascending")
    return results


class Study(BaseModel):
    """A recipe's parameters, all but the seed, and its results by ascending seed."""

    model_config = ConfigDict(extra="forbid")

    parameters: Annotated[dict[str, Any], AfterValidator(_checked)]
    results: Annotated[list[Result], Field(min_length=1), AfterValidator(_ascending)]

    @property
    def test_accuracies(self) -> list[float]:
        """The accuracy of each seed's network."""
        return [result.test_accuracy for result in self.results]

    @property
    def chosen(self) -> dict[str, Any]:
        """The parameters that params.yaml held: all but the images' digest."""
        return {key: value for key, value in self.parameters.items() if key != "images"}


Studies = dict[str, Study]
Times = dict[str, dict[int, Annotated[float, Field(ge=0, allow_inf_nan=False)]]]
"""Seconds of training by recipe and seed; those of an interrupted training are not known."""


def main() -> None:
    """Train the seeds that are missing and write the reports and the table."""
    parser = Parser(prog="python -m tools.study", description=__doc__)
    parser.add_argument("recipe", help="its name in recipes.yaml")
    parser.add_argument("seeds", help="how many")
    parser.add_argument("--set", default="", help="such as 'train.epochs=30,60 train.momentum=0.9'")
    parser.add_argument("--cluster", default="", help="local:2, or such as tcp://host:8786")
    parser.add_argument("--here", action="store_true", help="seeds of other clones, too")
    arguments = parser.parse_args()
    seeds = whole_number("SEEDS", arguments.seeds, MOST_SEEDS)
    records = Records(load_studies(), load_times())
    recipe = load_recipe(arguments.recipe)
    plan = combinations(arguments.recipe, recipe, arguments.set)
    dataset, images = dataset_of(studied_parameters(recipe)), None
    if recipe.fetch.dataset == "files":  # which may have changed under the same names
        require_dataset(dataset, f"{RECIPES}: {arguments.recipe}")
        images = digest_of([*load_raw("train"), *load_raw("test")])
    try:
        tasks = records.missing(plan, seeds, arguments.here, images)
        if tasks:
            require_dataset(dataset, f"{RECIPES}: {arguments.recipe}")
        if arguments.cluster:
            failures = train_on(arguments.cluster, tasks, records)
        else:
            failures = train_here(tasks, records)
    finally:  # after Ctrl-C, too
        records.draw()
    print(table(records.studies, records.times))
    if failures:
        raise InputError("; ".join(failures))


class Records:
    """What `STUDIES` and `TIMES` hold, kept up to date with every seed."""

    def __init__(self, studies: Studies, times: Times) -> None:
        self.studies = studies
        self.times = times
        self._order = list(studies)
        self._parameters: dict[str, dict[str, Any]] = {}

    def missing(
        self, plan: Mapping[str, Params], seeds: int, here: bool, images: str | None
    ) -> list[Task]:
        """Return what a plan still needs, and say what is left of earlier studies.

        Args:
            plan: the parameters of each study.
            seeds: how many of each.
            here: whether seeds without probabilities in this clone are needed, too.
            images: the digest of the user's own images; None for a data set that never changes.
        """
        self._order += [name for name in plan if name not in self._order]
        tasks = []
        for name, params in plan.items():
            parameters = self._parameters[name] = studied_parameters(params)
            if images:
                parameters["images"] = images
            known, done = self.studies.get(name), set[int]()
            if known and known.parameters == parameters:
                done = {
                    result.seed for result in known.results
                    if not here or probabilities_file(parameters, result.seed).exists()
                }  # fmt: skip
            elif known:
                print(f"{name}: new parameters: its {len(known.results)} old results will go")
            wanted = [seed for seed in range(1, seeds + 1) if seed not in done]
            if not wanted:
                print(f"{name}: nothing is left to train: {STUDIES} has {len(done)} seeds of it")
            for seed in wanted:
                seeded = params.train.model_copy(update={"seed": seed})
                tasks.append(Task(name, seeded, f"{RECIPES}: {name}: train"))
        return tasks

    def add(self, task: Task, outcome: Outcome) -> None:
        """Keep a result, and save all files.

        The order of the seeds and of the studies is the plan's, whatever finishes first.
        """
        result, seconds, probabilities = outcome
        parameters, known = self._parameters[task.name], self.studies.get(task.name)
        save_array(probabilities_file(parameters, result.seed), probabilities)
        results, times = [result], {} if seconds is None else {result.seed: seconds}
        if known and known.parameters == parameters:
            results += [other for other in known.results if other.seed != result.seed]
            times = self.times.get(task.name, {}) | times
        results.sort(key=lambda result: result.seed)
        self.studies[task.name] = Study(parameters=parameters, results=results)
        self.times[task.name] = dict(sorted(times.items()))
        # A time without a result does no harm, a result without its time is not trained again.
        save_json(TIMES, self._ordered(self.times))
        studies = {name: entry.model_dump() for name, entry in self.studies.items()}
        save_json(STUDIES, self._ordered(studies))

    def _ordered(self, by_name: Mapping[str, T]) -> dict[str, T]:
        return {name: by_name[name] for name in self._order if name in by_name}

    def draw(self) -> None:
        """Draw all studies, if there are any."""
        if self.studies:
            accuracies = {name: entry.test_accuracies for name, entry in self.studies.items()}
            with atomic_write(FIGURE) as file:
                file.write(png.encode(drawing.render(charts.studies(accuracies))))


def load_studies() -> Studies:
    """Read the results so far.

    Raises:
        InputError: the file is damaged.
    """
    return _load(STUDIES, TypeAdapter(Studies))


def load_times() -> Times:
    """Read how long the trainings took.

    Raises:
        InputError: the file is damaged.
    """
    return _load(TIMES, TypeAdapter(Times))


def _load(path: Path, schema: TypeAdapter[dict[str, T]]) -> dict[str, T]:
    try:
        check_regular(path)
        return schema.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise InputError(
            f"{damaged(path, error)}; 'git restore {path}' brings the committed one back"
        ) from None


def train_here(tasks: Sequence[Task], records: Records) -> list[str]:
    """Train one seed after another in this process; return why some failed, one line per reason."""
    failures = Failures()
    if tasks:
        sets = load_sets()
    for number, task in enumerate(tasks, start=1):
        print(f"{task} ({number} of {len(tasks)})", flush=True)
        try:
            outcome = trained_and_scored(task.params, task.section, sets, CHECKPOINT)
        except InputError as error:
            failures.add(task, str(error))
        else:
            records.add(task, outcome)
            CHECKPOINT.unlink(missing_ok=True)
    return failures.lines()


def train_on(cluster: str, tasks: Sequence[Task], records: Records) -> list[str]:
    """Train on a cluster; return why some seeds failed, one line per reason.

    Raises:
        InputError: Dask is not installed, or as for `tools.cluster.train`.
    """
    try:
        from tools.cluster import train  # only who asks for Dask needs it
    except ModuleNotFoundError as error:
        raise InputError(f"CLUSTER: {error}; 'make .venv/.dask' installs Dask") from None
    failures = Failures()
    if tasks:
        train(cluster, tasks, load_sets(), records.add, failures.add)
    return failures.lines()


class Failures:
    """The seeds that failed, by the reason."""

    def __init__(self) -> None:
        self._seeds = defaultdict[str, list[int]](list)

    def add(self, task: Task, reason: str) -> None:
        """Note that a task failed."""
        self._seeds[reason].append(task.params.seed)

    def lines(self) -> list[str]:
        """Return each reason with the seeds that failed for it."""
        return [
            f"{reason} (seed {', '.join(map(str, sorted(seeds)))})"
            for reason, seeds in self._seeds.items()
        ]


def dataset_of(parameters: Mapping[str, Any]) -> str:
    """Return the name of the data set that a study with these parameters trains on."""
    fetch = parameters.get("fetch", {"dataset": MNIST.name})
    name: str = fetch["files"]["name"] if "files" in fetch else fetch["dataset"]
    return name


def require_dataset(name: str, what: str) -> None:
    """Check which data set is at hand.

    Args:
        name: of the data set that is needed.
        what: needs it, for a refusal to name.

    Raises:
        InputError: data/raw holds another one, or none.
    """
    if (fetched := load_description().name) != name:
        raise InputError(
            f"{what}: needs {name}, but data/raw holds {fetched}: set fetch.dataset in {PARAMS} to "
            "it, then try again"
        )


def studied_parameters(params: Params) -> dict[str, Any]:
    """Return the parameters that a study's results depend on; MNIST goes without saying."""
    sections: dict[str, Any] = {"preprocess": True, "train": True}
    if params.fetch.dataset == "files":
        sections["fetch"] = {"dataset", "files"}
    elif params.fetch.dataset != "mnist":
        sections["fetch"] = {"dataset"}
    return params.model_dump(include=sections, exclude={"train": {"seed"}})


def table(studies: Studies, times: Times) -> str:
    """Return the studies as a table in Markdown; after ± stands the sample's standard deviation.

    The seconds are the median of the seeds', `?` where none is known.
    """
    lines = [
        "| recipe | network | parameters | test accuracy | best | worst | seeds | seconds |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, entry in studies.items():
        sizes = _sizes(entry)
        parameters = sum((inputs + 1) * outputs for inputs, outputs in pairwise(sizes or []))
        accuracies = entry.test_accuracies
        seconds = times.get(name, {}).values()
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
    if "files" in entry.parameters.get("fetch", {}):
        try:
            description = load_description()
        except InputError:
            return None
        if description.name != dataset_of(entry.parameters):
            return None
    hidden = entry.parameters["train"]["hidden_sizes"]
    return [description.pixels, *hidden, len(description.classes)]


def _deviation(values: Sequence[float]) -> str:
    """Return ` ± ` and the standard deviation; one value has none."""
    return f" ± {stdev(values):.2%}" if len(values) > 1 else ""


if __name__ == "__main__":
    run(main)
