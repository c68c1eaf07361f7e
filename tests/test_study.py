"""`make study`: seeds are trained, scored as the pipeline scores them, and never twice."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from stages.core.data import LabelledImages
from stages.pipeline.command import InputError
from stages.pipeline.datasets import DESCRIPTION, RAW
from stages.pipeline.interrupts import INTERRUPTED
from stages.pipeline.params import TrainParams
from stages.train import Trained, train
from tests.checks.small_project import ROOT, copy_project, environment, set_parameters
from tools import seed, study
from tools.seed import probabilities_file

QUICK = yaml.safe_load((ROOT / "recipes.yaml").read_text(encoding="utf-8"))["simard"] | {
    "hidden_sizes": [8, 4],
    "batch_size": 50,
    "epochs": 2,
    "learning_rate": 0.01,
    "ema_decay": 0.9,
    "include_validation": True,
}
RECIPES = {"quick": QUICK, "other": QUICK | {"hidden_sizes": [5]}}


class Outcome(NamedTuple):
    """What a study printed, the seeds that it trained, and why it stopped."""

    output: str
    trained: list[int]
    error: str | None


def run(project: Path, *arguments: str) -> Outcome:
    """Run a study in this process, which has imported all that it needs."""
    seeds, output, error = [], io.StringIO(), None

    def counted(
        params: TrainParams,
        train_set: LabelledImages,
        validation: LabelledImages,
        checkpoint: Path,
        section: str,
        check: Callable[[], None],
    ) -> Trained:
        trained = train(params, train_set, validation, checkpoint, section, check=check)
        seeds.append(params.seed)
        return trained

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.chdir(project)
        patch.setattr("sys.argv", ["study", *arguments])
        patch.setattr(seed, "train", counted)
        try:
            study.main()
        except InputError as refusal:
            error = str(refusal)
    return Outcome(output.getvalue(), seeds, error)


def run_stage(project: Path, stage: str) -> None:
    command = [sys.executable, "-m", f"stages.{stage}"]
    subprocess.run(
        command, cwd=project, env=environment(), check=True, capture_output=True, timeout=120
    )


def times(project: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(
        (project / "reports/study_times.json").read_text()
    )
    return found


def studies(project: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project / "reports/studies.json").read_text())
    return found


def studied(project: Path, seeds: int) -> Outcome:
    """Make a project in which so many seeds have been studied; return how that went."""
    copy_project(project)
    (project / "recipes.yaml").write_text(json.dumps(RECIPES))
    run_stage(project, "preprocess")
    return run(project, "quick", str(seeds))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Return a project in which two seeds have been studied, and how that went."""
    project = tmp_path_factory.mktemp("study")
    return project, studied(project, seeds=2)


@pytest.fixture
def project(first: tuple[Path, Outcome], tmp_path: Path) -> Path:
    return shutil.copytree(first[0], tmp_path / "project")


def test_a_seed_scores_what_the_pipeline_scores(first: tuple[Path, Outcome], project: Path) -> None:
    assert first[1].trained == [1, 2]
    document = yaml.safe_load((project / "params.yaml").read_text())
    document["train"] = QUICK | {"seed": 2}
    (project / "params.yaml").write_text(yaml.safe_dump(document))
    for stage in ("train", "evaluate"):
        run_stage(project, stage)
    metrics = json.loads((project / "reports/metrics.json").read_text())

    result = studies(project)["quick"]["results"][1]
    assert result["test_accuracy"] > 0.12  # guessing is right once in ten
    assert result == {
        "seed": 2,
        "validation_accuracy": metrics["validation"]["accuracy"],
        "test_accuracy": metrics["test"]["accuracy"],
        "test_loss": metrics["test"]["loss"],
    }


