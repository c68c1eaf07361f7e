"""The pipeline under real DVC: a copy of the repository with a small data set, few epochs."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from tests.checks.small_project import (
    ROOT,
    SMALL,
    copy_project,
    fresh_parameters,
    isolated,
    set_parameters,
)


def run(project: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project, far from the user's own Git and DVC settings."""
    return subprocess.run(
        command,
        cwd=project,
        env=isolated(project) | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def git(project: Path, *arguments: str) -> str:
    done = run(project, "git", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dvc(project: Path, *arguments: str, **variables: str) -> str:
    done = run(project, sys.executable, "-m", "dvc", *arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_run(output: str) -> list[str]:
    return re.findall(r"^Running stage '(\w+)':", output, re.MULTILINE)


def output_paths(project: Path) -> list[str]:
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"].values()
    return [
        path
        for stage in stages
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
        for path in ([out] if isinstance(out, str) else out)
    ]


def outputs(project: Path) -> dict[str, bytes]:
    """Return the bytes of every output of every stage; a missing one is left out."""
    paths = output_paths(project)
    return {path: (project / path).read_bytes() for path in paths if (project / path).exists()}


def comments(parameters: str) -> list[str]:
    return [line.strip() for line in parameters.splitlines() if line.strip().startswith("#")]


def new_project(target: Path) -> Path:
    """Make a project whose data is fetched already, as far as DVC knows."""
    copy_project(target)
    git(target, "init", "--quiet", "--initial-branch=main")
    git(target, "add", ".")
    git(target, "commit", "--quiet", "--message=The code")
    dvc(target, "commit", "--force", "fetch")
    return target


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a project in which the pipeline has run and the results are committed."""
    project = new_project(tmp_path_factory.mktemp("pipeline") / "project")
    output = dvc(project, "repro")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message=The results")
    return project, output


@pytest.fixture
def project(first_run: tuple[Path, str], tmp_path: Path) -> Path:
    """Return a copy of that project to play with."""
    return shutil.copytree(first_run[0], tmp_path / "project", symlinks=True)


def test_the_first_run_makes_every_output_and_leaves_git_clean(
    first_run: tuple[Path, str],
) -> None:
    project, output = first_run
    assert stages_run(output) == ["preprocess", "train", "evaluate", "visualize"]
    made = outputs(project)
    assert list(made) == output_paths(project)
    assert all(made.values())
    # Data and model are DVC's; curves, metrics and pictures are Git's.
    tracked = set(git(project, "ls-files").split())
    assert {path for path in made if path in tracked} == {
        path for path in made if path.startswith("reports/")
    }
    assert git(project, "status", "--short") == ""


def test_the_outputs_hold_what_the_readers_of_the_reports_expect(
    first_run: tuple[Path, str],
) -> None:
    project, _ = first_run
    metrics = json.loads((project / "reports/metrics.json").read_text())
    assert list(metrics) == ["train", "validation", "test"]
    for figures in metrics.values():
        assert list(figures) == ["accuracy", "error_rate", "loss"]
        assert figures["accuracy"] + figures["error_rate"] == pytest.approx(1)
    # Guessing is right once in ten.
    assert metrics["test"]["accuracy"] > 0.5

    actual, predicted = np.loadtxt(
        project / "reports/confusion.csv", delimiter=",", skiprows=1, dtype=int
    ).T
    np.testing.assert_array_equal(actual, np.load(project / "data/raw/y_test.npy"))
    assert (actual == predicted).mean() == pytest.approx(metrics["test"]["accuracy"], abs=1e-6)

    curves = (project / "reports/learning_curves.csv").read_text().splitlines()
    assert curves[0] == "epoch,train_loss,validation_loss,validation_accuracy"
    assert [line.split(",")[0] for line in curves[1:]] == ["1", "2"]
    with np.load(project / "models/model.npz", allow_pickle=False) as model:
        assert {name: array.dtype for name, array in model.items()} == dict.fromkeys(
            ["W1", "b1", "W2", "b2"], np.dtype("float32")
        )


def test_a_second_run_does_nothing(project: Path) -> None:
    before = outputs(project)
    output = dvc(project, "repro")
    assert stages_run(output) == []
    assert "up to date" in output
    assert outputs(project) == before
    assert git(project, "status", "--short") == ""


def test_every_bit_is_the_same_in_another_folder_with_other_workers(
    first_run: tuple[Path, str], tmp_path: Path
) -> None:
    other = new_project(tmp_path / "another folder")
    dvc(other, "repro", WORKERS="3", BLAS_THREADS="2")
    assert outputs(other) == outputs(first_run[0])
    assert (other / "dvc.lock").read_text() == (first_run[0] / "dvc.lock").read_text()


def test_changed_epochs_retrain_and_the_diffs_show_the_change(project: Path) -> None:
    old = json.loads((project / "reports/metrics.json").read_text())
    set_parameters(project, {"train": {"epochs": 3}})
    assert stages_run(dvc(project, "repro")) == ["train", "evaluate", "visualize"]

    changed = json.loads(dvc(project, "params", "diff", "--json"))
    assert changed == {"params.yaml": {"train.epochs": {"old": 2, "new": 3, "diff": 1}}}
    new = json.loads((project / "reports/metrics.json").read_text())
    moved = json.loads(dvc(project, "metrics", "diff", "--json"))["reports/metrics.json"]
    assert moved["test.loss"]["old"] == old["test"]["loss"]
    assert moved["test.loss"]["new"] == new["test"]["loss"] != old["test"]["loss"]
    shown = dvc(project, "metrics", "show")
    for split in ("train", "validation", "test"):
        for figure in ("accuracy", "error_rate", "loss"):
            assert f"{split}.{figure}" in shown


def test_changed_rows_only_redraw(project: Path) -> None:
    set_parameters(project, {"visualize": {"rows": 3}})
    assert stages_run(dvc(project, "repro")) == ["visualize"]
    assert "reports/prediction_grid.png" in git(project, "status", "--short")


@pytest.mark.parametrize(
    ("module", "rerun"),
    [
        ("stages/plots/figures.py", ["visualize"]),
        # The same code makes the same model, so what follows need not run.
        ("stages/engine/__init__.py", ["train"]),
        ("stages/core/metrics.py", ["preprocess", "train", "evaluate", "visualize"]),
    ],
)
def test_an_edit_reruns_only_the_stages_that_use_the_folder(
    project: Path, module: str, rerun: list[str]
) -> None:
    with (project / module).open("a") as file:
        file.write("\n# An edit.\n")
    # An edit may mean new kernels, which take long to compile: the textbook is sooner done.
    assert stages_run(dvc(project, "repro", ENGINE="textbook")) == rerun


def test_an_experiment_runs_and_leaves_the_comments(project: Path) -> None:
    before = yaml.safe_load((project / "params.yaml").read_text())
    output = dvc(project, "exp", "run", "--set-param", "train.learning_rate=1e-05")
    assert stages_run(output) == ["train", "evaluate", "visualize"]

    text = (project / "params.yaml").read_text()
    assert re.search(r"learning_rate: 1e-05$", text, re.MULTILINE)
    assert comments(text) == comments((ROOT / "params.yaml").read_text())
    assert git(project, "diff", "--numstat", "params.yaml") == "1\t1\tparams.yaml\n"
    after = yaml.safe_load(text)
    assert float(after["train"].pop("learning_rate")) == 1e-05
    del before["train"]["learning_rate"]
    assert after == before

    table = run(project, sys.executable, "-m", "tools.experiments").stdout.splitlines()
    assert table[0].split() == ["experiment", "validation", "test", "changes"]
    assert [line.split()[-1] for line in table if "epochs" not in line].count(
        "train.learning_rate=1e-05"
    ) == 1
    rows = list(csv.DictReader(dvc(project, "exp", "show", "--csv").splitlines()))
    # The workspace and the experiment are the same; between them stands the commit.
    workspace, commit, experiment = rows
    assert float(workspace["train.learning_rate"]) == 1e-05
    assert float(commit["train.learning_rate"]) == SMALL["train"]["learning_rate"]
    assert workspace["test.loss"] == experiment["test.loss"] != commit["test.loss"]


@pytest.mark.parametrize(
    "setting", ["train.learning_rate=0.3", "train.hidden_sizes=[32]", "fetch.sources=[keras,pypi]"]
)
def test_a_set_parameter_changes_its_own_line_alone(tmp_path: Path, setting: str) -> None:
    path = tmp_path / "params.yaml"
    before = fresh_parameters()
    path.write_text(before, encoding="utf-8")
    apply_overrides(path, [setting])  # what `dvc exp run -S` does to the file
    after = path.read_text(encoding="utf-8")
    pairs = list(zip(before.splitlines(), after.splitlines(), strict=True))
    assert sum(old != new for old, new in pairs) <= 1


def test_deleted_outputs_come_back_from_the_cache(project: Path) -> None:
    before = outputs(project)
    for path in before:
        (project / path).unlink()
    output = dvc(project, "repro")
    assert stages_run(output) == []
    for stage in ("preprocess", "train", "evaluate", "visualize"):
        assert f"Stage '{stage}' is cached - skipping run, checking out outputs" in output
    assert outputs(project) == before
    assert git(project, "status", "--short") == ""


def test_a_parameter_changed_and_changed_back_runs_nothing(project: Path) -> None:
    before, lock = outputs(project), (project / "dvc.lock").read_text()
    set_parameters(project, {"train": {"epochs": 1}})
    assert stages_run(dvc(project, "repro")) == ["train", "evaluate", "visualize"]
    changed = outputs(project)
    assert changed != before
    set_parameters(project, SMALL)
    assert stages_run(dvc(project, "repro")) == []
    assert outputs(project) == before
    assert (project / "dvc.lock").read_text() == lock
    set_parameters(project, {"train": {"epochs": 1}})
    assert stages_run(dvc(project, "repro")) == []
    assert outputs(project) == changed


def test_the_same_experiment_again_runs_nothing(project: Path) -> None:
    experiment = ("exp", "run", "--set-param", "train.epochs=1")
    assert stages_run(dvc(project, *experiment)) == ["train", "evaluate", "visualize"]
    made = outputs(project)
    git(project, "restore", ".")
    dvc(project, "checkout")
    assert outputs(project) != made
    # In the workspace, and in a folder of its own as the queue does it.
    assert stages_run(dvc(project, *experiment)) == []
    assert stages_run(dvc(project, *experiment, "--temp")) == []
    assert outputs(project) == made


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            "train.learning_rate=-1",
            "error: params.yaml: train.learning_rate: -1: "
            "must be a number greater than 0 and at most 100",
        ),
        (
            "train.epochs=ten",
            "error: params.yaml: train.epochs: ten: must be a whole number from 1 to 10000",
        ),
    ],
)
def test_a_bad_value_is_one_clear_line_and_the_cache_has_what_was_there(
    project: Path, setting: str, line: str
) -> None:
    before, lock = outputs(project), (project / "dvc.lock").read_text()
    done = run(project, sys.executable, "-m", "dvc", "exp", "run", "--set-param", setting)

    assert done.returncode != 0
    # Our line comes first; DVC adds one of its own, which says what stage failed.
    ours, theirs = done.stderr.splitlines()
    # The bad value stays in params.yaml, where the next run finds it: the line says how to go back.
    assert ours == f"{line}; params.yaml stays so until you edit it, or 'git restore params.yaml'"
    assert theirs.startswith("ERROR: failed to reproduce 'train'")
    assert "error" not in done.stdout
    # DVC removed what the stage was to make, and restores it.
    gone = {"models/model.npz", "reports/learning_curves.csv"}
    assert outputs(project) == {path: made for path, made in before.items() if path not in gone}
    assert (project / "dvc.lock").read_text() == lock
    git(project, "restore", "params.yaml")
    assert stages_run(dvc(project, "repro")) == []
    assert outputs(project) == before
    assert git(project, "status", "--short") == ""


def test_the_plots_page_has_curves_confusion_and_pictures(project: Path) -> None:
    dvc(project, "plots", "show", "--out", "page")
    page = (project / "page/index.html").read_text()
    titles = re.findall(r'"text": "([^"]*)"', page)
    assert sorted(titles) == ["Confusion", "F1 of each class", "Loss", "Validation accuracy"]
    # The data is in the page itself, the first epoch's train loss for instance.
    first_epoch = (project / "reports/learning_curves.csv").read_text().splitlines()[1]
    assert f'"train_loss": "{first_epoch.split(",")[1]}"' in page
    pictures = {path.name for path in (project / "reports").glob("*.png")}
    shown = {path.name.split("reports_")[1] for path in (project / "page").rglob("*.png")}
    assert shown == pictures
    assert len(pictures) >= 6
