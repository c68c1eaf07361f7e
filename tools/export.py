"""Write the model as ONNX, Keras and safetensors files into models/: `make export`.

The ONNX and the Keras model take images (n, height, width) uint8, as `stages.core.prediction`
does, and give `digit`, (n,) int64, and `probabilities`, (n, classes) float32. They quantise
activations as the network was trained to and add up in float64, so that no order of summation
shows: their digits are the pipeline's. The safetensors file has the bare arrays W1, b1, W2, b2, ...
Each carries the class labels, the test accuracy and the SHA-256 of models/model.npz, and has the
same bytes at each run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.pipeline import threads  # noqa: F401  (before NumPy)

# isort: split
import numpy as np
import yaml

from stages.core import Array
from stages.core.exact import PIXELS, Exact, ExactnessError
from stages.core.network import Layer
from stages.core.prediction import quantise
from stages.pipeline.command import InputError, Parser, run
from stages.pipeline.datasets import load_description
from stages.pipeline.files import add_member, atomic_write, load_bytes
from stages.pipeline.model_file import MODEL, load_model
from stages.pipeline.schemas import METRICS, parse_metrics
from stages.pipeline.sources import silent_stderr

LOCK = Path("dvc.lock")
OPSET, IR_VERSION = 18, 9  # ONNX Runtime reads them from 1.15 on
Shape = tuple[int, ...]


def main() -> None:
    """Write the three files.

    Raises:
        InputError: the model or its metrics are missing, damaged or of two different runs, or a
            file cannot be written.
    """
    Parser(prog="python -m tools.export", description=__doc__).parse_args()
    _, shape, classes = description = load_description()
    facts = metadata(load_bytes(MODEL), load_bytes(METRICS), classes)
    try:
        layers, arithmetic = quantise(load_model(MODEL, description.pixels, len(classes)))
    except ExactnessError as error:
        raise InputError(f"{MODEL}: {error}") from None
    contents = {
        ".onnx": to_onnx(layers, arithmetic, shape, facts),
        ".safetensors": to_safetensors(layers, facts),
    }
    with silent_stderr():  # TensorFlow greets
        contents[".keras"] = to_keras(layers, arithmetic, shape, facts)
    for suffix, content in contents.items():
        path = MODEL.with_suffix(suffix)
        with atomic_write(path) as file:
            file.write(content)
        print(f"{path}: {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


def metadata(model: bytes, metrics: bytes, labels: Sequence[str]) -> dict[str, str]:
    """Return what every export says about the model: names and values in a fixed order.

    Args:
        model: the bytes of models/model.npz.
        metrics: the bytes of reports/metrics.json.
        labels: the name of each class.

    Raises:
        InputError: the metrics are damaged, or not known to be this model's.
    """
    accuracy = parse_metrics(metrics, METRICS).test.accuracy
    _require_same_run({MODEL: model, METRICS: metrics})
    return {
        "input": "images (n, height, width) uint8, white ink on black; a pixel enters as value/256",
        "labels": json.dumps(list(labels)),
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "test_accuracy": str(accuracy),
    }


def _require_same_run(contents: dict[Path, bytes]) -> None:
    """Check that evaluate scored this model: dvc.lock has the hashes of what it read and wrote."""
    try:
        lock = yaml.load(load_bytes(LOCK), Loader=yaml.BaseLoader)  # noqa: S506  (text alone)
        stage = lock["stages"]["evaluate"]
        recorded = {entry["path"]: entry["md5"] for entry in stage["deps"] + stage["outs"]}
    except (yaml.YAMLError, LookupError, TypeError):
        raise InputError(f"{LOCK}: has no record of evaluate; 'dvc repro' makes it") from None
    for path, content in contents.items():
        if recorded.get(str(path)) != hashlib.md5(content, usedforsecurity=False).hexdigest():
            raise InputError(
                f"{path}: not the one of the last run in {LOCK}, so its accuracy is not known; "
                "'dvc repro' scores it"
            )


def to_onnx(
    layers: Sequence[Layer], arithmetic: Exact, shape: Shape, facts: dict[str, str]
) -> bytes:
    """Return the network as an ONNX model.

    Args:
        layers: its parameters, W quantised.
        arithmetic: how activations are quantised.
        shape: height and width of an image.
        facts: the metadata.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, constants = [], []

    def constant(name: str, value: Array | float, dtype: type = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(operator: str, *inputs: str, output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def as_double(name: str) -> str:
        return add("Cast", name, output=f"{name}_double", to=TensorProto.DOUBLE)

    pixels = add("Flatten", as_double("images"), output="pixels", axis=1)
    a = add("Mul", pixels, constant("pixel_quantum", PIXELS.quantum, np.float64), output="x")
    zero = constant("zero", 0.0)
    for number, (W, b) in enumerate(layers, start=1):
        weights, biases = (
            as_double(constant(f"{name}{number}", value)) for name, value in (("W", W), ("b", b))
        )
        z = add("Add", add("MatMul", a, weights, output=f"product{number}"), biases,
                output=f"z{number}")  # fmt: skip
        if number < len(layers):
            kind = arithmetic.inputs[number]
            quantum = constant(f"quantum{number}", kind.quantum)
            saturation = constant(f"saturation{number}", kind.saturation)
            a = add("Cast", z, output=f"z{number}_float", to=TensorProto.FLOAT)
            a = add("Clip", a, zero, saturation, output=f"relu{number}")
            a = add("Round", add("Div", a, quantum, output=f"quanta{number}"),
                    output=f"rounded{number}")  # fmt: skip
            a = as_double(add("Mul", a, quantum, output=f"a{number}"))
    add("ArgMax", z, output="digit", axis=1, keepdims=0)
    probabilities = add("Softmax", z, output="probabilities_double", axis=1)
    add("Cast", probabilities, output="probabilities", to=TensorProto.FLOAT)

    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "digits",
        [values("images", TensorProto.UINT8, ["n", *shape])],
        [
            values("digit", TensorProto.INT64, ["n"]),
            values("probabilities", TensorProto.FLOAT, ["n", len(layers[-1].b)]),
        ],
        constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="exact-mnist",
    )
    helper.set_model_props(model, facts)
    checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def to_keras(
    layers: Sequence[Layer], arithmetic: Exact, shape: Shape, facts: dict[str, str]
) -> bytes:
    """Return the network as a Keras model file; arguments as for `to_onnx`.

    Only layers and operations of Keras are in it, so that loading it needs nothing of this project.
    `metadata.json` in the archive has the metadata, in place of the date on which it was saved.
    """
    # The user's shell and ~/.keras/keras.json may name another backend.
    os.environ |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    import keras

    keras.utils.clear_session()  # whose counters name the operations
    images = keras.Input(shape, dtype="uint8", name="images")
    a = keras.layers.Flatten("channels_last", dtype="float64", name="pixels")(images)
    a = keras.layers.Rescaling(PIXELS.quantum, dtype="float64", name="x")(a)
    for number, (W, b) in enumerate(layers, start=1):
        dense = keras.layers.Dense(len(b), dtype="float64", name=f"layer{number}")
        z = dense(a)
        dense.set_weights([W, b])
        if number < len(layers):
            kind = arithmetic.inputs[number]
            a = keras.ops.clip(keras.ops.cast(z, "float32"), 0.0, kind.saturation)
            a = keras.ops.round(a / kind.quantum) * kind.quantum
    probabilities = keras.ops.cast(keras.ops.softmax(z, axis=-1), "float32")
    digit = keras.ops.cast(keras.ops.argmax(z, axis=-1), "int64")
    model = keras.Model(images, {"digit": digit, "probabilities": probabilities}, name="digits")

    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        with zipfile.ZipFile(path) as saved, zipfile.ZipFile(content, "w") as archive:
            for name in sorted(saved.namelist()):
                member = saved.read(name)
                if name == "metadata.json":
                    document = json.loads(member)
                    del document["date_saved"]
                    member = json.dumps(document | facts).encode()
                add_member(archive, name, member)
    return content.getvalue()


def to_safetensors(layers: Sequence[Layer], facts: dict[str, str]) -> bytes:
    """Return the network's arrays as a safetensors file, float32, W as (inputs, outputs).

    The format is the header's length, the header as JSON and the arrays' bytes, little-endian; the
    library of its makers shuffles the metadata's keys.
    """
    header: dict[str, object] = {"__metadata__": facts}
    arrays = b""
    for number, layer in enumerate(layers, start=1):
        for name, array in layer._asdict().items():
            content = array.astype("<f4").tobytes()
            offsets = [len(arrays), len(arrays) + len(content)]
            header[f"{name}{number}"] = {
                "dtype": "F32", "shape": list(array.shape), "data_offsets": offsets,
            }  # fmt: skip
            arrays += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # which keeps the arrays aligned
    return struct.pack("<Q", len(text)) + text + arrays


if __name__ == "__main__":
    run(main)