def test_the_table(first: tuple[Path, Outcome]) -> None:
    project, outcome = first
    *_, head, _, row = outcome.output.splitlines()
    cells = dict(zip(head.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    one, other = (result["test_accuracy"] for result in studies(project)["quick"]["results"])
    assert one != other
    seconds = times(project)["quick"]
    assert list(seconds) == ["1", "2"]
    assert cells.pop("seconds") == f"{statistics.median(seconds.values()):.0f}"
    assert cells == {
        "recipe": "quick",
        "network": "784-8-4-10",
        "parameters": f"{784 * 8 + 8 + 8 * 4 + 4 + 4 * 10 + 10:,}",
        # The standard deviation of two values is their distance / sqrt(2).
        "test accuracy": f"{(one + other) / 2:.2%} ± {abs(one - other) / 2**0.5:.2%}",
        "best": f"{max(one, other):.2%}",
        "worst": f"{min(one, other):.2%}",
        "seeds": "2",
    }


def test_a_finished_seed_is_not_trained_again(first: tuple[Path, Outcome], project: Path) -> None:
    same = run(project, "quick", "2")
    assert same.trained == []
    assert same.output.splitlines() == [
        "quick: nothing is left to train: reports/studies.json has 2 seeds of it",
        *first[1].output.splitlines()[-3:],
    ]
    for path in ("reports/studies.json", "reports/studies.png"):
        assert (project / path).read_bytes() == (first[0] / path).read_bytes()

    assert run(project, "quick", "3").trained == [3]
    found = studies(project)["quick"]["results"]
    assert found[:2] == studies(first[0])["quick"]["results"]
    assert found[2]["seed"] == 3

    assert run(project, "other", "1").trained == [1]
    assert studies(project)["quick"]["results"] == found
    assert list(studies(project)) == ["quick", "other"]


def test_seeds_of_another_clone_are_trained_here_on_request(
    first: tuple[Path, Outcome], project: Path
) -> None:
    path = project / probabilities_file(studies(project)["quick"]["parameters"], 2)
    before = path.read_bytes()
    path.unlink()
    assert run(project, "quick", "2").trained == []
    assert run(project, "--here", "quick", "2").trained == [2]
    assert path.read_bytes() == before
    assert studies(project) == studies(first[0])
    assert run(project, "--here", "quick", "2").trained == []


def test_another_data_set_is_refused(project: Path) -> None:
    path = project / DESCRIPTION
    path.write_text(path.read_text().replace('"mnist"', '"clothes"'))
    assert run(project, "quick", "2").error is None  # nothing is to be trained
    before = studies(project)
    assert run(project, "quick", "3") == Outcome(
        "", [], "recipes.yaml: quick: needs mnist, but data/raw holds clothes: set fetch.dataset "
        "in params.yaml to it, then try again"
    )  # fmt: skip
    assert studies(project) == before


def test_own_images_that_have_changed_are_another_study(project: Path) -> None:
    set_parameters(project, {"fetch": {"dataset": "files"}})
    path = project / DESCRIPTION
    path.write_text(path.read_text().replace('"mnist"', '"own"'))
    assert run(project, "other", "1").trained == [1]
    assert run(project, "other", "1").trained == []
    labels = np.load(project / RAW / "y_test.npy")
    np.save(project / RAW / "y_test.npy", labels[::-1])
    outcome = run(project, "other", "1")
    assert outcome.output.startswith("other: new parameters: its 1 old results will go\n")
    assert outcome.trained == [1]


def test_a_grid_is_a_study_for_each_combination(project: Path) -> None:
    setting = "--set=train.epochs=1,2 train.learning_rate=0.01"
    outcome = run(project, setting, "quick", "2")
    one, two = (f"quick train.learning_rate=0.01 train.epochs={epochs}" for epochs in (1, 2))
    assert outcome.trained == [1, 2, 1, 2]
    found = studies(project)
    assert list(found) == ["quick", one, two]
    assert found[one]["parameters"]["train"]["epochs"] == 1
    assert found[two] == found["quick"]  # whose own two epochs these are
    assert outcome.output.splitlines()[-1].startswith(f"| {two} | 784-8-4-10 |")
    assert run(project, setting, "quick", "1").trained == []


def test_a_combination_that_diverges_leaves_the_others(project: Path) -> None:
    setting = "--set=train.learning_rate=100,0.01 train.momentum=0.99"
    outcome = run(project, setting, "quick", "2")
    hopeless, other = (
        f"quick train.learning_rate={rate} train.momentum=0.99" for rate in ("100.0", "0.01")
    )
    assert outcome.trained == [1, 2]
    assert list(studies(project)) == ["quick", other]
    assert outcome.error is not None
    assert outcome.error.startswith(f"recipes.yaml: {hopeless}: train.learning_rate: 100: must be ")
    assert re.findall(r"\(seed (\d(?:, \d)?)\)", outcome.error) in (["1", "2"], ["1, 2"])
    assert outcome.output.splitlines()[-1].startswith(f"| {other} |")


def test_only_who_asks_for_dask_needs_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, tools.study; assert not {'dask', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "tools.cluster", raising=False)
    monkeypatch.delitem(sys.modules, "tools.worker", raising=False)
    outcome = run(project, "--cluster=local:2", "quick", "3")
    assert outcome.error is not None
    assert outcome.error.endswith("; 'make .venv/.dask' installs Dask")


def test_other_parameters_are_another_study(project: Path) -> None:
    changed = RECIPES | {"quick": QUICK | {"learning_rate": 0.02}}
    (project / "recipes.yaml").write_text(json.dumps(changed))
    outcome = run(project, "quick", "1")
    assert outcome.output.startswith("quick: new parameters: its 2 old results will go\n")
    assert outcome.trained == [1]
    (result,) = studies(project)["quick"]["results"]
    assert result["seed"] == 1
    assert studies(project)["quick"]["parameters"]["train"]["learning_rate"] == 0.02

    # The recipe's own seed says nothing, since a study has its own. The validation set does.
    changed["quick"] = changed["quick"] | {"seed": 9}
    (project / "recipes.yaml").write_text(json.dumps(changed))
    assert run(project, "quick", "1").trained == []
    set_parameters(project, {"preprocess": {"seed": 9}})
    assert run(project, "quick", "1").trained == [1]


def test_a_seed_that_diverges_leaves_the_others(project: Path) -> None:
    before = studies(project)
    hopeless = QUICK | {"learning_rate": 100, "momentum": 0.99}
    (project / "recipes.yaml").write_text(json.dumps(RECIPES | {"hopeless": hopeless}))
    outcome = run(project, "hopeless", "2")
    assert outcome.error is not None
    assert outcome.error.startswith(
        "recipes.yaml: hopeless: train.learning_rate: 100: must be smaller: training diverged"
    )
    assert studies(project) == before


def test_ctrl_c_keeps_what_is_finished(project: Path) -> None:
    path = project / "reports/studies.json"
    path.unlink()
    picture = (project / "reports/studies.png").read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.study", "quick", "1000"],
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    drawn, deadline = project / "reports/studies.png", time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and len(studies(project)["quick"]["results"]) > 2:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    # Python may report above it what it lost in a callback.
    assert (process.returncode, error.splitlines()[-1]) == (130, INTERRUPTED)
    finished = studies(project)["quick"]["results"]
    assert [result["seed"] for result in finished] == list(range(1, len(finished) + 1))
    assert finished
    assert drawn.read_bytes() != picture

    assert run(project, "quick", f"{len(finished) + 1}").trained == [len(finished) + 1]
    assert studies(project)["quick"]["results"][:-1] == finished


def test_an_interrupted_seed_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, document: object) -> None:
        raise KeyboardInterrupt

    before = studies(project)["quick"]["results"]
    (project / "reports/studies.json").unlink()
    monkeypatch.setenv("CHECKPOINT_SECONDS", "0")
    with monkeypatch.context() as patch:
        patch.setattr(study, "save_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(project, "quick", "2")
    outcome = run(project, "quick", "2")
    assert f"{study.CHECKPOINT}: going on after epoch 2\n" in outcome.output
    assert not (project / study.CHECKPOINT).exists()
    # The result is the same, but how long it took in all is not known.
    assert studies(project)["quick"]["results"] == before
    assert list(times(project)["quick"]) == ["2"]


def document_of(seeds: list[int]) -> dict[str, Any]:
    result = {"validation_accuracy": 0.5, "test_accuracy": 0.5, "test_loss": 1.0}
    return {
        "parameters": {"train": {"hidden_sizes": [8]}},
        "results": [{"seed": number} | result for number in seeds],
    }


@pytest.mark.parametrize(
    ("arguments", "content", "line"),
    [
        (("quick", "0"), None, "SEEDS: 0: must be a whole number from 1 to 1000"),
        (("quick", "five"), None, "SEEDS: five: must be a whole number from 1 to 1000"),
        (("quick", "9" * 5000), None, "SEEDS: 9999"),
        (("no", "1"), None, "recipes.yaml: 'no': no such recipe: must be one of quick, other"),
        (("quick", "1"), "{", "reports/studies.json: damaged: Invalid JSON"),
        (("quick", "1"), '{"quick": {}}', "reports/studies.json: damaged: quick.parameters: "),
        (
            ("quick", "1"),
            '{"quick": {"parameters": {"train": {"hidden_sizes": 8}}, "results": []}}',
            "reports/studies.json: damaged: quick.parameters: Value error, must hold train.hidden",
        ),
        (
            ("no", "1"),
            '{"quick": {"parameters": {"train": {"hidden_sizes": [8]}}, "results": []}}',
            "reports/studies.json: damaged: quick.results: ",
        ),
        *(
            (
                ("quick", "1"),
                json.dumps({"quick": document_of([1]) | {"parameters": parameters}}),
                "reports/studies.json: damaged: quick.parameters: Value error, must hold in fetch",
            )
            for fetch in (
                [],
                3,
                {},
                {"dataset": None},
                {"files": {"name": 3}},
                {"dataset": "files", "files": {}},
                {"dataset": "files", "files": 3},
            )
            for parameters in [{"train": {"hidden_sizes": [8]}, "fetch": fetch}]
        ),
        *(
            (
                ("quick", "1"),
                json.dumps({"quick": document_of(seeds)}),
                "reports/studies.json: damaged: quick.results: Value error, must hold each seed",
            )
            for seeds in ([1, 1], [2, 1])
        ),
    ],
)
def test_bad_input_is_one_clear_line(
    project: Path, arguments: tuple[str, str], content: str | None, line: str
) -> None:
    path = project / "reports/studies.json"
    if content is not None:
        path.write_text(content)
    before = path.read_bytes()
    outcome = run(project, *arguments)
    assert outcome.error is not None
    assert outcome.error.startswith(line)
    assert "\n" not in outcome.error
    assert path.read_bytes() == before


def a_study(*accuracies: float) -> study.Study:
    results = [
        seed.Result(seed=i, validation_accuracy=0.5, test_accuracy=a, test_loss=1.0)
        for i, a in enumerate(accuracies, start=1)
    ]
    return study.Study(parameters={"train": {"hidden_sizes": [30, 20]}}, results=results)


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    accuracies = [0.9851, 0.9863, 0.9849, 0.9868]
    times = {"a": {1: 1.0, 2: 2.0, 4: 4.0}}
    row = study.table({"a": a_study(*accuracies)}, times).splitlines()[-1]
    spread = (sum((a - sum(accuracies) / 4) ** 2 for a in accuracies) / 3) ** 0.5
    assert f"| 784-30-20-10 | 24,380 | {statistics.fmean(accuracies):.2%} ± {spread:.2%} |" in row
    assert row.endswith("| 4 | 2 |")
    # One seed has no deviation.
    assert "| 98.51% | 98.51% | 98.51% | 1 | ? |" in study.table({"a": a_study(0.9851)}, {})
