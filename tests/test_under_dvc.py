"""What a stage notices of the DVC that runs it: a shallow clone, and a DVC that was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_pipeline import dvc, git, new_project, run

from tests.checks.small_project import isolated, set_parameters

TEXTBOOK = {"ENGINE": "textbook"}  # which need not be compiled in each copy
ENDED = "which started this training, has ended"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project of two commits whose training takes minutes."""
    project = new_project(tmp_path_factory.mktemp("under_dvc") / "project")
    set_parameters(project, {"train": {"epochs": 2000, "batch_size": 5, "learning_rate": 0.0001}})
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message=A long training")
    return project


@pytest.fixture
def project(first: Path, tmp_path: Path) -> Path:
    """Return a copy of that project to play with."""
    return shutil.copytree(first, tmp_path / "project", symlinks=True)


def test_a_shallow_clone_refuses_what_dvc_would_lose(project: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(project, "clone", "--quiet", "--depth=1", f"file://{project}", str(clone))
    (clone / ".dvc").mkdir(exist_ok=True)
    shutil.copytree(project / ".dvc/cache", clone / ".dvc/cache")
    dvc(clone, "checkout", "fetch")
    experiment = ("exp", "run", "-S", "train.epochs=1", "-S", "train.batch_size=99")
    refused = run(clone, sys.executable, "-m", "dvc", *experiment, "--temp")
    assert refused.returncode != 0
    line = next(line for line in refused.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: Git: a shallow clone, ")
    assert "'git fetch --unshallow' first" in line

    git(clone, "fetch", "--quiet", "--unshallow")
    dvc(clone, *experiment, "--temp", "--name", "kept")
    assert "/kept" in git(clone, "for-each-ref", "refs/exps")


def training_of(project: Path) -> psutil.Process:
    """Wait for the training under way anywhere in a project; return its process."""
    for _ in range(1200):
        for process in psutil.process_iter():
            try:
                if process.cmdline()[-1:] == ["stages.train"] and project in [
                    Path(process.cwd()),
                    *Path(process.cwd()).parents,
                ]:
                    return process
            except psutil.Error:
                continue
        time.sleep(0.1)
    pytest.fail("no training")


def wait_for_the_end(process: psutil.Process) -> None:
    try:
        process.wait(timeout=60)
    except psutil.TimeoutExpired:
        process.kill()
        pytest.fail("the training runs on")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells no parents")
def test_a_training_ends_when_its_dvc_was_killed(project: Path) -> None:
    said = project.parent / "said"
    with said.open("wb") as file, subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"], cwd=project, env=isolated(project) | TEXTBOOK,
        stdout=file, stderr=file, start_new_session=True,
    ) as repro:  # fmt: skip
        training = training_of(project)
        while "epoch  200/2000" not in said.read_text():
            assert repro.poll() is None
            time.sleep(0.1)
        repro.kill()
    wait_for_the_end(training)
    assert ENDED in said.read_text()
    assert "Traceback" not in said.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells more than the parent")
def test_a_training_ends_when_its_queue_worker_was_killed(project: Path) -> None:
    dvc(project, "exp", "run", "--queue", "--set-param", "train.seed=2")
    # The worker keeps the streams of `dvc queue start` open, so these cannot be pipes.
    subprocess.run(
        [sys.executable, "-m", "dvc", "queue", "start"],
        cwd=project,
        env=isolated(project) | TEXTBOOK,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    training = training_of(project)
    logs = project / ".dvc/tmp/exps/run"
    while not any("epoch  200/2000" in path.read_text() for path in logs.rglob("*.out")):
        assert training.is_running()
        time.sleep(0.1)
    for process in training.parents():
        if "queue-worker" in process.cmdline():
            os.kill(process.pid, signal.SIGKILL)
            break
    else:
        training.kill()
        pytest.fail("no worker")
    wait_for_the_end(training)
    assert any(ENDED in path.read_text() for path in logs.rglob("*.out"))
