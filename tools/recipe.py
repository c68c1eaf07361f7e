"""Run a recipe of recipes.yaml as a DVC experiment of its name.

A run replaces the experiment of that name on the same commit, but only once it has succeeded.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem
from dvc.cli import main as dvc
from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.pipeline.command import InputError, Parser, run
from stages.pipeline.params import PARAMS, Params, load_params, read_document, validated

RECIPES = Path("recipes.yaml")
DEFAULT = "default"  # alone may be empty
SET_ASIDE = "set-aside-by-make-recipe"  # how nobody calls an experiment


def main() -> None:
    """Run the recipe that the command line names."""
    parser = Parser(prog="python -m tools.recipe", description=__doc__)
    parser.add_argument("recipe", help=f"its name in {RECIPES}")
    name = parser.parse_args().recipe
    arguments = settings(load_params(), load_recipe(name))
    try:
        sys.exit(experiment(name, arguments))
    except DvcException as error:
        raise InputError(" ".join(str(error).split())) from None


def load_recipe(name: str) -> Params:
    """Return params.yaml with the named recipe as its `train` section, and its data set if any.

    Raises:
        InputError: there is no such recipe, it is damaged, or it is the empty `default`, which
            stands for the committed params.yaml, and the file has changed since.
    """
    recipes = read_document(RECIPES)
    if not isinstance(recipes, dict):
        raise InputError(f"{RECIPES}: must be a mapping from names to train sections")
    if name not in recipes:
        raise InputError(
            f"{RECIPES}: {name!r}: no such recipe: must be one of {', '.join(recipes)}"
        )
    params = load_params()
    if recipes[name] or name != DEFAULT:
        document, train = read_document(PARAMS), recipes[name]
        if isinstance(train, dict) and "dataset" in train:
            dataset = train["dataset"]
            train = {key: value for key, value in train.items() if key != "dataset"}
            document["fetch"]["dataset"] = dataset
        document["train"] = train
        return validated(document, f"{RECIPES}: {name}")
    if _committed(PARAMS) != PARAMS.read_bytes():
        raise InputError(
            f"{PARAMS}: differs from the last commit, which {name} stands for: commit it, or "
            f"'git restore {PARAMS}'"
        )
    return params


def _committed(path: Path) -> bytes:
    try:
        # `DVCFileSystem(rev="HEAD")` starts from Git's root, the project's may be below.
        with Repo() as repo, repo.switch("HEAD"), closing(DVCFileSystem(repo=repo)) as files:
            content: bytes = files.read_bytes(str(path))
    except (DvcException, FileNotFoundError) as error:
        raise InputError(f"{path}: no committed version: {' '.join(str(error).split())}") from None
    return content


def settings(now: Params, wanted: Params) -> list[str]:
    """Return the arguments of `dvc exp run` that change the one set of parameters to the other."""
    old, new = (dict(leaves(params.model_dump())) for params in (now, wanted))
    changes = [f"{key}={_hydra(value)}" for key, value in new.items() if value != old[key]]
    return [argument for change in changes for argument in ("-S", change)]


def leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value under its path, such as `train.augmentation.shift`."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _hydra(value: Any) -> str:
    """Return a value in the grammar of Hydra, which DVC reads: true, 0.5, word, [800, 400]."""
    return value if isinstance(value, str) else json.dumps(value)


def experiment(name: str, arguments: list[str]) -> int:
    """Run an experiment and return DVC's exit status, 0 for success.

    `dvc exp run` refuses a name that is taken, and its --force also runs every stage again. So an
    earlier experiment of the name is set aside meanwhile; if the run fails, it comes back.
    """
    earlier = f"{name}-{SET_ASIDE}"
    with Repo() as repo:
        if name in _experiments(repo):
            repo.experiments.rename(earlier, name, force=True)
    command = ["exp", "run", "--name", name, *arguments]
    print(shlex.join(["dvc", *command]), flush=True)
    status: int = dvc(command)
    with Repo() as repo:
        found = _experiments(repo)
        if earlier in found and name in found:
            repo.experiments.remove([earlier])
        elif earlier in found:
            repo.experiments.rename(name, earlier)
    return status


def _experiments(repo: Repo) -> set[str]:
    """Return the names of the experiments that were run on the current commit."""
    return {entry[0] for entries in repo.experiments.ls().values() for entry in entries}


if __name__ == "__main__":
    run(main)
