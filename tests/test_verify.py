from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.pipeline.datasets import DESCRIPTION, MNIST, save_description
from tests.checks import variations, verify
from tests.checks.machines import Machine, NoMachineError, other_python, output, simd_features
from tests.checks.small_project import ROOT, fresh_parameters, images_and_labels, set_parameters
from tests.checks.variations import UNCHANGED, VARIATIONS, StageFailedError, Variation, run_python

RECORDED = verify.Run(
    hashes={("train", "models/model.npz"): "a" * 32, ("evaluate", verify.METRICS): "b" * 32},
    metrics={"train.accuracy": 0.99, "test.accuracy": 0.98},
)
DIFFERENT = verify.Run(
    hashes=RECORDED.hashes | {("train", "models/model.npz"): "c" * 32},
    metrics={"train.accuracy": 0.99, "test.accuracy": 0.97},
    machine={"processor": "an unusual one"},
)


LOCK = """
schema: '2.0'
stages:
  fetch:
    cmd: python -m stages.fetch
    deps:
    - path: stages/fetch.py
      hash: md5
      md5: b123
    params:
      params.yaml:
        fetch.sources:
        - keras
    outs:
    - path: data/raw/x.npy
      hash: md5
      md5: a123
      size: 4
  train:
    cmd: python -m stages.train
    deps:
    - path: data/raw/x.npy
      hash: md5
      md5: a123
    params:
      params.yaml:
        train.epochs: 3
    outs:
    - path: models/model.npz
      hash: md5
      md5: abcd
    - path: reports/learning_curves.csv
      hash: md5
      md5: ef01
"""


def test_hashes_of_every_output_are_read_from_a_lock_file() -> None:
    assert verify.hashes_in(LOCK) == {
        ("fetch", "data/raw/x.npy"): "a123",
        ("train", "models/model.npz"): "abcd",
        ("train", "reports/learning_curves.csv"): "ef01",
    }


def test_inputs_are_parameters_and_what_no_stage_makes() -> None:
    assert verify.inputs_in(LOCK) == {
        ("fetch", "stages/fetch.py"): "b123",
        ("fetch", "fetch.sources"): ["keras"],
        ("train", "train.epochs"): 3,
    }


def run_main(
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    found: verify.Run | Exception,
    status: str = "",
) -> int:
    def pipeline(*_: object, **__: object) -> verify.Run:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(verify, "recorded", lambda: RECORDED)
    monkeypatch.setattr(verify, "pipeline", pipeline)
    monkeypatch.setattr(verify, "git", lambda *_, **__: status)
    monkeypatch.setattr(sys, "argv", ["verify.py", *arguments])
    return verify.main()


def test_identical_outputs_give_exit_code_0_and_a_table_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dataclasses.replace(DIFFERENT, hashes=RECORDED.hashes, metrics=RECORDED.metrics)
    assert run_main(monkeypatch, found=found) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "train        models/model.npz     aaaaaaaaaaaa aaaaaaaaaaaa yes" in lines
    assert "evaluate     reports/metrics.json bbbbbbbbbbbb bbbbbbbbbbbb yes" in lines
    assert not any("processor" in line for line in lines)


def test_one_different_output_gives_exit_code_1_and_tells_metrics_and_platform(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, found=DIFFERENT) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "train        models/model.npz     aaaaaaaaaaaa cccccccccccc NO" in lines
    assert "evaluate     reports/metrics.json bbbbbbbbbbbb bbbbbbbbbbbb yes" in lines
    assert "  test.accuracy: 0.98 0.97" in lines
    assert "  processor: an unusual one" in lines
    assert not any("train.accuracy" in line for line in lines)


@pytest.mark.parametrize("missing", [RECORDED, DIFFERENT])
def test_an_output_that_only_one_side_has_is_a_difference(
    missing: verify.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [RECORDED, dataclasses.replace(DIFFERENT, hashes=RECORDED.hashes)]
    less = dataclasses.replace(RECORDED, hashes=dict(list(RECORDED.hashes.items())[:1]))
    runs[missing is DIFFERENT] = less
    assert not verify.report(*runs)
    assert "none" in capsys.readouterr().out


def test_a_stale_commit_gives_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = dataclasses.replace(
        RECORDED, changed=" M dvc.lock\n", inputs={("train", "stages/core"): "1"}
    )
    assert run_main(monkeypatch, found=found) == 1
    said = capsys.readouterr().out
    assert " M dvc.lock" in said
    assert "  train: stages/core\nso the commit is stale" in said


def test_a_difference_names_the_inputs_that_differ_from_the_lock(
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = {("train", "stages/core"): "1", ("train", "train.epochs"): 60, ("fetch", "x"): "1"}
    new = old | {("train", "stages/core"): "2", ("train", "train.epochs"): 3}
    expected = dataclasses.replace(RECORDED, inputs=old)
    assert not verify.report(expected, dataclasses.replace(DIFFERENT, inputs=new))
    said = capsys.readouterr().out
    assert "not those of dvc.lock:\n  train: stages/core\n  train: train.epochs\n" in said
    assert "the commit is stale" in said

    assert not verify.report(expected, dataclasses.replace(DIFFERENT, inputs=old))
    said = capsys.readouterr().out
    assert "not those of dvc.lock:\n  none\n" in said
    assert "stale" not in said


def test_what_is_not_committed_is_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, found=RECORDED, status=" M params.yaml\n") == 0
    *_, title, path, _, verdict = capsys.readouterr().out.splitlines()
    assert title == "not verified, for it is not committed:"
    assert path == " M params.yaml"
    assert verdict == "identical: yes"


def test_a_failing_stage_gives_exit_code_1_and_what_it_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, found=StageFailedError("error: no network")) == 1
    assert "error: no network" in capsys.readouterr().out


