"""The engine gives the textbook's bytes: parameters and learning curves, however it is run."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from test_training import NO_AUGMENTATION, SIMPLE, digest, digits

from stages.core import Array
from stages.core import training as textbook
from stages.core.augmentation import Augmentation, draw, gaussian
from stages.core.augmentation import deform as deform_by_the_textbook
from stages.core.config import TrainConfig
from stages.core.exact import FINEST_WEIGHT_QUANTUM, ExactnessError
from stages.core.network import Layer
from stages.core.state import State
from stages.core.training import DivergedError, Epoch
from stages.engine import compiler, products, training
from stages.engine.backward import largest_magnitude
from stages.engine.deformation import deform
from stages.engine.memory import allocate_images
from stages.engine.training import Training, compressed
from stages.engine.vectors import eight_dots
from stages.pipeline.checkpoint import load_checkpoint, save_checkpoint
from tests.checks.small_project import ROOT, environment

EVERYTHING = Augmentation(10, scale=0.1, shear=0.1, shift=1, elastic=20, smoothness=4, thickness=1)
THREADS = (1, 2, 3, 4)
Run = tuple[list[Layer], list[Epoch]]


@cache
def data(shape: tuple[int, int], classes: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return a training and a validation set; a fifth of the pixels is not 0, as in MNIST."""
    sets = digits(1100, 1, shape, classes), digits(203, 2, shape, classes)
    bright = np.random.default_rng(3).random(shape) < np.linspace(0.0, 0.5, shape[1])
    return tuple((x * bright, y) for x, y in sets)


def by_the_textbook(
    config: TrainConfig, shape: tuple[int, int] = (28, 28), classes: int = 10
) -> Run:
    epochs: list[Epoch] = []
    return textbook.train(*data(shape, classes), config, epochs.append), epochs


def by_the_engine(
    config: TrainConfig, threads: int, shape: tuple[int, int] = (28, 28), classes: int = 10,
    **options: Any,
) -> Run:  # fmt: skip
    epochs: list[Epoch] = []
    training = Training(*data(shape, classes), config, threads, **options)
    return training.run(epochs.append), epochs


def assert_same(found: Run, expected: Run) -> None:
    assert digest(found[0]) == digest(expected[0])
    assert found[1] == expected[1]


