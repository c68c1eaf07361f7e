"""The user's own images: every format read, every damage one line, and whole runs on two sets."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages import fetch
from stages.core import Array
from stages.pipeline.command import InputError
from stages.pipeline.datasets import DESCRIPTION, RAW, Description, load_description, load_raw
from tests.checks.small_project import (
    ROOT,
    copy_project,
    environment,
    fresh_parameters,
    set_parameters,
)

OWN = Path("data/own")
SHAPE = (20, 32)
SIGNS = ("level crossing without barrier", "priority road", "stop")


def signs(count: int, seed: int) -> tuple[Array, Array]:
    """Return images (count, 20, 32) of lying, standing and slanting bars in noise, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    bars = np.stack([y % 8 < 3, x % 8 < 3, (x + y) % 8 < 3])
    images = 200 * bars[labels] + generator.integers(0, 56, (count, *SHAPE))
    return images.astype(np.uint8), labels.astype(np.uint8)


def idx(array: Array) -> bytes:
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def png(image: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write_pictures(folder: Path, images: Array, labels: Array) -> None:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / SIGNS[label] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))


def write_params(**files: object) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    for key, value in ({"dataset": "files"} | files).items():
        text = re.sub(rf"^(  +{key}:) .*$", rf"\1 {value}", text, count=1, flags=re.MULTILINE)
    Path("params.yaml").write_text(text, encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with the signs in every format, and outputs that must stay."""
    monkeypatch.chdir(tmp_path)
    OWN.mkdir(parents=True)
    arrays = {}
    for name, count in (("train", 30), ("test", 9)):
        images, labels = arrays[name] = signs(count, seed=count)
        write_pictures(OWN / name, images, labels)
        (OWN / f"{name}-images.idx").write_bytes(idx(images))
        (OWN / f"{name}-labels.idx.gz").write_bytes(gzip.compress(idx(labels)))
        (OWN / f"{name}-images.npy").write_bytes(npy(images))
        (OWN / f"{name}-labels.npy").write_bytes(npy(labels.astype(np.int64)))
        np.savez_compressed(OWN / f"{name}.npz", x=images, y=labels)
    (OWN / "README.md").write_text("Notes are no images.")
    RAW.mkdir(parents=True)
    for name in ("x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy", "dataset.json"):
        (RAW / name).write_bytes(b"what an older run made")
    return tmp_path


FORMATS = {
    "folders": ("{}", "none"),
    "IDX": ("{}-images.idx", "{}-labels.idx.gz"),
    "npy": ("{}-images.npy", "{}-labels.npy"),
    "npz": ("{}.npz:x", "{}.npz:y"),
}


def choose(kind: str, **changes: object) -> None:
    images, labels = FORMATS[kind]
    chosen: dict[str, object] = {}
    for name in ("train", "test"):
        chosen[f"{name}_images"] = images.format(name)
        chosen[f"{name}_labels"] = labels.format(name)
    write_params(**chosen | changes)


def pairs(images: Array, labels: Array) -> list[tuple[bytes, int]]:
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_images_that_were_saved(project: Path, kind: str) -> None:
    choose(kind, name="signs")
    fetch.main()
    names = SIGNS if kind == "folders" else ("0", "1", "2")
    assert load_description() == Description("signs", SHAPE, names)
    for name, count in (("train", 30), ("test", 9)):
        found, expected = load_raw(name), signs(count, seed=count)
        assert pairs(*found) == pairs(*expected)
        if kind != "folders":
            np.testing.assert_array_equal(found[1], expected[1])


def test_one_set_is_split_and_images_are_transposed_back(project: Path) -> None:
    images, labels = signs(30, seed=30)
    (OWN / "letters").write_bytes(idx(images.transpose(0, 2, 1)))
    (OWN / "labels").write_bytes(idx(labels + 1))  # EMNIST's letters count from 1
    changes = {"test_images": "none", "test_fraction": 0.3, "transposed": "true"}
    write_params(train_images="letters", train_labels="labels", **changes)
    fetch.main()
    assert load_description() == Description("own", SHAPE, ("1", "2", "3"))
    (x, y), (x_test, y_test) = load_raw("train"), load_raw("test")
    assert np.bincount(y_test).tolist() == [3, 3, 3]
    assert pairs(np.concatenate([x, x_test]), np.concatenate([y, y_test])) == pairs(images, labels)


def test_names_can_be_given(project: Path) -> None:
    choose("IDX", classes="[crossing, priority, stop]")
    fetch.main()
    assert load_description().classes == ("crossing", "priority", "stop")


def test_colour_is_made_grey_and_said_once(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = np.zeros((2, *SHAPE, 3), np.uint8)
    colours[0, ..., 0], colours[1, ..., 2] = 255, 255  # red, blue
    for colour, name in zip(colours, ("train", "test"), strict=True):
        (OWN / name / SIGNS[0] / "colour.png").write_bytes(png(colour))
    choose("folders")
    fetch.main()
    assert capsys.readouterr().out.count("2 images were in colour and are grey now") == 1
    for name, expected in (("train", 76), ("test", 29)):
        assert (load_raw(name)[0] == expected).all(axis=(1, 2)).sum() == 1


BIG = np.zeros((30, 65, 32), np.uint8)
X, Y = signs(30, seed=30)
DAMAGE: dict[str, tuple[str, str, Callable[[], bytes], str]] = {
    "IDX cut short": ("IDX", "train-images.idx", lambda: idx(X)[:-1], "cut short: 19,199 bytes"),
    "IDX too long": ("IDX", "train-images.idx", lambda: idx(X) + b"0", "too long: 19,201 bytes"),
    "IDX header": ("IDX", "train-images.idx", lambda: idx(X)[:9], "header ends after 9 bytes"),
    "IDX empty": ("IDX", "train-images.idx", lambda: b"", "magic number missing"),
    "IDX magic": ("IDX", "train-images.idx", lambda: b"\0\0\x0d\3" + idx(X)[4:], "number 3331"),
    "labels as images": ("IDX", "train-images.idx", lambda: idx(Y), "holds labels, must hold im"),
    "images as labels": (
        "IDX",
        "train-labels.idx.gz",
        lambda: gzip.compress(idx(X)),
        "holds images, must hold lab",
    ),
    "no gzip": ("IDX", "train-labels.idx.gz", lambda: idx(Y), "not a readable file"),
    "half a gzip": (
        "IDX",
        "train-labels.idx.gz",
        lambda: gzip.compress(idx(Y))[:25],
        "not a readable file",
    ),
    "too large": (
        "IDX",
        "train-images.idx",
        lambda: idx(BIG),
        "65 x 32 pixels; must be at most 64",
    ),
    "no image": ("IDX", "train-images.idx", lambda: idx(X[:0]), "empty: must hold at least one"),
    "labels of another length": (
        "npy",
        "train-labels.npy",
        lambda: npy(Y[:-1]),
        "29 labels; must be 30, one for each",
    ),
    "a class missing": ("npy", "train-labels.npy", lambda: npy(Y * 2), "no image of class 1"),
    "one class": ("npy", "train-labels.npy", lambda: npy(Y * 0), "every label is 0"),
    "labels too high": (
        "npy",
        "train-labels.npy",
        lambda: npy(Y.astype(int) + 9999),
        "a label is 10001; must",
    ),
    "labels too low": ("npy", "train-labels.npy", lambda: npy(Y - 1.0), "holds float64 of shape"),
    "label below 0": (
        "npy",
        "train-labels.npy",
        lambda: npy(Y.astype(int) - 1),
        "a label is -1; must be from",
    ),
    "other labels in the test set": (
        "npy",
        "test-labels.npy",
        lambda: npy(np.arange(9)),
        "a label is 8; must be from 0 to 2",
    ),
    "floats": ("npy", "train-images.npy", lambda: npy(X / 255), "saved as uint8"),
    "flat": (
        "npy",
        "train-images.npy",
        lambda: npy(X.reshape(30, -1)),
        "has shape (30, 640); must",
    ),
    "labels for images": ("npy", "train-images.npy", lambda: npy(Y), "is it the labels?"),
    "objects": (
        "npy",
        "train-images.npy",
        lambda: npy(np.array([{}], dtype=object)),
        "not a readable .npy",
    ),
    "npy cut short": ("npy", "train-images.npy", lambda: npy(X)[:-1], "19,199 bytes instead of"),
    "another size": (
        "npy",
        "test-images.npy",
        lambda: npy(X[:9, 1:]),
        "19 x 32 pixels; must be 20",
    ),
    "no archive": ("npz", "train.npz", lambda: npy(X), "not a readable .npz archive"),
    "no picture": ("folders", f"train/{SIGNS[0]}/0000.png", lambda: b"GIF89a", "not a readable im"),
    "half a picture": (
        "folders",
        f"train/{SIGNS[0]}/0000.png",
        lambda: png(X[0])[:400],
        "not a readable image",
    ),
    "mixed sizes": (
        "folders",
        f"train/{SIGNS[1]}/0001.png",
        lambda: png(X[0, 1:]),
        "19 x 32 pixels; must be 20",
    ),
    "a picture too large": (
        "folders",
        f"train/{SIGNS[1]}/0001.png",
        lambda: png(BIG[0]),
        "65 x 32 pixels; must be at",
    ),
    "sixteen bits": (
        "folders",
        f"train/{SIGNS[1]}/0001.png",
        lambda: png(X[0].astype(np.uint16)),
        "8-bit",
    ),
    "a transparent picture": (
        "folders",
        f"train/{SIGNS[1]}/0001.png",
        lambda: png(np.stack([X[0]] * 4, axis=-1)),
        "transparent in places; must be opaque",
    ),
    "an empty array": ("npy", "train-images.npy", lambda: npy(X[:0]), "not a readable .npy array"),
    "no image at all": (
        "folders",
        f"train/{SIGNS[1]}/list.csv",
        lambda: b"a,b",
        "no image: its name",
    ),
}


def refusal() -> str:
    """Return the one line with which fetch must refuse; the older outputs must stay."""
    before = {path: path.read_bytes() for path in RAW.iterdir()}
    with pytest.raises(InputError) as caught:
        fetch.main()
    assert {path: path.read_bytes() for path in RAW.iterdir()} == before
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", DAMAGE)
def test_a_wrong_file_is_one_line_that_names_it(project: Path, name: str) -> None:
    kind, path, content, complaint = DAMAGE[name]
    choose(kind)
    (OWN / path).write_bytes(content())
    line = refusal()
    named = path.replace("labels.npy", "images.npy") if "no image of class" in complaint else path
    assert line.startswith(f"{OWN / named}")
    assert complaint in line


@pytest.mark.parametrize(
    ("kind", "changes", "complaint"),
    [
        ("folders", {"train_images": "absent"}, "data/own/absent: no such file: must be an IDX"),
        ("folders", {"train_images": "empty"}, "data/own/empty: no folder in it: must hold one"),
        ("folders", {"train_images": "half"}, "data/own/half/b: no image in it"),
        ("folders", {"test_images": "half"}, "data/own/half: has a folder a; the folders must be"),
        (
            "folders",
            {"train_labels": "train-labels.idx.gz"},
            "train_labels: train-labels.idx.gz: mu",
        ),
        ("folders", {"classes": "[a, b]"}, "data/own/train: has no folder a; the folders must be"),
        ("IDX", {"train_labels": "none"}, "params.yaml: fetch.files.train_labels: none: must name"),
        ("IDX", {"train_images": "train-images.idx:x"}, "train-images.idx: no .npz file, so 'x'"),
        (
            "IDX",
            {"train_images": "../x"},
            "fetch.files.train_images: ../x: must be a name in data/o",
        ),
        (
            "npz",
            {"train_images": "train.npz:z"},
            "no array 'z': must be train.npz:ARRAY, one of x, y",
        ),
        ("npz", {"train_images": "train.npz"}, "no array named: must be train.npz:ARRAY"),
        (
            "npz",
            {"test_images": "none", "test_fraction": 0.01},
            "fetch.files.test_fraction: 0.01: c",
        ),
        ("npz", {"classes": "[a]"}, "fetch.files.classes: "),
        ("npz", {"classes": "[a, b, a]"}, "fetch.files.classes: a: given twice; must differ"),
        ("npz", {"name": "mnist"}, "fetch.files.name: mnist: is another data set's name"),
        ("npz", {"name": "' a'"}, "fetch.files.name:  a: must be 1 to 40 printable characters"),
    ],
)
def test_a_wrong_name_is_one_line(
    project: Path, kind: str, changes: dict[str, object], complaint: str
) -> None:
    for folder in ("empty", "half/a", "half/b"):
        (OWN / folder).mkdir(parents=True)
    (OWN / "half/a/1.png").write_bytes(png(X[0]))
    choose(kind, **changes)
    assert complaint in refusal()


def test_200_damaged_files_are_refused_or_read_and_never_a_traceback(project: Path) -> None:
    generator = np.random.default_rng(1)
    targets = [
        ("IDX", "train-images.idx"),
        ("IDX", "train-labels.idx.gz"),
        ("npy", "train-images.npy"),
        ("npy", "train-labels.npy"),
        ("npz", "train.npz"),
        ("folders", f"train/{SIGNS[0]}/0000.png"),
    ]
    refused = 0
    for number in range(200):
        kind, path = targets[number % len(targets)]
        choose(kind)
        good = (OWN / path).read_bytes()
        damaged = bytearray(good)
        match number // len(targets) % 4:
            case 0:  # flip bits, mostly in the header
                for place in generator.integers(0, min(len(good), 200), 3):
                    damaged[place] ^= 1 << int(generator.integers(8))
            case 1:
                del damaged[int(generator.integers(len(good))) :]
            case 2:
                place = int(generator.integers(len(good)))
                damaged[place : place + 4] = generator.bytes(int(generator.integers(9)))
            case _:
                damaged = bytearray(generator.bytes(int(generator.integers(100))))
        (OWN / path).write_bytes(damaged)
        before = {path: path.read_bytes() for path in RAW.iterdir()}
        line = ""
        try:
            fetch.main()  # what is still a good file, other pixels in it, is read
        except InputError as error:
            line = str(error)
        if line:
            refused += 1
            assert "\n" not in line
            assert {path: path.read_bytes() for path in RAW.iterdir()} == before
        (OWN / path).write_bytes(good)
    assert refused > 100


def run_stages(project: Path) -> dict[str, Any]:
    for name in ("fetch", "preprocess", "train", "evaluate", "visualize"):
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{name}"],
            cwd=project,
            env=environment(WORKERS="2"),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((project / "reports/metrics.json").read_text())
    return found


def test_folders_of_pictures_go_through_all_five_stages(tmp_path: Path) -> None:
    copy_project(tmp_path)
    for name, count in (("train", 150), ("test", 60)):
        write_pictures(tmp_path / OWN / name, *signs(count, seed=count))
    changes = {"dataset": "files", "name": "signs"}
    set_parameters(
        tmp_path,
        {"fetch": changes, "preprocess": {"validation_size": 30}, "train": {"epochs": 6}},
    )
    metrics = run_stages(tmp_path)
    assert metrics["test"]["accuracy"] > 0.9
    assert json.loads((tmp_path / DESCRIPTION).read_text()) == {
        "name": "signs",
        "shape": list(SHAPE),
        "classes": list(SIGNS),
    }
    with np.load(tmp_path / "models/model.npz") as model:
        assert model["W1"].shape[0] == 640
        assert model["b2"].shape == (3,)


def test_the_example_in_the_readme_goes_through_all_five_stages(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```console\n(python -c '(.*?)'\n.*?)```", text, re.DOTALL)
    assert block
    copy_project(tmp_path)
    code = [sys.executable, "-c", block[2]]
    subprocess.run(code, cwd=tmp_path, env=environment(), check=True, timeout=120)
    params = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(fresh_parameters(), encoding="utf-8")
    changes: dict[str, dict[str, object]] = {}
    for section, key, value in re.findall(r"-S (\w+)\.(?:\w+\.)?(\w+)=(\S+)", block[1]):
        changes.setdefault(section, {})[key] = value
    assert changes["fetch"]["dataset"] == "files"
    set_parameters(tmp_path, changes)
    assert params != (tmp_path / "params.yaml").read_text()
    metrics = run_stages(tmp_path)
    assert metrics["test"]["accuracy"] > 0.96
    assert load_description(tmp_path / DESCRIPTION).shape == (8, 8)
