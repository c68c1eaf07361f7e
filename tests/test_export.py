"""`make export`: other frameworks read the files, and give the pipeline's digits."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from safetensors import safe_open

from stages.core import Array
from stages.core.exact import Exact
from stages.core.initialisation import initialise
from stages.core.network import Layer
from stages.core.prediction import classify, quantise
from stages.pipeline.command import InputError
from stages.pipeline.datasets import DESCRIPTION, MNIST, save_description
from stages.pipeline.model_file import MODEL, save_model
from stages.pipeline.schemas import METRICS
from tests.checks.small_project import ROOT, environment
from tools import export

FACTS = {"labels": '["nought", "one"]', "test_accuracy": "0.9"}
EXPORTS = [MODEL.with_suffix(suffix) for suffix in (".onnx", ".keras", ".safetensors")]


class Network(NamedTuple):
    """A network with the images that go into it."""

    layers: list[Layer]
    arithmetic: Exact
    shape: tuple[int, ...]
    images: Array


def network(shape: tuple[int, ...], *sizes: int, images: Array) -> Network:
    generator = np.random.default_rng(1)
    layers = initialise([int(np.prod(shape)), *sizes], "he", generator)
    # Columns add up to 0 and outputs are steep: every class wins, with probabilities of any size.
    layers = [
        Layer(3 * (W - W.mean(axis=0)), generator.normal(0, 0.3, b.shape).astype(np.float32))
        for W, b in layers
    ]
    return Network(*quantise(layers), shape, images)


@pytest.fixture(scope="module")
def networks(mnist: dict[str, Array]) -> list[Network]:
    odd = np.random.default_rng(2).integers(0, 256, (500, 5, 4), np.uint8)
    return [
        network((28, 28), 64, 10, images=mnist["x_test"]),
        network((5, 4), 16, 12, 3, images=odd),
    ]


def expect_the_pipelines(digits: Array, probabilities: Array, network: Network) -> None:
    expected = classify(network.layers, network.images)
    assert (np.bincount(expected.classes) > 0).sum() >= 3
    np.testing.assert_array_equal(digits, expected.classes)
    assert probabilities.dtype == np.float32
    assert np.abs(probabilities - expected.probabilities).max() < 1e-6


def test_onnx_runtime_gives_the_same_digits_whatever_it_fuses(networks: list[Network]) -> None:
    for net in networks:
        content = export.to_onnx(net.layers, net.arithmetic, net.shape, FACTS)
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert {entry.key: entry.value for entry in model.metadata_props} == FACTS
        for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            session = onnxruntime.InferenceSession(content, options)
            assert [output.name for output in session.get_outputs()] == ["digit", "probabilities"]
            digits, probabilities = session.run(None, {"images": net.images})
            expect_the_pipelines(digits, probabilities, net)
            one, _ = session.run(None, {"images": net.images[:1]})
            assert one == digits[:1]


def test_keras_gives_the_same_digits(
    networks: list[Network], tensorflow: ModuleType, tmp_path: Path
) -> None:
    for net in networks:
        path = tmp_path / "model.keras"
        path.write_bytes(export.to_keras(net.layers, net.arithmetic, net.shape, FACTS))
        model = tensorflow.keras.models.load_model(path)
        outputs = model.predict(net.images, verbose=0)
        expect_the_pipelines(outputs["digit"], outputs["probabilities"], net)


def test_safetensors_has_every_array(networks: list[Network], tmp_path: Path) -> None:
    for net in networks:
        path = tmp_path / "model.safetensors"
        path.write_bytes(export.to_safetensors(net.layers, FACTS))
        with safe_open(path, "np") as file:
            assert file.metadata() == FACTS
            assert len(list(file.keys())) == 2 * len(net.layers)
            for number, (W, b) in enumerate(net.layers, start=1):
                np.testing.assert_array_equal(file.get_tensor(f"W{number}"), W)
                np.testing.assert_array_equal(file.get_tensor(f"b{number}"), b)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its metrics and the record of both in dvc.lock."""
    project = tmp_path / "project"
    sizes = pairwise([784, 4, 10])
    generator = np.random.default_rng(3)
    layers = [
        Layer(*(generator.normal(0, 0.1, shape).astype(np.float32) for shape in (size, size[1:])))
        for size in sizes
    ]
    save_model(project / MODEL, layers)
    (project / DESCRIPTION).parent.mkdir(parents=True)
    save_description(MNIST, project / DESCRIPTION)
    figures = {"accuracy": 0.75, "error_rate": 0.25, "loss": 0.5}
    (project / "reports").mkdir()
    (project / METRICS).write_text(
        json.dumps(dict.fromkeys(("train", "validation", "test"), figures))
    )
    record(project)
    monkeypatch.chdir(project)
    monkeypatch.setattr("sys.argv", ["export"])
    return project


