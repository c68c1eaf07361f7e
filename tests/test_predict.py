"""`predict`: every kind of image file, and a line for each one that is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.core import Array
from stages.core.network import Layer
from stages.pipeline.command import InputError
from stages.pipeline.datasets import DESCRIPTION, MNIST, save_description
from stages.pipeline.model_file import MODEL, save_model
from tests.checks.odd_images import odd_files, outcome
from tests.checks.photos import ORIENTATION, STORED, photo
from tests.checks.small_project import ROOT, environment
from tools import predict
from tools.handwriting import NoInkError, prepared
from tools.images import grey_levels, load_image

SHAPE = (28, 28)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    return tmp_path


@pytest.fixture
def model(folder: Path, mnist: dict[str, Array]) -> Path:
    """A model that knows each digit's mean: coarse, but enough for clear ones."""
    x, y = mnist["x_train"][:2000] / np.float32(256), mnist["y_train"][:2000]
    means = np.stack([x[y == digit].mean(axis=0).ravel() for digit in range(10)], axis=1)
    hidden = Layer(np.float32(means / 8), np.zeros(10, np.float32))
    output = Layer(np.float32(4 * np.eye(10)), -np.float32((means**2).sum(axis=0) / 4))
    save_model(MODEL, [hidden, output])
    DESCRIPTION.parent.mkdir(parents=True)
    save_description(MNIST)
    return folder / MODEL


def five(scale: int = 8) -> Array:
    """Return a large 5, white on black, off the middle."""
    ink = np.zeros((40, 32), np.uint8)
    ink[8:10, 10:20] = ink[8:18, 10:12] = ink[16:18, 10:19] = 255
    ink[17:27, 18:20] = ink[26:28, 10:19] = 255
    return ink.repeat(scale, axis=0).repeat(scale, axis=1)


def seen(path: Path) -> Array:
    return prepared(grey_levels(load_image(path)), SHAPE)


def similar(first: Array, second: Array) -> bool:
    return float(np.abs(first.astype(float) - second).mean()) < 5


