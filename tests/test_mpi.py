"""One training over MPI: the textbook's and the engine's bytes with any number of ranks."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from test_stages import files, stage
from test_training import SIMPLE, digits

from stages.core import training as textbook
from stages.core.augmentation import GROUP, Augmentation, augment
from stages.core.config import TrainConfig
from stages.core.state import State
from stages.core.training import Epoch
from stages.pipeline.checkpoint import CHECKPOINT
from stages.pipeline.interrupts import INTERRUPTED
from tests.checks.small_project import (
    ROOT,
    copy_project,
    environment,
    isolated,
    set_parameters,
)

MPIEXEC = str(Path(sys.executable).with_name("mpiexec"))

# `make test` installs MPI, so CI never skips.
needs_mpi = pytest.mark.skipif(
    not (importlib.util.find_spec("mpi4py") and Path(MPIEXEC).exists()),
    reason="needs MPI: make .venv/.mpi",
)

AUGMENTED = Augmentation(10.0, 0.1, 0.1, 1.0, elastic=10.0, smoothness=2.0, thickness=1.0)
BASE = replace(SIMPLE, epochs=2, learning_rate=0.02)
CONFIGS = {
    "all at once": replace(
        BASE, hidden_sizes=[12, 9], dropout=0.3, augmentation=AUGMENTED, l2=0.01,
        optimizer="adam", learning_rate=0.002, ema_decay=0.9, label_smoothing=0.1, keep="best",
        batch_size=70,
    ),
    "micro-batches of 300 and 25": replace(BASE, batch_size=600, dropout=0.2),
    "the whole set": replace(
        BASE, batch_size="all", optimizer="nesterov", weight_decay=0.1, schedule="one_cycle",
        augmentation=AUGMENTED,
    ),
    "fewer images than ranks": replace(BASE, batch_size=3, epochs=1, augmentation=AUGMENTED),
}  # fmt: skip
TRAIN, VALIDATION = digits(625, seed=1), digits(101, seed=2)


def digest(config: TrainConfig, loop: str, ranks: object = None) -> str:
    """Return a digest of all that a loop shows: parameters, curves and each epoch's state."""
    found = hashlib.sha256()

    def on_state(state: State) -> None:
        for layer in (*state.kept, *(layer for network in state.networks for layer in network)):
            found.update(layer.W.tobytes() + layer.b.tobytes())
        plain = state.epoch, state.step, state.best_accuracy, list(map(float, state.weight_quanta))
        found.update(repr(plain).encode())

    def on_epoch(epoch: Epoch) -> None:
        found.update(repr(tuple(map(float, epoch))).encode())

    if loop == "engine":
        from stages.engine.training import Training  # imports Numba, which ranks need not

        engine = Training(TRAIN, VALIDATION, config, threads=2)
        kept = engine.run(on_epoch, lambda: True, on_state)
    else:
        arithmetic = None
        if loop == "mpi":
            from tools.mpi import Distributed

            arithmetic = Distributed(len(config.hidden_sizes) + 1, ranks)
        kept = textbook.train(TRAIN, VALIDATION, config, on_epoch, arithmetic, on_state=on_state)
    for layer in kept:
        found.update(layer.W.tobytes() + layer.b.tobytes())
    return found.hexdigest()


def print_digests() -> None:
    """Print the digests that a rank finds, which must be every rank's."""
    from mpi4py import MPI

    found = {name: digest(config, "mpi", MPI.COMM_WORLD) for name, config in CONFIGS.items()}
    assert MPI.COMM_WORLD.allgather(found) == [found] * MPI.COMM_WORLD.size
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(found))


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    return {name: digest(config, "textbook") for name, config in CONFIGS.items()}


