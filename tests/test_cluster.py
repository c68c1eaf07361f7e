"""`make study CLUSTER=...`: real schedulers and workers on 127.0.0.1, and what can befall them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from stages.pipeline.command import InputError
from stages.pipeline.interrupts import INTERRUPTED
from tests.checks.small_project import ROOT, copy_project, environment, isolated
from tools import cluster, grid
from tools.recipe import load_recipe

SIMARD = yaml.safe_load((ROOT / "recipes.yaml").read_text(encoding="utf-8"))["simard"]
LONG = SIMARD | {"hidden_sizes": [32], "batch_size": 50, "epochs": 100, "learning_rate": 0.01}
LONG["augmentation"] = SIMARD["augmentation"] | {"elastic": 0.0}
STUDIES = "reports/studies.json"
DEADLINE = 600  # seconds: whatever else the machine does, nothing hangs for ever


class Process:
    """A module that runs in a project, with what it has printed so far."""

    def __init__(self, project: Path, log: Path, module: str, *arguments: str) -> None:
        self.log = log
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=project,
                env=environment(WORKERS="1", DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="5s"),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def until(self, pattern: str) -> str:
        """Wait until it has printed what the pattern finds, and return that."""
        return wait_for(lambda: (found := re.search(pattern, self.output)) and found[0], self)

    def ended(self) -> tuple[int, str]:
        """Wait for its end; return the exit status and the last line."""
        status = self.popen.wait(DEADLINE)
        return status, (self.output.splitlines() or [""])[-1]


def wait_for(condition: Callable[[], Any], process: Process) -> Any:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(process.output)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=isolated(folder), check=True, capture_output=True,
        text=True,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a committed project with the small data set, in which three seeds were studied."""
    project = tmp_path_factory.mktemp("cluster") / "origin"
    copy_project(project)
    (project / "recipes.yaml").write_text(json.dumps({"long": LONG}))
    git(project, "init", "--quiet")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "a project")
    for command in (["stages.preprocess"], ["tools.study", "long", "3"]):
        subprocess.run(
            [sys.executable, "-m", *command], cwd=project, env=environment(WORKERS="1"),
            check=True, capture_output=True, timeout=DEADLINE,
        )  # fmt: skip
    return project


@pytest.fixture
def project(origin: Path, tmp_path: Path) -> Path:
    """Return a copy of it without the study's results."""
    project = shutil.copytree(origin, tmp_path / "project")
    shutil.rmtree(project / "reports")
    return project