INK = five()
KINDS = {
    "grey.png": Image.fromarray(INK),
    "dark.png": Image.fromarray(255 - INK),
    "rgb.jpg": Image.fromarray(np.stack([255 - INK // 2, 255 - INK, 200 - INK // 2], axis=2)),
    "bits.png": Image.fromarray(INK).convert("1"),
    "palette.gif": Image.fromarray(np.stack([255 - INK, 255 - INK // 2, INK], 2)).convert("P"),
    "cmyk.jpg": Image.fromarray(255 - INK).convert("RGB").convert("CMYK"),
    "deep.png": Image.fromarray(60000 - INK.astype(np.uint16) * 200),
    "float.tiff": Image.fromarray(INK / np.float32(255)),
    "whole.tiff": Image.fromarray(INK.astype(np.int32) * 1000),
    "black_through.png": Image.fromarray(np.dstack([0 * INK] * 3 + [INK])),
    "white_through.png": Image.fromarray(np.dstack([0 * INK + 255] * 3 + [INK])),
    "round_paper.webp": Image.fromarray(
        np.dstack([255 - INK] * 3 + [np.pad(np.full((300, 236), 255, np.uint8), 10)])
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_is_seen_alike(folder: Path, name: str) -> None:
    KINDS[name].save(name)
    if name == "float.tiff":  # whose full scale is unknown below 255
        with pytest.raises(NoInkError):
            seen(Path(name))
        return
    assert similar(seen(Path(name)), prepared(INK, SHAPE))


@pytest.mark.parametrize("orientation", STORED)
def test_photos_are_seen_upright(folder: Path, orientation: int) -> None:
    image = Image.fromarray(255 - INK)
    transposition = STORED[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    (image.transpose(transposition) if transposition is not None else image).save(
        "photo.jpg", exif=exif
    )
    assert similar(seen(Path("photo.jpg")), prepared(INK, SHAPE))


def test_uneven_light_noise_specks_and_a_dark_corner_leave_the_digit() -> None:
    generator = np.random.default_rng(0)
    light = np.linspace(0.6, 1, INK.shape[1]) * np.linspace(1, 0.8, INK.shape[0])[:, np.newaxis]
    sheet = (220 - 0.7 * INK) * light + generator.normal(0, 6, INK.shape)
    sheet[20:24, 200:204] = 30
    sheet[-30:, :20] = 10
    assert similar(prepared(sheet.clip(0, 255), SHAPE), prepared(INK, SHAPE))


def test_strokes_come_near_mnists_whatever_the_pen() -> None:
    line = np.zeros((200, 200), np.uint8)
    for pen in (1, 10, 60):
        line[:] = 0
        line[10:190, 70 : 70 + pen] = 255
        assert 1.5 < prepared(line, SHAPE)[14].sum() / 255 < 5


def test_mnists_own_files_stay_as_they_are(mnist: dict[str, Array]) -> None:
    for digit in mnist["x_train"][:50]:
        assert (prepared(digit, SHAPE) == digit).all()
        assert (prepared(255 - digit, SHAPE) == digit).all()


@pytest.mark.parametrize("blank", ["constant", "gradient", "noise"])
def test_blank_sheets_are_refused(blank: str) -> None:
    sheet = np.full((300, 200), 200.0)
    if blank == "gradient":
        sheet *= np.linspace(0.5, 1, 200)
    elif blank == "noise":
        sheet += np.random.default_rng(0).normal(0, 8, sheet.shape)
    with pytest.raises(NoInkError):
        prepared(sheet, SHAPE)


def test_photos_of_digits_are_recognised_as_the_digits_are(
    model: Path, mnist: dict[str, Array]
) -> None:
    generator = np.random.default_rng(0)
    images = mnist["x_train"][:60]
    for name, writes in (
        ("png", lambda image, path: Image.fromarray(image).save(path)),
        ("jpg", lambda image, path: path.write_bytes(photo(image, generator))),
    ):
        for number, image in enumerate(images):
            writes(image, Path(f"{number}.{name}"))
    plain, photos = (
        [result.ranking[0] for result in predict.predict(files, MNIST).values()]
        for files in ([f"{n}.{name}" for n in range(len(images))] for name in ("png", "jpg"))
    )
    assert np.mean(np.array(plain) == mnist["y_train"][:60]) > 0.7
    assert np.mean(np.array(plain) == photos) >= 0.9


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tools.predict", *arguments],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_bad_files_get_a_line_each_and_the_others_are_done(model: Path, folder: Path) -> None:
    Image.fromarray(INK).save("good.png")
    Image.fromarray(0 * INK).save("blank.png")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:150])
    Image.new("1", (20000, 20000)).save("bomb.png")
    Path("text.png").write_text("a digit")
    files = ["missing.png", "cut.png", "good.png", "blank.png", "bomb.png", "text.png", "."]
    done = run(folder, "--json", "--picture", "sheet.png", *files)
    assert done.returncode == 1
    found = {entry.pop("file"): entry for entry in json.loads(done.stdout)}
    assert list(found) == files
    assert set(found["good.png"]) == {
        "digit", "probability", "runner_up", "unsure", "probabilities"
    }  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert lines == [f"error: {found[file]['error']}" for file in files if file != "good.png"]
    reasons = {
        "missing.png": "no such file", "cut.png": "truncated", "blank.png": "blank",
        "bomb.png": "bomb", "text.png": "not an image", ".": "not a file",
    }  # fmt: skip
    assert all(words in found[file]["error"] for file, words in reasons.items())
    with Image.open("sheet.png") as sheet:
        assert sheet.width == 1800


def test_without_a_picture_nothing_slow_is_imported(model: Path, folder: Path) -> None:
    Image.fromarray(INK).save("good.png")
    done = run(folder, "good.png")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("good.png  ")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "numpy" in imported
    assert not imported & {"tensorflow", "matplotlib", "numba", "scipy"}


def test_no_image_and_no_model_are_one_line_with_the_way_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, words in (([], 'make predict IMAGES="'), (["a.png"], "'dvc repro' makes it")):
        monkeypatch.setattr(sys, "argv", ["predict", *arguments])
        with pytest.raises(InputError, match=words):
            predict.main()


def test_odd_image_files_bring_no_traceback(model: Path, folder: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    read, refused = outcome(odd_files(files, 120, seed=2), folder)
    assert read > 5
    assert refused > 50
    assert os.listdir(folder / "models") == ["model.npz"]
