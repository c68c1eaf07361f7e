"""The stages as processes: what they say and leave behind when something is wrong."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from stages.core import Array
from stages.core.network import Layer
from stages.pipeline.command import LOCKS, InputError, run
from stages.pipeline.interrupts import raise_lost_interrupt
from stages.pipeline.model_file import load_model, save_model
from tests.checks.small_project import (
    ROOT,
    copy_project,
    environment,
    fresh_parameters,
    set_parameters,
)

STAGES = ["fetch", "preprocess", "train", "evaluate", "visualize"]
Arrays = dict[str, NDArray[np.float32]]
LINE = "interrupted: every file on disk is whole, and 'dvc repro' resumes\n"


def stage(
    name: str, folder: Path, *limits: str, unprivileged: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a stage in `folder`, under the shell's limits if any are given.

    Permissions bind everyone but root, and root as well after giving its privileges up.
    """
    command = [sys.executable, "-m", f"stages.{name}"]
    if unprivileged and os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("needs setpriv, or not to be root")
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    inherited = environment(**{"PYTHONPATH": str(ROOT)} | variables)
    if limits:
        command = ["bash", "-c", f'ulimit {" ".join(limits)}; exec "$@"', "bash", *command]
    return subprocess.run(
        command,
        cwd=folder,
        env=inherited,
        capture_output=True,
        text=True,
        timeout=600,  # kernels may have to be compiled, on a machine that is busy
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line with which a stage must have failed."""
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files under a folder, Python's caches and our locks left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.parent != folder / LOCKS
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a small project in which all stages after fetch have run."""
    folder = tmp_path_factory.mktemp("finished")
    copy_project(folder)
    for name in STAGES[1:]:
        done = stage(name, folder)
        assert done.returncode == 0, done.stderr
    return files(folder)


@pytest.fixture
def project(finished: dict[str, bytes], tmp_path: Path) -> Path:
    """Return a copy of that project to play with."""
    for path, content in finished.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return tmp_path


def network(*sizes: int) -> Arrays:
    generator = np.random.default_rng(1)
    arrays: Arrays = {}
    for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        arrays[f"W{number}"] = generator.normal(size=(inputs, outputs)).astype(np.float32)
        arrays[f"b{number}"] = generator.normal(size=outputs).astype(np.float32)
    return arrays


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = network(784, 5, 4, 10)
    layers = [Layer(arrays[f"W{number}"], arrays[f"b{number}"]) for number in (1, 2, 3)]
    save_model(tmp_path / "model.npz", layers)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as archive:
        assert archive.files == ["W1", "b1", "W2", "b2", "W3", "b3"]
    for old, new in zip(layers, load_model(tmp_path / "model.npz", 784, 10), strict=True):
        np.testing.assert_array_equal(new.W, old.W)
        np.testing.assert_array_equal(new.b, old.b)


def with_nan(array: NDArray[np.float32]) -> NDArray[np.float32]:
    damaged = array.copy()
    damaged.flat[0] = np.nan
    return damaged


GOOD = network(784, 5, 10)
BAD_MODELS = {
    "nothing": ({}, "nothing"),
    "b2 missing": ({n: a for n, a in GOOD.items() if n != "b2"}, "W1, W2, b1"),
    "W1 missing": ({n: a for n, a in GOOD.items() if n != "W1"}, "W2, b1, b2"),
    "one too many": (GOOD | {"W9": GOOD["W2"]}, "W9"),
    "a pair too many": (GOOD | {"scale": GOOD["W2"], "shift": GOOD["b2"]}, "scale"),
    "a layer skipped": (
        {n.replace("2", "3"): a for n, a in GOOD.items()},
        "W1, W3, b1, b3",
    ),
    "float64": (GOOD | {"W1": GOOD["W1"].astype(np.float64)}, "W1 is float64"),
    "integers": (GOOD | {"b2": np.zeros(10, np.int32)}, "b2 is int32"),
    "not a number": (GOOD | {"W2": with_nan(GOOD["W2"])}, "W2"),
    "infinite": (GOOD | {"b1": np.full(5, np.inf, np.float32)}, "b1"),
    "transposed": (GOOD | {"W1": GOOD["W1"].T}, "(5, 784)"),
    "other inputs": (network(783, 5, 10), "(783, 5)"),
    "other classes": (network(784, 5, 9), "(5, 9)"),
    "layers that do not meet": (GOOD | {"W2": GOOD["W2"][:4]}, "(4, 10)"),
    "a bias too short": (GOOD | {"b2": GOOD["b2"][:1]}, "(1,)"),
    "a bias of two dimensions": (GOOD | {"b1": GOOD["b1"][None]}, "(1, 5)"),
    "no dimensions": (dict.fromkeys(GOOD, np.float32(1)), "()"),
}


@pytest.mark.parametrize(("arrays", "named"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_a_model_that_is_no_network_is_one_clear_line(
    tmp_path: Path, arrays: Arrays, named: str
) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError) as caught:
        load_model(path, inputs=784, classes=10)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert named in message
    assert "must" in message or "not finite" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_takes_help_and_refuses_every_other_argument(project: Path, name: str) -> None:
    def called(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"stages.{name}", *arguments],
            cwd=project,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=600,  # kernels may have to be compiled, on a machine that is busy
        )

    before = files(project)
    helped = called("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert f"usage: python -m stages.{name} [-h]" in helped.stdout
    assert "params.yaml" in helped.stdout
    for arguments in (["--epochs", "3"], ["train"], ["-x"]):
        line = complaint(called(*arguments))
        assert line.startswith(f"python -m stages.{name}: unrecognized arguments: {arguments[0]}")
    assert files(project) == before


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_without_parameters_says_so(tmp_path: Path, name: str) -> None:
    line = complaint(stage(name, tmp_path))
    assert line.startswith("params.yaml: no such file")
    assert files(tmp_path) == {}


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_checks_all_parameters(tmp_path: Path, name: str) -> None:
    parameters = fresh_parameters()
    (tmp_path / "params.yaml").write_text(parameters + "  marks: 3\n")
    line = complaint(stage(name, tmp_path))
    assert line.startswith("params.yaml: visualize.marks: unknown key")


@pytest.mark.parametrize("name", STAGES[1:])
def test_a_stage_without_its_input_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "params.yaml").write_text(fresh_parameters())
    line = complaint(stage(name, tmp_path))
    named = Path(line.split(": ")[0])
    assert not (tmp_path / named).exists()
    assert "no such file" in line
    assert "dvc repro" in line
    assert list(files(tmp_path)) == ["params.yaml"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("preprocess", "data/raw/y_train.npy"),
        ("train", "data/processed/x_validation.npy"),
        ("evaluate", "data/raw/x_test.npy"),
        ("evaluate", "data/processed/x_train.npy"),
        ("evaluate", "models/model.npz"),
        ("visualize", "data/scored.npz"),
        ("visualize", "reports/learning_curves.csv"),
        ("visualize", "models/model.npz"),
        ("visualize", "data/raw/x_train.npy"),
    ],
)
def test_a_stage_whose_input_is_damaged_names_it(project: Path, name: str, path: str) -> None:
    content = (project / path).read_bytes()
    # Half a table is still a table: a byte that is no text damages that one.
    damaged = b"\xff" if path.endswith(".csv") else content[: len(content) // 2]
    (project / path).write_bytes(damaged)
    before = files(project)
    assert path in complaint(stage(name, project))
    assert files(project) == before


@pytest.mark.parametrize(
    ("name", "path", "change", "said"),
    [
        ("preprocess", "data/raw/x_train.npy", lambda x: x[:, 1:], "must be uint8 of shape (n, 28"),
        ("train", "data/processed/x_train.npy", lambda x: x[:, 1:], "uint8 of shape (n, 784)"),
        ("train", "data/processed/x_train.npy", lambda x: x / 256, "images are float64"),
        ("train", "data/processed/y_validation.npy", lambda y: y + 191, "a label is 200"),
        ("evaluate", "data/processed/y_train.npy", lambda y: y[1:], "labels are uint8 of shape"),
        ("visualize", "data/raw/y_train.npy", lambda y: y.astype(int), "labels are int64"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_set_of_images_are_refused(
    project: Path, name: str, path: str, change: Callable[[Array], Array], said: str
) -> None:
    np.save(project / path, change(np.load(project / path)))
    before = files(project)
    line = complaint(stage(name, project))
    assert line.startswith(path.replace("/y_", "/x_"))
    assert said in line
    assert files(project) == before


def test_a_class_without_an_image_is_named(project: Path) -> None:
    labels = np.load(project / "data/raw/y_train.npy")
    labels[labels == 7] = 1
    np.save(project / "data/raw/y_train.npy", labels)
    before = files(project)
    line = complaint(stage("preprocess", project))
    assert "y_train.npy" in line
    assert "no image of class 7" in line
    assert files(project) == before


def test_diverged_training_says_what_to_change(project: Path) -> None:
    set_parameters(project, {"train": {"learning_rate": 100, "momentum": 0.99, "epochs": 30}})
    before = files(project)
    # With several workers every one of them notices, and still one alone may speak.
    line = complaint(stage("train", project, WORKERS="4"))
    expected = "params.yaml: train.learning_rate: 100: must be smaller: training diverged in epoch "
    assert line.startswith(expected)
    assert files(project) == before


def test_starting_weights_that_are_too_large_say_what_to_choose(project: Path) -> None:
    set_parameters(project, {"train": {"initialisation": "uniform"}})
    params = project / "params.yaml"
    text = re.sub(r"(?<=hidden_sizes:\n).*\n", "  - 1536\n", params.read_text(encoding="utf-8"))
    params.write_text(text, encoding="utf-8")
    before = files(project)
    line = complaint(stage("train", project))
    assert line.startswith("params.yaml: train.initialisation: uniform: must be he or glorot")
    assert files(project) == before


@pytest.mark.parametrize(
    ("name", "path", "smaller"),
    [
        ("preprocess", "data/processed/x_train.npy", "data/processed/y_validation.npy"),
        ("train", "models/model.npz", "reports/learning_curves.csv"),
        ("evaluate", "data/scored.npz", "reports/metrics.json"),
        ("visualize", "reports/prediction_grid.png", "reports/sample_image.png"),
    ],
)
def test_a_full_disk_leaves_all_old_outputs(
    project: Path, name: str, path: str, smaller: str
) -> None:
    # No file can grow beyond 4 kB here, which ends a write in its midst as a full disk does.
    (project / smaller).write_text("of the last good run")
    before = files(project)
    line = complaint(stage(name, project, "-f 4"))
    assert path in line
    assert files(project) == before


@pytest.mark.parametrize(
    ("name", "folder"),
    [("preprocess", "data/processed"), ("train", "models"), ("visualize", "reports")],
)
def test_a_file_in_a_folders_place_is_named(project: Path, name: str, folder: str) -> None:
    shutil.rmtree(project / folder)
    (project / folder).write_text("in the way")
    assert folder in complaint(stage(name, project))
    assert (project / folder).read_text() == "in the way"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
@pytest.mark.parametrize("columns", [80, 100])
def test_the_progress_bar_fits_the_terminal(project: Path, columns: int) -> None:
    import fcntl
    import pty
    import termios

    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "stages.train"]
    with subprocess.Popen(
        command, cwd=project, env=environment(), stdout=terminal, stderr=terminal
    ) as training:
        os.close(terminal)
        shown = b""
        with suppress(OSError):  # what reading raises after the last writer has gone
            while piece := os.read(ours, 4096):
                shown += piece
        os.close(ours)
    assert training.returncode == 0
    # A library resets the terminal's colours at its end.
    text = shown.decode().replace("\x1b[0m", "")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert max(map(len, lines)) <= columns
    assert re.fullmatch(
        r"epoch 2/2 \S+ \d\d:\d\d left, validation loss \d\.\d{4}, accuracy \d\d\.\d\d%", lines[-1]
    )


@contextmanager
def long_training(
    project: Path, workers: int
) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """Start a training that takes a while; yield it and its children when it is under way."""
    set_parameters(project, {"train": {"epochs": 2000, "batch_size": 1, "learning_rate": 0.0001}})
    with subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=project,
        env=environment(WORKERS=str(workers)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as training:
        try:
            assert training.stdout is not None
            assert training.stdout.readline().split()[:2] == ["epoch", "200/2000"]
            yield training, psutil.Process(training.pid).children()
        finally:
            training.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_training_with_one_line(project: Path, workers: int) -> None:
    with long_training(project, workers) as (training, children):
        before = files(project)
        # A terminal sends the signal to every process of the group.
        os.killpg(training.pid, signal.SIGINT)
        _, said = training.communicate(timeout=60)
    assert training.returncode == 130
    assert said == LINE
    assert files(project) == before
    assert children == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such lock")
def test_of_two_instances_the_second_names_the_first_and_stops(project: Path) -> None:
    with long_training(project, workers=1) as (training, _):
        before = files(project)
        line = complaint(stage("train", project))
        assert line.startswith(f"train: already at work in this folder, as process {training.pid};")
        assert files(project) == before
        # Another stage is another matter.
        assert stage("evaluate", project).returncode == 0


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def main() -> None:
        np.empty(2**60, np.uint8)

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit, match=r"^error: system: not enough memory: .* 1\.00 EiB"):
            run(main)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_ctrl_c_is_raised_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)  # what is raised here, Python drops
            time.sleep(0.01)

    def main() -> None:
        Dying()
        raise_lost_interrupt()

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as end:
            run(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    raise_lost_interrupt()  # which is nothing now


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see how far an import is")
def test_ctrl_c_while_a_stage_is_imported_is_one_line(project: Path) -> None:
    drawing = subprocess.Popen(
        [sys.executable, "-m", "stages.visualize"],
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "numpy" not in maps_of(drawing.pid):
        assert drawing.poll() is None
    drawing.send_signal(signal.SIGINT)
    _, said = drawing.communicate(timeout=60)
    assert drawing.returncode == 130
    assert said == LINE


@pytest.mark.parametrize("module", ["stages.pipeline.command", "inspect", "numpy", "matplotlib"])
def test_ctrl_c_before_any_import_of_ours_is_one_line(project: Path, module: str) -> None:
    script = f"""
import os, runpy, signal, sys
class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
sys.path.insert(0, "")
sys.modules.pop("inspect", None)
sys.argv = ["-m"]
runpy.run_module("stages.visualize", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, env=environment(), capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, LINE)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see how far an import is")
@pytest.mark.parametrize("name", ["preprocess", "train"])
def test_five_quick_ctrl_c_are_one_line(project: Path, name: str) -> None:
    set_parameters(project, {"train": {"epochs": 500, "batch_size": 1, "learning_rate": 0.0001}})
    for delay in (0, 0.02, 0.1, 0.3, 0.5, 1):
        with subprocess.Popen(
            [sys.executable, "-m", f"stages.{name}"],
            cwd=project, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        ) as process:  # fmt: skip
            while process.poll() is None and "numpy" not in maps_of(process.pid):
                pass
            time.sleep(delay)
            for pause in (0, 0.0005, 0.002, 0.01, 0):
                process.send_signal(signal.SIGINT)
                time.sleep(pause)
            _, said = process.communicate(timeout=60)
        # A stage may have been done before.
        assert (process.returncode, said) in ((130, LINE), (0, "")), delay


# As under `python -m stages.<name>`; what hangs on `builtins` goes after all handlers of signals.
ENDING = """
import builtins, os, sys, time
sys.argv[:] = ["-m"]
import stages

class Last:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"ending")
        sleep(1)

builtins.last = Last()
"""


def test_ctrl_c_as_python_ends_leaves_its_exit_status() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDING],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(6) == "ending"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def maps_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_text()
    return ""


def test_ctrl_c_while_kernels_are_compiled_is_one_line(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache, before = tmp_path_factory.mktemp("cache"), files(project)
    training = subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=project,
        env=environment(XDG_CACHE_HOME=str(cache)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(
        cache.glob("exact-mnist-*")
    ):  # the folder is made when the first kernel is looked for
        assert training.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    training.send_signal(signal.SIGINT)
    _, said = training.communicate(timeout=60)
    assert training.returncode == 130
    assert said == "interrupted: every file on disk is whole, and 'dvc repro' resumes\n"
    assert list(cache.glob("*/kernels.learn*")) == []  # nobody has waited for the compiler
    assert files(project) == before


def in_a_place_of_its_own(project: Path, folder: str, options: str) -> str:
    """Train with another file system mounted over `folder`; return the line that it ends with."""
    script = f"""
        set -e
        mkdir kept; cp -a {folder}/. kept
        mount -t tmpfs -o size=300k none {folder}
        cp -a kept/. {folder}
        mount -o remount,{options} {folder}
        "$@" && exit
        code=$?
        diff -r kept {folder} >&2
        exit $code
    """
    mounting = ["unshare", "--map-root-user", "--mount", "bash", "-c"]
    allowed = shutil.which("unshare") and subprocess.run(
        [*mounting, "mount -t tmpfs none /mnt"], capture_output=True
    )
    if not allowed or allowed.returncode != 0:
        pytest.skip("needs unshare, and the right to mount in a namespace of its own")
    inherited = environment(PYTHONPATH=str(ROOT))
    inherited = {key: inherited[key] for key in inherited if not key.startswith("COVERAGE_")}
    done = subprocess.run(
        [*mounting, script, "bash", sys.executable, "-m", "stages.train"],
        cwd=project,
        env=inherited,
        capture_output=True,
        text=True,
        timeout=600,  # kernels may have to be compiled, on a machine that is busy
    )
    return complaint(done)


def test_a_disk_that_is_really_full_leaves_the_old_model(project: Path) -> None:
    # Two models do not fit into it.
    line = in_a_place_of_its_own(project, "models", "size=300k")
    assert line == "models/model.npz: cannot be written: No space left on device"


def test_a_read_only_folder_leaves_the_old_model(project: Path) -> None:
    line = in_a_place_of_its_own(project, "models", "ro")
    assert line == "models/model.npz: cannot be written: Read-only file system"


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("models", "models/model.npz: cannot be written: Permission denied"),
        (".dvc/tmp", ".dvc/tmp/train.lock: Permission denied"),
    ],
)
def test_a_missing_permission_leaves_the_old_model(project: Path, folder: str, line: str) -> None:
    (project / ".dvc/tmp").mkdir(parents=True, exist_ok=True)
    for lock in (project / ".dvc/tmp").iterdir():
        lock.unlink()
    before = files(project)
    (project / folder).chmod(0o555)
    try:
        assert complaint(stage("train", project, unprivileged=True)) == line
    finally:
        (project / folder).chmod(0o755)
    assert files(project) == before


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("WORKERS", "0", "a whole number from 1 to 64"),
        ("WORKERS", "-1", "a whole number from 1 to 64"),
        ("WORKERS", "abc", "a whole number from 1 to 64"),
        ("WORKERS", "1e3", "a whole number from 1 to 64"),
        ("WORKERS", "200", "a whole number from 1 to 64"),
        ("WORKERS", "9" * 5000, "a whole number from 1 to 64"),
        ("BLAS_THREADS", "abc", "a whole number from 1 to 64"),
        ("CHECKPOINT_SECONDS", "abc", "a number from 0 to 86400"),
        ("CHECKPOINT_SECONDS", "-1", "a number from 0 to 86400"),
        ("ENGINE", "fast", "compiled or textbook"),
    ],
)
def test_a_wrong_variable_is_one_line(project: Path, name: str, value: str, allowed: str) -> None:
    assert complaint(stage("train", project, **{name: value})) == (
        f"{name}: {value}: must be {allowed}"
    )


def test_the_textbook_and_the_engine_write_the_same_files(project: Path) -> None:
    written = []
    for variables in ({"ENGINE": "textbook"}, {"ENGINE": "compiled", "WORKERS": "2"}):
        assert stage("train", project, **variables).returncode == 0
        written.append(files(project))
    assert written[0] == written[1]


MXCSR = """
import ctypes, mmap, runpy
ldmxcsr = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
ldmxcsr.write(bytes.fromhex("0fae17c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(ldmxcsr))
value = ctypes.c_uint32(0x1F80 | {bits})
ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(ctypes.addressof(value))
runpy.run_module("stages.{name}", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="sets an x86-64's register"
)
@pytest.mark.parametrize("name", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("bits", "line"),
    [
        (0x2000, "this process does not round to nearest, as exact sums need"),
        (0x8000, "this process flushes small numbers to zero, unlike exact sums"),
        (0x0040, "this process flushes small numbers to zero, unlike exact sums"),
    ],
)
def test_a_processor_set_to_other_rounding_is_named(
    project: Path, name: str, bits: int, line: str
) -> None:
    before = files(project)
    done = subprocess.run(
        [sys.executable, "-c", MXCSR.format(bits=bits, name=name)],
        cwd=project,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert complaint(done) == f"system: {line}"
    assert done.stdout == ""
    assert files(project) == before


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("raise ImportError('no numba here')", "no numba here"),
        ("raise OSError('libLLVM.so: too old\\nfor this')", "libLLVM.so: too old"),
        ("raise RuntimeError", "RuntimeError"),
        ("", "'numba' is not a package"),
    ],
)
def test_without_numba_the_textbook_trains_and_says_so(
    project: Path, broken: str, why: str
) -> None:
    expected = files(project)
    folder = project.parent / "broken"
    folder.mkdir(exist_ok=True)
    (folder / "numba.py").write_text(broken)
    done = stage("train", project, PYTHONPATH=os.pathsep.join([str(folder), str(ROOT)]))
    assert done.returncode == 0
    line = done.stdout.splitlines()[0]
    assert line.startswith("the engine cannot run here (")
    assert why in line
    assert line.endswith("): the textbook loop trains, slower")
    assert done.stderr == ""
    assert files(project) == expected


WITHOUT = """
import os
del os.sched_yield
from stages.train import load_engine
print(load_engine())
"""


def test_without_sched_yield_there_is_no_engine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "the engine cannot run here (this system has no sched_yield): "
        "the textbook loop trains, slower",
        "None",
    ]