@pytest.fixture
def clone(origin: Path, tmp_path: Path) -> Path:
    """Return a clone of it, which has no data."""
    git(tmp_path, "clone", "--quiet", str(origin), "clone")
    assert not list((tmp_path / "clone/data").rglob("*.npy"))
    return tmp_path / "clone"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Return what starts a module in a project; all that it started is gone after the test."""
    started: list[Process] = []

    def start(project: Path, module: str, *arguments: str) -> Process:
        log = tmp_path / f"{len(started)}.log"
        started.append(Process(project, log, module, *arguments))
        return started[-1]

    yield start
    for process in started:
        for left in session(process):
            left.kill()
        process.popen.wait(DEADLINE)


def session(process: Process) -> list[psutil.Process]:
    """Return the processes that a process has left behind, itself among them."""
    found = []
    for other in psutil.process_iter():
        try:
            mine = os.getsid(other.pid) == process.popen.pid
            if mine and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
        except (OSError, psutil.Error):
            continue
    return found


def scheduler(start: Callable[..., Process], folder: Path) -> tuple[Process, str]:
    """Start a scheduler as anyone would, outside any clone; return it and its address."""
    process = start(folder, "distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=0",
                    "--no-dashboard")  # fmt: skip
    return process, process.until(r"tcp://127.0.0.1:\d+")


def test_a_killed_worker_and_a_foreign_one_change_no_byte(
    origin: Path, project: Path, clone: Path, tmp_path: Path, start: Callable[..., Process]
) -> None:
    _, address = scheduler(start, tmp_path)
    foreign = shutil.copytree(clone, tmp_path / "foreign")
    (foreign / "README.md").write_text("another\n")
    git(foreign, "commit", "--quiet", "-a", "-m", "another")
    workers = [start(folder, "tools.worker", address) for folder in (foreign, clone, clone)]
    for worker in workers:
        worker.until("joined")
    study = start(project, "tools.study", f"--cluster={address}", "long", "3")

    status, line = workers[0].ended()
    assert status == 1
    ours, theirs = (git(folder, "rev-parse", "HEAD")[:12] for folder in (project, foreign))
    assert re.fullmatch(rf"error: tcp://\S+: commit {theirs}: must be {ours}, the study's", line)
    assert f"worker refused: {line.removeprefix('error: ')}\n" in study.output

    workers[1].until("epoch +10/100")
    workers[1].popen.kill()
    status, _ = study.ended()
    assert status == 0, study.output
    assert re.search(r"long: seed \d: its worker tcp://\S+ is gone; \d of 3 done", study.output)
    assert "3 of 3 done, 0 running, 0 failed\n" in study.output
    assert (project / STUDIES).read_bytes() == (origin / STUDIES).read_bytes()
    times = json.loads((project / "reports/study_times.json").read_text())["long"]
    assert times  # all but that of a seed that was resumed
    assert times.keys() <= {"1", "2", "3"}


def test_a_lost_scheduler_ends_all_with_one_line_and_keeps_the_finished_seeds(
    origin: Path, project: Path, clone: Path, tmp_path: Path, start: Callable[..., Process]
) -> None:
    server, address = scheduler(start, tmp_path)
    study = start(project, "tools.study", f"--cluster={address}", "long", "50")
    study.until("no worker yet: 'make worker SCHEDULER=tcp://")
    worker = start(clone, "tools.worker", address)  # it may come late
    study.until("1 of 50 done, 1 running")
    worker.popen.send_signal(signal.SIGINT)
    assert worker.ended()[0] == 130
    study.until("is gone; 1 of 50 done, 0 running, 0 failed")
    worker = start(clone, "tools.worker", address)
    study.until("2 of 50 done, 1 running")
    server.popen.kill()
    status, line = study.ended()
    assert status == 1
    done = re.search(r": the scheduler is lost: (\d+) of 50 seeds are kept, and the same", line)
    assert done, study.output
    assert line.startswith(f"error: CLUSTER: {address}: ")
    assert "Traceback" not in study.output
    found = json.loads((project / STUDIES).read_text())["long"]["results"]
    assert len(found) == int(done[1])
    assert found[0] == json.loads((origin / STUDIES).read_text())["long"]["results"][0]
    assert worker.ended() == (0, f"the scheduler at {address} has ended")


def test_the_only_worker_is_replaced_and_ctrl_c_leaves_no_process(
    origin: Path, project: Path, start: Callable[..., Process]
) -> None:
    study = start(project, "tools.study", "--cluster=local:1", "long", "3")
    study.until("0 of 3 done, 1 running")
    (worker,) = (
        child
        for child in psutil.Process(study.popen.pid).children()
        if "spawn_main" in "".join(child.cmdline())
    )
    time.sleep(1)
    worker.kill()  # and with it all copies of the images
    study.until("its worker tcp://127.0.0.1:.* is gone")
    study.until("1 of 3 done, 1 running")
    os.killpg(study.popen.pid, signal.SIGINT)  # as a terminal does
    assert study.ended() == (130, INTERRUPTED)
    wait_for(lambda: not session(study), study)
    assert "Traceback" not in study.output
    results = json.loads((project / STUDIES).read_text())["long"]["results"]
    assert results == json.loads((origin / STUDIES).read_text())["long"]["results"][: len(results)]


def test_a_worker_with_changed_code_is_refused(clone: Path, start: Callable[..., Process]) -> None:
    with (clone / "requirements.lock").open("a") as file:
        file.write("# another\n")
    status, line = start(clone, "tools.worker", "tcp://127.0.0.1:9").ended()
    assert status == 1
    assert line.startswith("error: requirements.lock: differs from commit ")


@pytest.mark.parametrize("name", ["local:0", "local:many", "host:8786", "tcp://host"])
def test_what_is_no_cluster_is_refused(name: str) -> None:
    nothing = np.zeros(0)
    with pytest.raises(InputError) as refusal:
        cluster.train(name, [], ((nothing, nothing),) * 3, pytest.fail, pytest.fail)
    assert str(refusal.value).startswith(f"CLUSTER: {name}: must be local:N for 1 to 64 workers")


def test_a_grid_has_one_name_for_each_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe("simard")
    setting = "train.epochs=30,6e1 train.learning_rate=0.1,2e-1,.1 train.hidden_sizes=[8,4],[16]"
    found = grid.combinations("simard", recipe, setting)
    assert list(found) == [
        f"simard train.hidden_sizes={sizes} train.learning_rate={rate} train.epochs={epochs}"
        for sizes in ("[8,4]", "[16]")
        for rate in ("0.1", "0.2")
        for epochs in (30, 60)
    ]
    last = list(found.values())[-1].train
    assert (last.hidden_sizes, last.learning_rate, last.epochs) == ([16], 0.2, 60)
    assert last.momentum == SIMARD["momentum"]
    assert grid.combinations("simard", recipe, "") == {"simard": recipe}


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("train.seed=1,2", "SET: train.seed: must be one of train.hidden_sizes, "),
        ("preprocess.seed=1", "SET: preprocess.seed: must be one of train.hidden_sizes, "),
        ("train.epochs", "SET: train.epochs: must be train.epochs=VALUE,VALUE,..., once"),
        ("train.epochs=1 train.epochs=2", "SET: train.epochs=2: must be train.epochs=VALUE,"),
        ("train.epochs=1,,2", "SET: train.epochs: '': must be a whole number from 1 to 10000"),
        ("train.epochs=1.5", "SET: train.epochs: 1.5: must be a whole number from 1 to 10000"),
        (
            f"train.epochs={','.join(map(str, range(1, 1002)))}",
            "SET: 1001 combinations: must be at most 1000",
        ),
    ],
)
def test_a_bad_grid_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, setting: str, line: str
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError) as refusal:
        grid.combinations("simard", load_recipe("simard"), setting)
    assert str(refusal.value).startswith(line)
