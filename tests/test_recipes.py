"""`make recipe` under real DVC and Git: named sets of parameters as experiments."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_pipeline import comments, dvc, git, new_project, outputs, run, stages_run

from stages.pipeline.command import InputError
from stages.pipeline.params import load_params
from tests.checks.small_project import ROOT, fresh_parameters
from tools.recipe import load_recipe, settings

RECIPES = yaml.safe_load((ROOT / "recipes.yaml").read_text(encoding="utf-8"))
PARAMS = yaml.safe_load(fresh_parameters())
# Every kind of value, and a float that DVC must not turn into text.
QUICK = RECIPES["simard"] | {
    "hidden_sizes": [8, 4],
    "batch_size": "all",
    "epochs": 1,
    "l2": 1e-05,
    "include_validation": True,
    "seed": 7,
}


def recipe(project: Path, name: str) -> subprocess.CompletedProcess[str]:
    return run(project, sys.executable, "-m", "tools.recipe", name)


def experiments(project: Path) -> dict[str, str]:
    """Return the commit of each experiment by its name: DVC keeps them as references of Git."""
    lines = git(project, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").split(
        "\n"
    )
    found = (re.fullmatch(r"refs/exps/\w\w/\w{38}/(\S+) (\w+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "default"])
def test_a_recipe_is_complete_and_valid(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "recipes.yaml", tmp_path)
    (tmp_path / "params.yaml").write_text(fresh_parameters())
    wanted = dict(RECIPES[name])
    dataset = wanted.pop("dataset", PARAMS["fetch"]["dataset"])
    fetch = PARAMS["fetch"] | {"dataset": dataset}
    found = load_recipe(name)
    assert found.model_dump() == PARAMS | {"fetch": fetch, "train": wanted}
    changed = "fetch.dataset=fashion_mnist" in settings(load_params(), found)
    assert changed == (name == "fashion")


def test_the_notebooks_recipe_is_the_notebooks() -> None:
    deformations = RECIPES["notebook"]["augmentation"] | {"smoothness": 0.0}
    assert not any(deformations.values())
    told = {
        "hidden_sizes": [64],
        "initialisation": "uniform",
        "optimizer": "sgd",
        "momentum": 0,
        "learning_rate": pytest.approx(0.1 * 60000 / 10000),
        "schedule": "constant",
        "batch_size": "all",
        "epochs": 2000,
        "ema_decay": 0,
        "keep": "last",
    }
    assert {key: RECIPES["notebook"][key] for key in told} == told


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: {}\nb: {}", "recipes.yaml: 'simard': no such recipe: must be one of a, b"),
        ("- simard", "recipes.yaml: must be a mapping from names to train sections"),
        ("", "recipes.yaml: must be a mapping from names to train sections"),
        ("simard: [", "recipes.yaml: not YAML at line 1: "),
        ("simard: {}", "recipes.yaml: simard: train.hidden_sizes: missing: must be "),
        ("simard: 3", "recipes.yaml: simard: train: 3: must be a mapping with the keys hidden_"),
        (
            json.dumps({"simard": QUICK | {"epochs": "ten"}}),
            "recipes.yaml: simard: train.epochs: ten: must be a whole number from 1 to 10000",
        ),
        (
            json.dumps({"simard": QUICK | {"epoch": 10}}),
            "recipes.yaml: simard: train.epoch: unknown key: must be one of hidden_sizes, ",
        ),
        (
            json.dumps({"simard": {k: v for k, v in QUICK.items() if k != "seed"}}),
            "recipes.yaml: simard: train.seed: missing: must be a whole number from 0 to ",
        ),
    ],
)
def test_a_bad_recipe_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: str
) -> None:
    (tmp_path / "params.yaml").write_text(fresh_parameters())
    (tmp_path / "recipes.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        load_recipe("simard")
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_an_experiment_from_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = new_project(tmp_path / "project")
    (project / "recipes.yaml").write_text(json.dumps({"default": {}, "quick": QUICK}))
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message=A recipe")
    committed = yaml.safe_load((project / "params.yaml").read_text())

    done = recipe(project, "quick")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_run(done.stdout) == ["preprocess", "train", "evaluate", "visualize"]
    # DVC has applied the results. They are the recipe's, and every comment is where it was.
    text = (project / "params.yaml").read_text()
    assert yaml.safe_load(text) | {"train": None} == committed | {"train": None}
    section = yaml.safe_load(text)["train"]
    assert section | {"l2": float(section["l2"])} == QUICK
    assert comments(text) == comments((ROOT / "params.yaml").read_text())
    # Its name is a revision.
    changed = json.loads(dvc(project, "params", "diff", "HEAD", "quick", "--json"))["params.yaml"]
    assert changed["train.seed"] == {"old": 1, "new": 7, "diff": 6}
    diff = json.loads(dvc(project, "metrics", "diff", "quick", "--all", "--json"))
    measured = json.loads((project / "reports/metrics.json").read_text())["test"]["loss"]
    loss = diff["reports/metrics.json"]["test.loss"]
    assert loss["old"] == loss["new"] == measured

    # What params.yaml holds now is not what an empty recipe stands for.
    monkeypatch.chdir(project)
    with pytest.raises(InputError, match="differs from the last commit, which default stands for"):
        load_recipe("default")

    # Once more: nothing is trained again, and the new experiment takes the name.
    before, results = experiments(project), outputs(project)
    assert list(before) == ["quick"]
    again = recipe(project, "quick")
    assert again.returncode == 0, again.stdout + again.stderr
    assert stages_run(again.stdout) == []
    after = experiments(project)
    assert list(after) == ["quick"]
    assert outputs(project) == results

    # A run that fails leaves the experiment that has the name.
    with (project / "stages/train.py").open("a") as file:
        file.write("\nraise SystemExit('out of order')\n")
    failed = recipe(project, "quick")
    assert failed.returncode not in (0, None)
    assert "out of order" in failed.stderr
    assert experiments(project) == after


def test_the_default_recipe_in_a_folder_of_a_larger_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "larger/project"
    project.mkdir(parents=True)
    for name in ("recipes.yaml", "params.yaml"):
        shutil.copy(ROOT / name, project)
    git(tmp_path / "larger", "init", "--quiet", "--initial-branch=main")
    dvc(project, "init", "--quiet", "--subdir")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message=All in one")
    monkeypatch.chdir(project)
    assert load_recipe("default") == load_params()
    with (project / "params.yaml").open("a") as file:
        file.write("# An edit.\n")
    with pytest.raises(InputError, match="differs from the last commit"):
        load_recipe("default")


def test_ci_compares_experiments_in_a_folder_of_a_larger_repository(tmp_path: Path) -> None:
    project = tmp_path / "larger/project"
    (project / "reports").mkdir(parents=True)
    (project / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/compare", project / ".ci")
    git(tmp_path / "larger", "init", "--quiet", "--initial-branch=main")
    dvc(project, "init", "--quiet", "--subdir")
    (project / "dvc.yaml").write_text("metrics: [reports/metrics.json]\nparams: [params.yaml]\n")
    for seed in (1, 2):
        (project / "params.yaml").write_text(f"seed: {seed}\n")
        (project / "reports/metrics.json").write_text(json.dumps({"loss": seed / 4}))
        (project / "reports/learning_curves.csv").write_text(f"epoch\n{seed}\n")
        git(project, "add", ".")
        git(project, "commit", "--quiet", f"--message=Seed {seed}")
    old, new = git(project, "rev-parse", "HEAD~1", "HEAD").split()
    git(project, "update-ref", f"refs/exps/{old[:2]}/{old[2:]}/tried", new)
    done = run(project, ".ci/compare", "HEAD~1", "tried", "URL")
    assert done.returncode == 0, done.stderr
    for commit in (old, new):
        assert f"(URL/raw/{commit}/project/reports/learning_curves.png)" in done.stdout
    assert re.search(r"params.yaml +\| seed +\| 1 +\| 2", done.stdout)
    assert re.search(r"metrics.json +\| loss +\| 0.25 +\| 0.5", done.stdout)
    assert "learning_curves.csv | 2 +-" in done.stdout
    refused = run(project, ".ci/compare", "HEAD~1", "nothing", "URL")
    assert refused.returncode == 1
    assert refused.stderr == "error: nothing: no such commit, branch, tag or experiment\n"