def test_the_engine_passes_through_the_textbooks_states(expected: dict[str, str]) -> None:
    assert {name: digest(config, "engine") for name, config in CONFIGS.items()} == expected


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_any_number_of_ranks_gives_the_textbooks_bytes(
    ranks: int, expected: dict[str, str]
) -> None:
    done = subprocess.run(
        [
            MPIEXEC,
            "-n",
            str(ranks),
            sys.executable,
            "-c",
            "import test_mpi as t; t.print_digests()",
        ],
        cwd=ROOT,
        env=environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")])),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_the_textbook_goes_on_from_any_of_its_states(name: str) -> None:
    config = replace(CONFIGS[name], epochs=3)
    states, curves = [], []

    def on_state(state: State) -> None:  # its arrays change with the next step
        networks = [
            [type(layer)(layer.W.copy(), layer.b.copy()) for layer in network]
            for network in state.networks
        ]
        states.append(state._replace(networks=networks))

    whole = textbook.train(TRAIN, VALIDATION, config, curves.append, on_state=on_state)
    for state in states:
        rest: list[Epoch] = []
        layers = textbook.train(TRAIN, VALIDATION, config, rest.append, resume=state)
        assert [values.tobytes() for layer in layers for values in layer] == [
            values.tobytes() for layer in whole for values in layer
        ]
        assert rest == curves[state.epoch :]


def test_some_rows_are_augmented_as_among_all() -> None:
    images = digits(1500, seed=3)[0]
    whole = augment(images, AUGMENTED, [1, 2])
    rows = np.array([0, 5, GROUP - 1, GROUP, 700, 1024, 1499])
    np.testing.assert_array_equal(augment(images, AUGMENTED, [1, 2], rows)[rows], whole[rows])


# ---- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small project that the train stage has trained."""
    project = tmp_path_factory.mktemp("trained")
    copy_project(project)
    set_parameters(project, {"train": {"epochs": 12, "dropout": 0.1}})
    for name in ("preprocess", "train"):
        assert stage(name, project).returncode == 0
    return project


@pytest.fixture
def project(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of it without the result."""
    copy = tmp_path / "project"
    shutil.copytree(trained, copy)
    (copy / "models/model.npz").unlink()
    (copy / "reports/learning_curves.csv").unlink()
    return copy


@contextmanager
def started(project: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command, and end it if the test fails."""
    with subprocess.Popen(
        [sys.executable, "-m", "tools.mpiexec", *arguments],
        cwd=project,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()


def run(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.mpiexec", *arguments],
        cwd=project,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.cmdline()[1:] == ["-m", "tools.mpi"]]


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for_checkpoint(project: Path, process: subprocess.Popen[str]) -> None:
    while not (project / CHECKPOINT).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@needs_mpi
def test_it_writes_the_stages_files_and_dvc_takes_them_as_its_result(
    trained: Path, project: Path
) -> None:
    done = run(project, "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("epoch    2/12  train loss ")
    assert files(project) == files(trained)

    def command(*words: str) -> str:
        return subprocess.run(
            words, cwd=project, env=isolated(project), check=True, capture_output=True, text=True
        ).stdout

    command("git", "init", "--quiet")
    command("dvc", "commit", "--quiet", "--force", "train")
    assert "train" not in json.loads(command("dvc", "status", "--json", "train") or "{}")


@needs_mpi
@pytest.mark.parametrize("rank", [0, 2])
def test_one_rank_killed_ends_all_and_another_number_of_ranks_goes_on(
    trained: Path, project: Path, rank: int
) -> None:
    with started(project, "3", CHECKPOINT_SECONDS="0") as process:
        wait_for_checkpoint(project, process)
        ranks = sorted(ranks_of(process), key=lambda child: child.pid)
        assert len(ranks) == 3
        ranks[rank].kill()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        (line,) = said.splitlines()
        assert line.startswith("error: a rank was lost: Killed (signal 9); ")
        assert not [child for child in ranks if alive(child)]
    assert not (project / "models/model.npz").exists()
    done = run(project, "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{CHECKPOINT}: going on after epoch ")
    assert files(project) == files(trained)


@needs_mpi
def test_ctrl_c_is_one_line_and_leaves_no_process(project: Path) -> None:
    with started(project, "2", CHECKPOINT_SECONDS="0") as process:
        wait_for_checkpoint(project, process)
        ranks = ranks_of(process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (130, f"{INTERRUPTED}\n")
        assert not [child for child in ranks if alive(child)]


@needs_mpi
@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"learning_rate": 100.0}, "params.yaml: train.learning_rate: 100: must be smaller: "),
        ({"learning_rate": -1.0}, "params.yaml: train.learning_rate: "),
        ({"initialisation": "uniform", "units": 1536}, "params.yaml: train.initialisation: "),
    ],
)
def test_wrong_parameters_are_one_line_of_all_ranks(
    project: Path, parameters: dict[str, object], line: str
) -> None:
    # Units too many for the notebook's initial weights are a line of the block `hidden_sizes`.
    units = parameters.get("units", 64)
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("  - 64\n", f"  - {units}\n"))
    set_parameters(project, {"train": parameters})
    done = run(project, "3")
    assert done.returncode == 1
    assert [said[: len(line) + 7] for said in done.stderr.splitlines()] == [f"error: {line}"]


@needs_mpi
def test_a_rank_with_other_code_is_refused(project: Path) -> None:
    other = project.parent / "other"
    shutil.copytree(project, other)
    with (other / "stages/core/network.py").open("a") as file:
        file.write("# changed\n")
    program = [sys.executable, "-m", "tools.mpi"]
    done = subprocess.run(
        [MPIEXEC, "-n", "1", *program, ":", "-wdir", str(other), "-n", "1", *program],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: rank 1: the code on host ")
    assert not (project / "models/model.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("0",), "RANKS: 0: must be a whole number from 1 to 1024"),
        (("9" * 5000,), f"RANKS: {'9' * 5000}: must be a whole number from 1 to 1024"),
        (("abc",), "RANKS: abc: must be a whole number from 1 to 1024"),
        (("2", "nowhere"), "HOSTS: nowhere: no such file; must have 'host:ranks' lines"),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    done = run(tmp_path, *arguments, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (1, f"error: {line}\n")