def record(project: Path) -> None:
    entries = [
        {"path": str(path), "md5": hashlib.md5((project / path).read_bytes()).hexdigest()}
        for path in (MODEL, METRICS)
    ]
    stages = {"evaluate": {"deps": entries[:1], "outs": entries[1:]}}
    (project / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))


def test_every_run_writes_the_same_bytes_whatever_the_users_settings(project: Path) -> None:
    def exported(**variables: str) -> list[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "tools.export"],
            cwd=project,
            env=environment(PYTHONPATH=str(ROOT), **variables),
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        assert done.stderr == ""
        contents = [path.read_bytes() for path in EXPORTS]
        for path, content in zip(EXPORTS, contents, strict=True):
            assert f"{hashlib.sha256(content).hexdigest()}\n" in done.stdout
            path.unlink()
        return contents

    settings = project / ".keras/keras.json"
    settings.parent.mkdir()
    settings.write_text(
        '{"backend": "jax", "floatx": "float16", "image_data_format": "channels_first"}'
    )
    usual = exported(PYTHONHASHSEED="1")
    assert usual == exported(
        PYTHONHASHSEED="2", HOME=str(project), KERAS_BACKEND="torch", TZ="Asia/Tokyo"
    )
    onnx_model = onnx.load_from_string(usual[0])
    facts = {entry.key: entry.value for entry in onnx_model.metadata_props}
    assert json.loads(facts["labels"]) == list("0123456789")
    assert float(facts["test_accuracy"]) == 0.75
    assert facts["model_sha256"] == hashlib.sha256((project / MODEL).read_bytes()).hexdigest()


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda: MODEL.unlink(), r"^models/model.npz: no such file; 'dvc repro' makes it$"),
        (lambda: METRICS.unlink(), r"^reports/metrics.json: no such file; 'dvc repro' makes it$"),
        (lambda: METRICS.write_text("{}"), r"^reports/metrics.json: damaged"),
        (lambda: spoil(MODEL), r"^models/model.npz: not the one of the last run in dvc.lock"),
        (lambda: spoil(METRICS), r"^reports/metrics.json: not the one of the last run in dvc.lock"),
        (lambda: Path("dvc.lock").unlink(), r"^dvc.lock: no such file; 'dvc repro' makes it$"),
        (lambda: Path("dvc.lock").write_text("stages: 1"), r"^dvc.lock: has no record of evaluate"),
        (lambda: EXPORTS[0].mkdir(), r"^models/model.onnx: cannot be written: Is a directory$"),
    ],
)
def test_a_refusal_is_one_line_and_writes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, change, refusal: str
) -> None:
    monkeypatch.setattr(export, "to_keras", lambda *arguments: b"")  # slow
    change()
    with pytest.raises(InputError, match=refusal) as refused:
        export.main()
    assert "\n" not in str(refused.value)
    assert not any(path.is_file() for path in EXPORTS)


def test_git_does_not_track_the_exports() -> None:
    done = subprocess.run(
        ["git", "check-ignore", *EXPORTS], cwd=ROOT, env=environment(), check=False
    )
    assert done.returncode == 0