BASE = replace(SIMPLE, learning_rate=0.05, epochs=2, batch_size=128)
ADAM = {"optimizer": "adam", "learning_rate": 0.003}
CONFIGS: dict[str, dict[str, Any]] = {
    f"{optimizer}, {schedule}": {
        **(ADAM if optimizer == "adam" else {"optimizer": optimizer}),
        "schedule": schedule,
    }
    for optimizer, schedule in product(
        ("sgd", "nesterov", "adam"), ("constant", "cosine", "step", "one_cycle")
    )
} | {
    "no momentum": {"momentum": 0.0},
    "l2": {"l2": 0.01},
    "adam with l2": {**ADAM, "l2": 0.01},
    "weight decay": {"weight_decay": 0.1},
    "adamw": {**ADAM, "weight_decay": 0.5},
    "dropout": {"dropout": 0.3},
    "label smoothing": {"label_smoothing": 0.1},
    "moving average": {"ema_decay": 0.99},
    "moving average with dropout": {"ema_decay": 0.9, "dropout": 0.2},
    "glorot": {"initialisation": "glorot"},
    "the notebook": {
        "initialisation": "uniform", "learning_rate": 0.6, "momentum": 0.0, "batch_size": "all",
        "epochs": 5,
    },
    "the best kept": {"keep": "best", "epochs": 4, "learning_rate": 0.3},
    "batches of one image": {"batch_size": 1, "epochs": 1, "learning_rate": 0.001},
    "an uneven last batch": {"batch_size": 37},
    "a last batch of one image": {"batch_size": 157},
    "two micro-batches": {"batch_size": 600},
    "all images and an average": {"batch_size": "all", "ema_decay": 0.9, "epochs": 4},
    "adam, dropout and two micro-batches": {**ADAM, "batch_size": 600, "dropout": 0.2},
    "everything deformed": {"augmentation": EVERYTHING},
    "rotated": {"augmentation": replace(NO_AUGMENTATION, rotation=20.0)},
    "elastic": {"augmentation": replace(NO_AUGMENTATION, elastic=30.0, smoothness=2.0)},
    "thicker and thinner": {"augmentation": replace(NO_AUGMENTATION, thickness=3.0)},
    "deformed, averaged, batches of 300": {
        "augmentation": EVERYTHING, "ema_decay": 0.99, "batch_size": 300,
    },
    "deformed, one batch": {"augmentation": EVERYTHING, "batch_size": "all"},
    "one hidden unit": {"hidden_sizes": [1]},
    "64 hidden units": {"hidden_sizes": [64]},
    "130 hidden units": {"hidden_sizes": [130]},
    "two hidden layers": {"hidden_sizes": [50, 33]},
    "two hidden layers, dropout, l2": {"hidden_sizes": [64, 32], "dropout": 0.2, "l2": 0.001},
    "three hidden layers": {"hidden_sizes": [70, 48, 20], "ema_decay": 0.9},
    "four hidden layers and everything": {
        "hidden_sizes": [40, 30, 20, 10], "optimizer": "nesterov", "l2": 0.001,
        "weight_decay": 0.001, "dropout": 0.1, "label_smoothing": 0.1, "ema_decay": 0.9,
        "augmentation": EVERYTHING, "batch_size": 600, "schedule": "one_cycle",
    },
    "a layer with fewer units than another": {"hidden_sizes": [40, 17, 33]},
    "a wide hidden layer": {"hidden_sizes": [270], "batch_size": 300},
    "a wide hidden layer and two micro-batches": {
        "hidden_sizes": [330], "batch_size": 600, "epochs": 3, "ema_decay": 0.9, "dropout": 0.1,
        "augmentation": EVERYTHING,
    },
    "two wide hidden layers": {"hidden_sizes": [300, 140], "batch_size": 256},
    "weights that outgrow their quantum": {"learning_rate": 2.0, "batch_size": 50, "epochs": 3},
    "weights that outgrow their quantum in two layers": {
        "hidden_sizes": [64, 64], "initialisation": "uniform", "learning_rate": 0.001,
        "epochs": 3,
    },
    "the last step outgrows its quantum": {
        "batch_size": "all", "epochs": 1, "learning_rate": 6.0, "momentum": 0.0,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_engine_gives_the_textbooks_bytes(name: str) -> None:
    config = replace(BASE, **CONFIGS[name])
    expected = by_the_textbook(config)
    for threads in THREADS:
        assert_same(by_the_engine(config, threads), expected)


@pytest.mark.parametrize("hidden_sizes", [[24, 17], [270]])
@pytest.mark.parametrize(
    ("shape", "classes"), [((8, 8), 10), ((20, 32), 3), ((5, 7), 32), ((9, 6), 47)]
)
def test_images_of_any_shape_and_any_classes_give_the_textbooks_bytes(
    shape: tuple[int, int], classes: int, hidden_sizes: list[int]
) -> None:
    config = replace(BASE, hidden_sizes=hidden_sizes, augmentation=EVERYTHING, ema_decay=0.9)
    expected = by_the_textbook(config, shape, classes)
    for threads in (1, 2, 3):
        assert_same(by_the_engine(config, threads, shape, classes), expected)


def test_quanta_are_coarsened_where_the_names_above_say_so() -> None:
    for name in CONFIGS:
        if "quantum" in name:
            training = Training(*data((28, 28), 10), replace(BASE, **CONFIGS[name]), 2)
            training.run()
            assert training.parameters.quanta[0] > FINEST_WEIGHT_QUANTUM, name


@pytest.mark.parametrize("hidden_sizes", [[40, 20], [270]])
def test_zeros_can_be_kept_and_change_no_byte(hidden_sizes: list[int]) -> None:
    config = replace(BASE, hidden_sizes=hidden_sizes, augmentation=EVERYTHING)
    expected = by_the_engine(config, 2)
    assert_same(by_the_engine(config, 2, skip_zeros=False), expected)


@pytest.mark.parametrize("keep_zeros", [False, True])
@pytest.mark.parametrize("name", ["an uneven last batch", "dropout", "two micro-batches"])
def test_images_that_are_not_all_kept_compressed_change_no_byte(
    monkeypatch: pytest.MonkeyPatch, name: str, keep_zeros: bool
) -> None:
    monkeypatch.setattr(training, "RESIDENT", 1000)
    monkeypatch.setattr(training, "CHUNK", 128)  # so that the ring has less room than an epoch
    monkeypatch.setattr(training, "WINDOW", 4 * 128)
    config = replace(BASE, **CONFIGS[name])
    for threads in THREADS:
        found = by_the_engine(config, threads, skip_zeros=not keep_zeros)
        assert_same(found, by_the_textbook(config))


def test_plain_float32_stays_close_to_exact_arithmetic() -> None:
    (exact, curves), (plain, others) = (by_the_engine(BASE, 2, exact=e) for e in (True, False))
    assert digest(exact) != digest(plain)
    for one, other in zip(exact, plain, strict=True):
        assert np.linalg.norm(one.W - other.W) < 0.05 * np.linalg.norm(other.W)
    for epoch, another in zip(curves, others, strict=True):
        assert epoch.train_loss == pytest.approx(another.train_loss, rel=0.02)


@pytest.mark.parametrize(
    "name",
    [
        "sgd, one_cycle", "adamw", "the best kept", "moving average with dropout",
        "everything deformed", "four hidden layers and everything",
        "weights that outgrow their quantum in two layers",
    ],
)  # fmt: skip
def test_a_resumed_training_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    config = replace(BASE, **CONFIGS[name])
    config = replace(config, epochs=max(config.epochs, 3))
    states: list[State] = []
    epochs: list[Epoch] = []
    whole = Training(*data((28, 28), 10), config, threads=2).run(
        epochs.append, lambda: True, lambda state: states.append(deepcopy(state))
    )
    assert [state.epoch for state in states] == list(range(1, config.epochs + 1))
    for state in states:
        path = tmp_path / "checkpoint.npz"
        save_checkpoint({"code": "this"}, state, epochs[: state.epoch], path)
        loaded = load_checkpoint({"code": "this"}, path)
        assert isinstance(loaded, tuple)
        curves = loaded[1]
        training = Training(*data((28, 28), 10), config, threads=state.epoch % 4 + 1)
        assert digest(training.run(curves.append, resume=loaded[0])) == digest(whole)
        assert curves == epochs


def test_threads_that_are_late_change_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(BASE, hidden_sizes=[40, 20], augmentation=EVERYTHING, dropout=0.1)
    expected = by_the_textbook(config)
    chance = random.Random(1)
    late: Callable[..., None] = Training._prepare

    def prepare_late(training: Training, order: Array, chunk: int) -> None:
        time.sleep(chance.choice([0.0, 0.01, 0.03]))
        late(training, order, chunk)

    monkeypatch.setattr(Training, "_prepare", prepare_late)
    for threads in (2, 3, 4):
        assert_same(by_the_engine(config, threads), expected)


def test_how_the_images_lie_in_memory_changes_no_byte(tmp_path: Path) -> None:
    (x, y), validation = data((28, 28), 10)
    expected = digest(Training((x, y), validation, BASE, 2).run())
    np.save(tmp_path / "x.npy", x)
    frozen = x.copy()
    frozen.flags.writeable = False
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for other in (np.asfortranarray(x), mapped, np.repeat(x, 2, axis=2)[:, :, ::2], frozen):
        assert digest(Training((other, y), validation, BASE, 2).run()) == expected
    assert digest(Training((x, y.astype(np.int64)), validation, BASE, 2).run()) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_images_that_are_not_uint8_are_refused(dtype: type) -> None:
    (x, y), validation = data((28, 28), 10)
    with pytest.raises(TypeError, match=f"images are {np.dtype(dtype)}; must be uint8"):
        Training((x.astype(dtype), y), validation, BASE)
    with pytest.raises(TypeError, match=f"images are {np.dtype(dtype)}; must be uint8"):
        textbook.train((x.astype(dtype), y), validation, BASE)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_training_diverges_in_the_textbooks_epoch(
    threads: int, average: float, capfd: pytest.CaptureFixture[str]
) -> None:
    config = replace(BASE, learning_rate=100.0, epochs=50, ema_decay=average)
    with pytest.raises(DivergedError, match=r"in epoch (\d+) \(") as expected:
        by_the_textbook(config)
    with pytest.raises(DivergedError) as found:
        by_the_engine(config, threads)
    assert str(found.value).split("(")[0] == str(expected.value).split("(")[0]
    assert capfd.readouterr() == ("", "")


def test_initial_weights_that_are_too_large_are_refused() -> None:
    with pytest.raises(ExactnessError, match="layer 2 have grown too large"):
        by_the_engine(replace(BASE, hidden_sizes=[1536], initialisation="uniform"), 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_training_stops_its_threads(error: type[BaseException]) -> None:
    def interrupt(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise error

    training = Training(*data((28, 28), 10), replace(BASE, epochs=10_000), threads=3)
    with pytest.raises(error):
        training.run(interrupt)
    assert training.pool._shutdown
    assert all(not thread.is_alive() for thread in training.pool._threads)


def test_a_thread_that_fails_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(training: Training, order: Array, chunk: int) -> None:
        if chunk == 1:
            raise MemoryError("planted")

    monkeypatch.setattr(Training, "_prepare", fail)
    with pytest.raises(MemoryError, match="planted"):
        by_the_engine(replace(BASE, augmentation=EVERYTHING), 2)


# ---- the kernels that stand for a function of the core


@pytest.mark.parametrize("columns", [16, 48, 64, 80, 208])
@pytest.mark.parametrize("rows", [30, products.TILE, products.TILE + 1, 3 * products.TILE - 5])
def test_sparse_products_agree_with_numpy(rows: int, columns: int) -> None:
    generator = np.random.default_rng(1)
    left = generator.integers(0, 5, (9, rows)) * (generator.random((9, rows)) < 0.3)
    matrix = generator.integers(-50, 50, (rows, columns)).astype(np.float32)
    left[3] = 0
    left[4, : products.TILE] = 0
    sparse, tiles = sparse_rows(left), -(-rows // products.TILE)
    for dtype in (np.float32, np.float64):
        out = np.full((9, columns), np.nan, dtype)
        arguments = out.ravel(), 0, matrix.ravel(), 0, columns, columns, *sparse, tiles
        combine_rows = called_from_python(products.combine_rows)
        combine_rows(*arguments, 0, 9, False)
        np.testing.assert_array_equal(out, left @ matrix)
        combine_rows(*arguments, 2, 5, True)
        expected = left @ matrix
        expected[:3] += (left @ matrix)[2:5]
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("columns", [16, 48, 64, 80, 208])
@pytest.mark.parametrize("rows", [30, products.TILE, products.TILE + 1, 3 * products.TILE - 5])
def test_gradients_of_sparse_products_agree_with_numpy(rows: int, columns: int) -> None:
    generator = np.random.default_rng(1)
    left = generator.integers(0, 5, (9, rows)) * (generator.random((9, rows)) < 0.3)
    deltas = generator.integers(-50, 50, (9, columns)).astype(np.float32)
    sparse, step = sparse_rows(left), called_from_python(products.tiles_at_once)(columns)
    scatter_rows, found = called_from_python(products.scatter_rows), []
    for tile in range(0, -(-rows // products.TILE), step):
        end = min(tile + step, -(-rows // products.TILE))
        out = np.zeros(((end - tile) * products.TILE, columns), np.float32)
        scatter_rows(out.ravel(), columns, columns, *sparse, tile, end, 9, deltas.ravel(), 0)
        found.append(out)
    np.testing.assert_array_equal(np.concatenate(found)[:rows], left.T @ deltas)


def called_from_python(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function that only calls a kernel, which has no entry from Python."""

    @numba.njit
    def call(*arguments):  # type: ignore[no-untyped-def]
        return kernel(*arguments)

    return call  # type: ignore[no-any-return]


def sparse_rows(rows: Array) -> tuple[Array, Array, Array]:
    """Return the indices, the values, and each row's start and its tiles' ends in these."""
    tiles = np.arange(0, rows.shape[1] + products.TILE, products.TILE)
    indices, values, bounds = [], [], []
    for row in rows:
        bounds.append(len(indices) + np.searchsorted(np.flatnonzero(row), tiles))
        indices += np.flatnonzero(row).tolist()
        values += row[row != 0].tolist()
    return np.array(indices, np.uint16), np.array(values, np.float32), np.array(bounds)


@pytest.mark.parametrize("columns", [16, 32, 48, 528])
def test_eight_dot_products_agree_with_numpy(columns: int) -> None:
    @numba.njit
    def compiled(matrix, indices, row):  # type: ignore[no-untyped-def]
        return eight_dots(matrix.ravel(), indices, 2, 1, matrix.shape[1], row, 3, columns)

    generator = np.random.default_rng(1)
    matrix = generator.integers(-50, 50, (11, columns + 5)).astype(np.float32)
    row = generator.integers(-50, 50, columns + 3).astype(np.float32)
    indices = generator.permutation(11).astype(np.uint16)
    expected = matrix[indices[2:10], 1 : 1 + columns] @ row[3:]
    assert list(compiled(matrix, indices, row)) == expected.tolist()


@pytest.mark.parametrize("row", [[0.0], [3.0, -4.0, 0.5], [-0.0, -np.inf, 2.0], [1.0, np.nan, 9.0]])
def test_the_largest_magnitude_of_a_row(row: list[float]) -> None:
    array = np.array(row, np.float32)
    found = called_from_python(largest_magnitude)(array)
    np.testing.assert_equal(found, np.abs(array).max())


@pytest.mark.parametrize("keep_zeros", [False, True])
@pytest.mark.parametrize("pixels", [1, 7, products.TILE, 300])
def test_sparse_images_hold_every_bright_pixel(pixels: int, keep_zeros: bool) -> None:
    generator = np.random.default_rng(1)
    images = np.stack([
        generator.integers(1, 256, pixels) * (generator.random(pixels) < fraction)
        for fraction in (0.2, 0.0, 1.0, 0.0)
    ]).astype(np.uint8)  # fmt: skip
    sparse = compressed(images, not keep_zeros)
    for image, bounds in zip(images, sparse.bounds, strict=True):
        found = np.zeros(pixels, np.uint8)
        for tile, (start, stop) in enumerate(pairwise(bounds)):
            assert (sparse.pixels[start:stop] // products.TILE == tile).all()
            found[sparse.pixels[start:stop]] = sparse.brightness[start:stop]
        np.testing.assert_array_equal(found, image)
        assert bounds[-1] - bounds[0] == (pixels if keep_zeros else np.count_nonzero(image))


@pytest.mark.parametrize("shape", [(28, 28), (8, 8), (20, 32)])
@pytest.mark.parametrize("elastic", [0.0, 30.0])
def test_deformations_agree_with_the_core(shape: tuple[int, int], elastic: float) -> None:
    augmentation = replace(EVERYTHING, elastic=elastic, shift=min(shape) / 2)
    images = np.random.default_rng(2).integers(0, 256, (50, *shape), dtype=np.uint8)
    drawn = draw(augmentation, shape, 4, np.random.default_rng(3))
    order = np.random.default_rng(4).permutation(50)
    pixels = shape[0] * shape[1]
    found = allocate_images(64, pixels, 64 * pixels)
    kernels = [gaussian(augmentation.smoothness, size) for size in shape]
    deform(images.reshape(50, -1), order, 0, shape, drawn, elastic, *kernels, found, False)
    expected = deform_by_the_textbook(images[order], drawn, augmentation)
    for image, bounds in zip(expected.reshape(50, -1), found.bounds, strict=False):
        row = slice(bounds[0], bounds[-1])
        assert found.pixels[row].tolist() == np.flatnonzero(image).tolist()
        np.testing.assert_array_equal(found.brightness[row], image[image != 0])


# ---- the cache of compiled kernels, and where the engine cannot run

DEFORM = """
import hashlib
import numpy as np
from stages.core.augmentation import Augmentation, draw, gaussian
from stages.engine.deformation import deform
from stages.engine.memory import allocate_images

augmentation = Augmentation(10, 0.1, 0.1, 1, 20, 4, 1)
images = np.random.default_rng(2).integers(0, 256, (16, 784), dtype=np.uint8)
drawn = draw(augmentation, (28, 28), 1, np.random.default_rng(3))
kernel, found = gaussian(4, 28), allocate_images(16, 784, 16 * 784)
deform(images, np.arange(16), 0, (28, 28), drawn, 20.0, kernel, kernel, found, False)
rows = [found.brightness[bounds[0] : bounds[-1]] for bounds in found.bounds]
print(hashlib.sha256(np.concatenate(rows)).hexdigest())
"""


def deform_elsewhere(**variables: str) -> subprocess.Popen[str]:
    """Start a process that compiles a kernel and prints the digest of what it gives."""
    return subprocess.Popen(
        [sys.executable, "-c", DEFORM],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_that_compile_at_once_or_cannot_write_a_cache_agree(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "folder")
    without = {"XDG_CACHE_HOME": nowhere, "HOME": nowhere, "TMPDIR": nowhere}
    places = ({"XDG_CACHE_HOME": str(tmp_path)}, {"XDG_CACHE_HOME": str(tmp_path)}, without, {})
    started = [deform_elsewhere(**place) for place in places]
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert len(printed[0]) == 65
    assert len(set(printed)) == 1
    assert list(tmp_path.glob("exact-mnist-*/deformation.deform_groups-*.pickle"))


@pytest.mark.parametrize("name", ["engine/forward.py", "core/elementary.py"])
def test_kernels_of_other_sources_are_not_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for number, change in enumerate(("", "# changed\n", "")):
        copy = tmp_path / str(number)
        for room in ("engine", "core"):
            shutil.copytree(ROOT / "stages" / room, copy / room)
        with (copy / name).open("a") as file:
            file.write(change)
        monkeypatch.setattr(compiler, "SOURCES", (copy / "engine", copy / "core"))
        folders.append(compiler.cache_folder.__wrapped__())
    assert folders[0] == folders[2] != folders[1]
    for folder in set(folders):
        if not os.listdir(folder):
            folder.rmdir()
