"""Interrupted training goes on, and ends with the bytes of one that nothing interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_stages import stage

from stages.pipeline.checkpoint import CHECKPOINT
from tests.checks.small_project import copy_project, environment, set_parameters


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a small project that is ready to train."""
    copy_project(tmp_path)
    set_parameters(tmp_path, {"train": {"epochs": 40}})
    assert stage("preprocess", tmp_path).returncode == 0
    return tmp_path


def kill_half_way(project: Path) -> None:
    """Start training, and kill it once there is a checkpoint of half of the epochs or more."""
    with subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=project,
        env=environment(CHECKPOINT_SECONDS="0", WORKERS="2"),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as training:
        assert training.stdout is not None
        for line in training.stdout:
            if int(line.split()[1].split("/")[0]) >= 24:
                break
        while not (project / CHECKPOINT).exists():
            time.sleep(0.01)
        os.killpg(training.pid, signal.SIGKILL)
    assert not (project / "models" / "model.npz").exists()


def outputs(project: Path) -> list[bytes]:
    return [
        (project / name).read_bytes()
        for name in ("models/model.npz", "reports/learning_curves.csv")
    ]


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(project: Path) -> None:
    kill_half_way(project)
    again = stage("train", project)
    assert again.returncode == 0, again.stderr
    first, *lines = again.stdout.splitlines()
    assert first.startswith(f"{CHECKPOINT}: going on after epoch ")
    assert int(first.split()[-1]) >= 20
    assert all(int(line.split()[1].split("/")[0]) > 20 for line in lines)
    resumed = outputs(project)
    assert not (project / CHECKPOINT).exists()

    whole = stage("train", project)
    assert whole.stdout.startswith("epoch    4/40")
    assert outputs(project) == resumed


@pytest.mark.parametrize("module", ["stages/train.py", "stages/core/network.py"])
def test_a_checkpoint_of_other_code_is_ignored(project: Path, module: str) -> None:
    kill_half_way(project)
    with (project / module).open("a") as file:
        file.write("# changed\n")
    said = stage("train", project).stdout.splitlines()[0]
    assert said == f"{CHECKPOINT}: ignored: it was made with other code"


def test_a_checkpoint_of_another_training_is_ignored_with_the_reason(project: Path) -> None:
    kill_half_way(project)
    kept = (project / CHECKPOINT).read_bytes()
    set_parameters(project, {"train": {"epochs": 2}})
    other = stage("train", project)
    assert (
        other.stdout.splitlines()[0] == f"{CHECKPOINT}: ignored: it was made with other parameters"
    )
    expected = outputs(project)

    set_parameters(project, {"train": {"epochs": 40}, "preprocess": {"seed": 2}})
    (project / CHECKPOINT).write_bytes(kept)
    assert stage("preprocess", project).returncode == 0
    said = stage("train", project).stdout.splitlines()[0]
    assert said == f"{CHECKPOINT}: ignored: it was made with other data"

    set_parameters(project, {"train": {"epochs": 2}, "preprocess": {"seed": 1}})
    assert stage("preprocess", project).returncode == 0
    for damage in (kept[: len(kept) // 2], b"", kept[:-200] + bytes(200)):
        (project / CHECKPOINT).write_bytes(damage)
        done = stage("train", project)
        assert done.returncode == 0
        assert done.stdout.startswith(f"{CHECKPOINT}: ignored: damaged")
        assert outputs(project) == expected
