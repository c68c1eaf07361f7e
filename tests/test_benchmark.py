"""The benchmark's machinery on a tiny data set; how long anything takes is never looked at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmark import peers, plots, run
from benchmark.peers import CONTENDERS, Plan, Task
from benchmark.worker import ROOT, Unavailable, Worker

# isort: split
import numpy as np

TINY = run.BenchmarkConfig(
    networks=((16,),),
    batch_sizes=(64,),
    least_rounds=2,
    most_rounds=2,
    goals=(run.Goal(run.NOTEBOOK_ACCURACY, 8),),
    seeds=1,
    workers=(1, 2),
    scaling_batch_sizes=(64,),
    hidden_sizes=(16,),
    repeats=(1, 2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patterns of strokes, one a class, with pixels missing, in the pipeline's files."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(1)
    patterns = np.uint8(255) * (generator.random((10, 28, 28)) < 0.15)
    for part, count in (("train", 1024), ("test", 200)):
        labels = generator.integers(0, 10, count, np.uint8)
        there = generator.random((count, 28, 28)) < 0.7
        np.save(folder / f"x_{part}.npy", patterns[labels] * there)
        np.save(folder / f"y_{part}.npy", labels)
    return folder


# Keras under XLA differs by one flag, and would take as long as all the others.
@pytest.mark.parametrize("contender", sorted({*run.TABLE, "notebook"} - {"keras_jit"}))
def test_every_contender_that_is_installed_learns(contender: str, data: Path) -> None:
    worker = Worker(contender, Task((16,), 64), data)
    try:
        worker.answer()
        worker.ask(question="prepare")
        epochs = [worker.ask(question="epoch") for _ in range(2)]
        end = worker.ask(question="reach", seed=1, learning_rate=0.1, epochs=12, target=0.9)
    except Unavailable as error:
        if "is not installed" in str(error) and CONTENDERS[contender].is_peer:
            pytest.skip(str(error))
        raise
    finally:
        worker.close()
    assert all(epoch["samples"] >= 1024 - 64 for epoch in epochs)
    assert end["accuracy"] >= 0.9
    assert end["seconds"] > 0
    assert 1 <= end["epochs"] <= 12


@pytest.fixture(scope="module")
def throughput(data: Path, tmp_path_factory: pytest.TempPathFactory) -> run.Report:
    """What is measured where one peer is missing and another is broken."""
    broken = tmp_path_factory.mktemp("broken")
    (broken / "jax.py").write_text("raise ModuleNotFoundError('no jax here')\n")
    (broken / "torch.py").write_text("raise OSError('cannot load a library')\n")
    with pytest.MonkeyPatch.context() as context:
        context.setenv("PYTHONPATH", str(broken))
        return run.throughput(TINY, data, ["ours_exact", "ours_plain", "jax", "pytorch"])


def test_throughput_names_who_is_missing(throughput: run.Report) -> None:
    assert throughput["skipped"] == {
        "jax": "jax is not installed",
        "pytorch": "torch cannot be imported: OSError: cannot load a library",
    }


def test_throughput_compares_everyone_else(throughput: run.Report) -> None:
    (cell,) = throughput["cells"]
    assert (cell["network"], cell["batch_size"], cell["rounds"]) == ("784-16-10", 64, 2)
    assert [row["contender"] for row in cell["rows"]] == ["ours_exact", "ours_plain"]
    for row in cell["rows"]:
        for name in ("samples_per_second", "ratio_to_ours", "share_of_sgemm"):
            assert 0 < row[name]["min"] <= row[name]["median"] <= row[name]["max"]
    assert cell["rows"][0]["ratio_to_ours"] == {"median": 1.0, "min": 1.0, "max": 1.0}


def test_the_whole_report_is_a_table_and_two_pictures(
    throughput: run.Report, data: Path, tmp_path: Path
) -> None:
    accuracy = run.time_to_accuracy(TINY, data, ["ours_exact", "ours_plain"])
    scaling = run.scaling(TINY, data)
    assert [row["reached"] for row in accuracy["goals"][0]["rows"]] == [1, 1]
    assert accuracy["notebook"]["iterations_timed"] == 50
    assert accuracy["notebook"]["seconds"]["median"] == pytest.approx(
        2000 / accuracy["notebook"]["iterations_per_second"]["median"]
    )
    assert [point["images"] for point in scaling["training_set"]] == [1024, 2048]
    assert not list(data.glob(".tiled-*"))

    report = run.surroundings() | {
        "throughput": throughput,
        "time_to_accuracy": accuracy,
        "scaling": scaling,
    }
    json.dumps(report, allow_nan=False)
    text = run.table(report)
    assert "784-16-10, batches of 64" in text
    assert "seconds of training to 96.25%" in text
    assert "skipped: JAX: jax is not installed" in text
    plots.draw(report, tmp_path)
    for name in ("benchmark.png", "scaling.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_contender_whose_process_is_gone_is_reported(data: Path) -> None:
    worker = Worker("notebook", Task((16,), 64), data)
    worker.answer()
    os.killpg(worker.process_id, signal.SIGKILL)
    with pytest.raises(Unavailable, match="without a word"):
        worker.ask(question="prepare")
    worker.close()


@pytest.mark.parametrize(("contender", "threads"), [("ours_exact", "1"), ("pytorch", "3")])
def test_a_peer_has_a_thread_a_core_and_our_processes_one_each(
    contender: str, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "cores", lambda: 3)
    # What a worker does first. OpenMP and BLAS libraries look when they are loaded, after that.
    script = "import benchmark.peers, os; print(os.environ['OMP_NUM_THREADS'])"
    variables = os.environ | CONTENDERS[contender].variables()
    command = [sys.executable, "-c", script]
    assert subprocess.check_output(command, cwd=ROOT, env=variables, text=True).strip() == threads


def test_operations_of_a_sample_by_hand() -> None:
    # Forward and weight gradient of each layer, error of each layer but the first.
    assert Task((64,), 1).operations == 2 * (2 * 784 * 64 + 3 * 64 * 10)
    assert Task((1024, 512), 1).operations == 2 * (2 * 784 * 1024 + 3 * 1024 * 512 + 3 * 512 * 10)


def test_the_learning_rate_falls_along_half_a_cosine() -> None:
    rates = list(Plan(0.2, 4).rates())
    assert len(rates) == 4
    assert rates == sorted(rates, reverse=True)
    # Symmetric about its middle, half the first rate.
    assert [a + b for a, b in zip(rates, reversed(rates), strict=True)] == pytest.approx([0.2] * 4)