def test_what_cannot_run_is_said_and_verifies_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--vary", "umask 077", found=NoMachineError("no apt")) == 1
    assert "umask 077: not run: no apt" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["no such thing", "emulated aarch64"])
def test_a_variation_that_the_pipeline_cannot_run_under_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "--vary", name, found=RECORDED)
    assert name in capsys.readouterr().err


def test_variations_have_different_names_and_really_differ() -> None:
    assert len({variation.name for variation in VARIATIONS}) == len(VARIATIONS)
    plain = dataclasses.asdict(UNCHANGED)
    for variation in VARIATIONS[1:]:
        assert variation.not_here or dataclasses.asdict(variation) | {"name": "unchanged"} != plain


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder ready to train in: 500 images, one epoch."""
    folder = tmp_path / "project"
    variations.copy_tree(ROOT / "stages", folder / "stages")
    (folder / "params.yaml").write_text(fresh_parameters())
    set_parameters(folder, {"train": {"epochs": 1, "batch_size": 50}})
    for part, name, shape in (
        ("processed", "train", (-1, 784)),
        ("processed", "validation", (-1, 784)),
        ("raw", "test", (-1, 28, 28)),
    ):
        images, labels = images_and_labels(500, seed=len(name))
        (folder / "data" / part).mkdir(parents=True, exist_ok=True)
        np.save(folder / "data" / part / f"x_{name}.npy", images.reshape(shape))
        np.save(folder / "data" / part / f"y_{name}.npy", labels)
    save_description(MNIST, folder / DESCRIPTION)
    return folder


def test_training_has_one_hash_under_cheap_variations(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["BLAS kernel: Prescott", "workers: 3"]
    chosen = variations.select(names, pytest.fail)
    assert variations.table(project, chosen, cache=tmp_path)
    rows = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith((*names, "un"))
    ]
    assert len(rows) == 1 + len(names)


def test_two_hashes_are_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    about = {"Python": "3", "numpy": "2", "BLAS": "a BLAS", "SIMD": "baseline"}

    def train(_: Path, variation: Variation, __: Path) -> variations.Result:
        return variations.Result(about, "engine", "a" * 64, variation.name, 0.5, 1.0)

    monkeypatch.setattr(variations, "train", train)
    assert variations.table(project, [UNCHANGED], cache=project)
    assert variations.table(project, [UNCHANGED, Variation("planted")], cache=project) is False


def test_variations_that_cannot_run_show_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    nowhere = Variation("nowhere", not_here="needs what nobody has")
    assert variations.table(project, [nowhere], cache=project) is None
    monkeypatch.setattr("sys.argv", ["variations.py", "--fast", "emulated aarch64"])
    assert variations.main() == 1
    assert capsys.readouterr().out.endswith("one hash: NO\n")


def test_a_copied_folder_has_its_empty_folders(tmp_path: Path) -> None:
    # Git knows no repository without .git/refs, which is empty in a clone of a detached commit.
    (tmp_path / "project/.git/refs").mkdir(parents=True)
    variations.copy_tree(tmp_path / "project", tmp_path / "copy")
    assert (tmp_path / "copy/.git/refs").is_dir()


def test_a_variation_reaches_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    code = "import os; print(os.environ['HOME'], os.environ['ALSO'], oct(os.umask(0)))"
    variation = Variation("", {"HOME": "{folder}/home"}, umask=0o027)
    machine = Machine(environment={"ALSO": "this"})
    said = run_python(["-c", code], folder, variation, machine)
    assert said.split() == [f"{tmp_path}/home", "this", "0o27"]


def test_an_interrupt_ends_all_processes(tmp_path: Path) -> None:
    grandchild = (
        "import os, time; print(os.getpid(), flush=True, file=open('pid', 'w')); time.sleep(60)"
    )
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    command = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tests.checks.variations import run_python
run_python(["-c", {child!r}], Path({str(tmp_path)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stderr=subprocess.PIPE)
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().strip()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert not is_running(pid.read_text().strip())


def is_running(pid: str) -> bool:
    """Say whether there is such a process; one that ended may wait for init to bury it."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True)
    return listed.stdout.strip()[:1] not in ("", "Z")


def test_machines_name_what_they_lack(tmp_path: Path) -> None:
    with pytest.raises(NoMachineError, match="no-such-program: No such file"):
        output(["no-such-program"])
    with pytest.raises(NoMachineError, match="has no python9"):
        other_python(tmp_path, "9.99")


def test_the_processor_features_are_those_that_numpy_can_be_told_not_to_use(tmp_path: Path) -> None:
    found = [name for name, on in simd_features().items() if on]
    variation = Variation("", {"NPY_DISABLE_CPU_FEATURES": " ".join(found)})
    warnings_are_errors = ["-W", "error", ROOT / "tests/checks/machines.py"]
    assert json.loads(run_python(warnings_are_errors, tmp_path, variation))["SIMD"] == "baseline"
