"""Thousands of bad files of every kind that is read: one line each, and nothing is touched."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_files import TouchOnUnpickling
from test_params import ANY_VALUE, leaves

from stages import evaluate, preprocess, visualize
from stages.core.network import Layer
from stages.core.state import State
from stages.core.training import Epoch
from stages.pipeline import command, datasets
from stages.pipeline.checkpoint import load_checkpoint, save_checkpoint
from stages.pipeline.command import InputError
from stages.pipeline.files import save_array
from stages.pipeline.model_file import MODEL
from stages.pipeline.schemas import (
    CURVES,
    SCORED,
    parse_confusion,
    parse_curves,
    parse_metrics,
    parse_per_class,
)
from stages.plots import charts, drawing
from tests.checks.small_project import ROOT, fresh_parameters, images_and_labels
from tools import study

PARAMS = fresh_parameters().encode()
TABLE = (
    b"epoch,train_loss,validation_loss,validation_accuracy\n"
    b"1,0.797244,0.321319,0.908800\n2,0.435169,0.212709,0.941800\n"
)
LINES = PARAMS.splitlines(keepends=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Enter a folder with a small data set and outputs that must stay as they are."""
    folder, before = tmp_path_factory.mktemp("fuzz"), Path.cwd()
    os.chdir(folder)
    datasets.save_description(datasets.MNIST)
    for part, shape in (("train", (-1, 784)), ("validation", (-1, 784)), ("test", (-1, 28, 28))):
        images, labels = images_and_labels(20, seed=1)
        home = datasets.RAW if part == "test" else datasets.PROCESSED
        save_array(home / f"x_{part}.npy", images.reshape(shape))
        save_array(home / f"y_{part}.npy", labels)
    for path, content in (
        (MODEL, packed(WEIGHTS)),
        (SCORED, packed(TEST_SET)),
        (CURVES, TABLE),
        (Path("reports/metrics.json"), b"what an older run made"),
        (Path("params.yaml"), PARAMS),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    yield folder
    os.chdir(before)


def contents() -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file() and ".dvc" not in p.parts
    }


def outcome(main: Callable[[], None]) -> str:
    """Run a stage as its script does; return the one line it ends with, "" if all went well."""
    before = contents()
    try:
        command.run(main)
    except SystemExit as ended:
        line = ended.code
        assert isinstance(line, str)
        assert line.isprintable()  # so it is one line, too
        assert line.startswith("error: ")
        assert contents() == before
        return line
    return ""


@st.composite
def cut(draw: st.DrawFn) -> bytes:
    return PARAMS[: draw(st.integers(0, len(PARAMS)))]


@st.composite
def with_anything_anywhere(draw: st.DrawFn) -> bytes:
    document: Any = {"": yaml.safe_load(PARAMS)}
    *way, last = ("", *draw(st.sampled_from(list(leaves(document[""])))))
    place = document
    for part in way:
        place = place[part]
    place[last] = draw(ANY_VALUE)
    return json.dumps(document[""]).encode()


BOMB = b"".join(
    b"b%d: &b%d [%s]\n" % (n, n, b", ".join([b"*b%d" % (n - 1)] * 9)) for n in range(30)
)
HOSTILE = st.sampled_from([
    b"!!python/object/apply:os.mkdir [harm]\n", b"!!python/name:os.system\n",
    b"!!python/object/new:os.mkdir {args: [harm]}\n", b"!<tag:yaml.org,2002:binary> aGFybQ==\n",
    b"&a [*a]\n", b"&a\n", b"*a\n", b"<<: *a\n", BOMB,
    b"[" * 5000, b"{a: " * 500, b"- " * 500, b"? ", b"? [a]\n: b\n", b"---\n", b"...\n",
    b"%YAML 9.9\n", b"%TAG ! tag:\n", b"|9\n", b">-\n", b'"\\ud800"\n', b'"\\UFFFFFFFF"\n',
    b"\x00", b"\x07", b"\x1b[2J", b"\x7f", b"\xc2\x85", b"\xe2\x80\xa8", b"\xff", b"\xc0\xaf",
    b"\xed\xa0\x80", b"\xff\xfe\x00", b"9" * 5000, b"1e999", b"-.inf", b".nan", b"0x7f", b"1:30",
    b"\t", b"'", b'"', b"`", b"@", b"#",
]) | st.binary(max_size=8)  # fmt: skip


@st.composite
def with_something_hostile(draw: st.DrawFn) -> bytes:
    start = draw(st.integers(0, len(PARAMS)))
    end = start + draw(st.sampled_from([0, 0, 1, 5, 20]))
    return PARAMS[:start] + draw(HOSTILE) + PARAMS[end:]


@st.composite
def with_a_hostile_value(draw: st.DrawFn) -> bytes:
    keys = [number for number, line in enumerate(LINES) if b": " in line and b"#" not in line]
    number = draw(st.sampled_from(keys))
    line = LINES[number].split(b":")[0] + b": " + draw(HOSTILE) + b"\n"
    return b"".join([*LINES[:number], line, *LINES[number + 1 :]])


@st.composite
def with_a_line_twice(draw: st.DrawFn) -> bytes:
    keys = [number for number, line in enumerate(LINES) if b":" in line and b"#" not in line]
    number = draw(st.sampled_from(keys))
    return b"".join([*LINES[: number + 1], LINES[number], *LINES[number + 1 :]])


def test_a_thousand_bad_parameter_files_give_one_line_each(folder: Path) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=1100, suppress_health_check=list(HealthCheck))
    @given(
        cut() | with_anything_anywhere() | with_something_hostile() | with_a_hostile_value()
        | with_a_line_twice()
    )  # fmt: skip
    def fuzz(content: bytes) -> None:
        Path("params.yaml").write_bytes(content)
        # The stage reads the parameters first; if they are good, it misses the raw images here.
        seen[outcome(preprocess.main).split(": ")[1]] += 1

    try:
        fuzz()
    finally:
        Path("params.yaml").write_bytes(PARAMS)
    print(f"parameter files by what was refused: {dict(seen)}; tracebacks: 0, outputs changed: 0")
    assert set(seen) <= {"params.yaml", "data/raw/x_train.npy"}
    assert seen["params.yaml"] >= 1000
    assert not Path("harm").exists()


def array_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def archive(members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as zipped:
        warnings.simplefilter("ignore")  # of names given twice
        for name, content in members:
            zipped.writestr(name, content)
    return file.getvalue()


Arrays = Mapping[str, NDArray[Any]]
WEIGHTS = {
    name: np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    for name, shape in {"W1": (784, 1), "b1": (1,), "W2": (1, 10), "b2": (10,)}.items()
}
IMAGES, LABELS = images_and_labels(20, seed=1)
TEST_SET = {
    "images": IMAGES,
    "labels": LABELS,
    "predictions": LABELS,
    "probabilities": np.eye(10, dtype=np.float32)[LABELS],
}


def members(arrays: Arrays) -> dict[str, bytes]:
    return {f"{name}.npy": array_bytes(array) for name, array in arrays.items()}


def packed(arrays: Arrays) -> bytes:
    return archive(members(arrays).items())


TRAP = array_bytes(np.array([TouchOnUnpickling(Path("harm"))], dtype=object))
HUGE = array_bytes(np.zeros((1, 10), "f4")).replace(b"(1, 10), }       ", b"(1, 9999999999)}")


@st.composite
def with_flipped_bits(draw: st.DrawFn, good: bytes) -> bytes:
    damaged = bytearray(good)
    for place in draw(st.lists(st.integers(0, len(good) * 8 - 1), min_size=1, max_size=4)):
        damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


@st.composite
def with_a_changed_piece(draw: st.DrawFn, good: bytes) -> bytes:
    """Damage the last kilobyte, where the small arrays and the directory of an archive are."""
    start = draw(st.integers(max(0, len(good) - 1000), len(good)))
    end = min(len(good), start + draw(st.integers(0, 8)))
    return good[:start] + draw(st.binary(max_size=8)) + good[end:]


KINDS = ["f4", "f8", ">f4", "f2", "i4", "i8", "u1", "?", "c8", "S3", "U2", "M8[s]"]
VALUES = [0, 1, 9, 10, -1, 255, 0.5, np.nan, np.inf, -np.inf, 3e38, 1e-40]


@st.composite
def another_array(draw: st.DrawFn, good: Arrays) -> bytes:
    """Return an array of another type, shape or content than one of the good ones."""
    shapes = [array.shape for array in good.values()]
    odd = [(), (0,), (1, 784), (10, 1), (784, 0), (0, 10), (784, 1, 1), (2, 10), (20, 1)]
    array = draw(st.sampled_from(list(good.values())))
    if draw(st.booleans()):
        array = np.zeros(draw(st.sampled_from([*shapes, *odd])), array.dtype)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if array.dtype.kind in "fiu" and draw(st.booleans()):
            array = array.astype(draw(st.sampled_from(KINDS)))
        if array.size and array.dtype.kind in "fiu":
            places = draw(st.sampled_from([slice(None), slice(1), slice(-1, None)]))
            value = np.array(draw(st.sampled_from(VALUES)), "f8").astype(array.dtype)
            array = array.copy()
            array.reshape(-1)[places] = value
    return array_bytes(array)


@st.composite
def with_another_array(draw: st.DrawFn, good: Arrays) -> bytes:
    name = draw(st.sampled_from([*good, "W3", "b3", "W0", "w1", "scale", ""]))
    return archive((members(good) | {f"{name}.npy": draw(another_array(good))}).items())


@st.composite
def with_other_members(draw: st.DrawFn, good: Arrays) -> bytes:
    names = st.sampled_from(
        [*members(good), "W1", "W3.npy", "../harm.npy", "/tmp/harm.npy", "a/", "two\nlines",
         "\x1b[2J"]
    )  # fmt: skip
    insides = st.sampled_from(
        [*members(good).values(), TRAP, HUGE, packed(good), b"", b"\x80\x04.", packed(good)[:99]]
    )
    kept = members(good) if draw(st.booleans()) else {}
    pairs = [*kept.items(), *draw(st.lists(st.tuples(names, insides), min_size=1, max_size=3))]
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
    return archive(pairs, draw(st.sampled_from(methods)))


OTHER_FILES = st.sampled_from([
    b"", TRAP, HUGE, PARAMS, pickle.dumps(TouchOnUnpickling(Path("harm"))), archive([]),
    archive([("W1.npy", bytes(2**24))], zipfile.ZIP_DEFLATED),  # a bomb, small enough for a test
]) | st.binary(max_size=100)  # fmt: skip


def bad_archives(good: Arrays) -> st.SearchStrategy[bytes]:
    whole = packed(good)
    return (
        with_flipped_bits(whole) | with_a_changed_piece(whole) | with_another_array(good)
        | with_another_array(good) | with_other_members(good) | OTHER_FILES
        | st.integers(0, len(whole)).map(lambda end: whole[:end])
        | st.sampled_from([whole[:-22], whole[-22:], whole * 2])
    )  # fmt: skip


NUMBERS = [
    "nan", "inf", "-inf", "1e300", "-1e40", "-1", "-0", "0", "1e-300", "1.5", "2", "10", "256", "",
    " ", "1_0", "0x1", "\u0661", "1e", "one", "9" * 400, "\x00", "1\x1b[2J", '"', '"1', "'1'",
]  # fmt: skip


@st.composite
def with_other_cells(draw: st.DrawFn, good: bytes) -> bytes:
    rows = [line.split(",") for line in good.decode().splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        place = draw(st.integers(0, len(row) - 1))
        row[place] = draw(st.sampled_from(NUMBERS) | st.text(max_size=3))
    return "\n".join(",".join(row) for row in rows).encode(errors="surrogatepass")


@st.composite
def with_other_rows(draw: st.DrawFn, good: bytes) -> bytes:
    rows = good.splitlines()
    return b"\n".join(draw(st.lists(st.sampled_from([*rows, *rows, b"", b","]), max_size=5)))


def bad_tables(good: bytes) -> st.SearchStrategy[bytes]:
    return (
        with_other_cells(good) | with_other_cells(good) | with_other_rows(good)
        | with_flipped_bits(good) | with_a_changed_piece(good)
        | st.integers(0, len(good)).map(lambda end: good[:end]) | OTHER_FILES
    )  # fmt: skip


def fuzzed(
    path: Path, bad: st.SearchStrategy[bytes], main: Callable[[], None], examples: int
) -> Counter[str]:
    """Run a stage with each of the bad files at a path; count which it refuses, by name."""
    planted = contents()
    seen: Counter[str] = Counter()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(bad)
    def fuzz(content: bytes) -> None:
        path.write_bytes(content)
        line = outcome(main)
        if line:
            assert line.startswith(f"error: {path.parent}/")
            assert path.name in line.split(": ")[1]
        for other in set(contents()) - set(planted):
            Path(other).unlink()
        for other, before in planted.items():
            Path(other).write_bytes(before)
        seen["refused" if line else "taken"] += 1

    try:
        fuzz()
    finally:
        path.write_bytes(planted[str(path)])
    print(f"{path}: {dict(seen)}; tracebacks: 0, outputs changed by a refused one: 0")
    assert not Path("harm").exists()
    return seen


@pytest.fixture
def drawing_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Add the training images that figures show; lay figures out without their pixels."""
    monkeypatch.setattr(drawing, "render", lambda figure: np.zeros((1, 1, 3), np.uint8))
    monkeypatch.setattr(charts, "paint", lambda *arguments, **settings: None)
    paths = [datasets.RAW / name for name in ("x_train.npy", "y_train.npy")]
    for path, array in zip(paths, (IMAGES, LABELS), strict=True):
        save_array(path, array)
    yield
    for path in paths:
        path.unlink()


def test_hundreds_of_bad_model_files_give_evaluate_one_line_each(folder: Path) -> None:
    seen = fuzzed(MODEL, bad_archives(WEIGHTS), evaluate.main, 600)
    assert seen["refused"] >= 400


def test_hundreds_of_bad_model_files_give_visualize_one_line_each(
    folder: Path, drawing_room: None
) -> None:
    seen = fuzzed(MODEL, bad_archives(WEIGHTS), visualize.main, 150)
    assert seen["refused"] >= 100


def test_hundreds_of_bad_scored_sets_give_one_line_each(folder: Path, drawing_room: None) -> None:
    seen = fuzzed(SCORED, bad_archives(TEST_SET), visualize.main, 300)
    assert seen["refused"] >= 200


def test_hundreds_of_bad_curves_give_one_line_each(folder: Path, drawing_room: None) -> None:
    seen = fuzzed(CURVES, bad_tables(TABLE), visualize.main, 250)
    assert seen["refused"] >= 150


@pytest.mark.parametrize(
    ("path", "array", "main"),
    [
        (datasets.RAW / "x_test.npy", IMAGES, evaluate.main),
        (datasets.RAW / "y_test.npy", LABELS, evaluate.main),
        (datasets.PROCESSED / "x_validation.npy", IMAGES.reshape(20, -1), evaluate.main),
        (datasets.PROCESSED / "y_train.npy", LABELS, evaluate.main),
        (datasets.RAW / "x_train.npy", IMAGES, visualize.main),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_bad_arrays_give_one_line_each(
    folder: Path, drawing_room: None, path: Path, array: NDArray[Any], main: Callable[[], None]
) -> None:
    good = array_bytes(array)
    bad = (
        another_array({"": array}) | another_array({"": array}) | with_flipped_bits(good[:128])
        | st.integers(0, len(good)).map(lambda end: good[:end]) | OTHER_FILES
    )  # fmt: skip
    seen = fuzzed(path.parent / path.name, bad, main, 100)
    assert seen["refused"] >= 60


FIGURES = {"accuracy": 0.5, "error_rate": 0.5, "loss": 0.25}
TABLES = {
    parse_curves: TABLE,
    parse_confusion: b"actual,predicted\n3,3\n1,2\n0,0\n",
    parse_per_class: b"class,precision,recall,f1,support\n0,0.5,0.25,0.3,7\n1,1.0,0.0,0.9,3\n",
    parse_metrics: json.dumps(dict.fromkeys(("train", "validation", "test"), FIGURES)).encode(),
}


def refusal(read: Callable[[], Any]) -> str:
    """Return the line that refuses what is read, "" if nothing does."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("parse", TABLES, ids=lambda parse: parse.__name__)
def test_bad_reports_are_refused_by_name(parse: Callable[[bytes, object], Any]) -> None:
    seen: Counter[bool] = Counter()

    @settings(max_examples=200, suppress_health_check=list(HealthCheck))
    @given(bad_tables(TABLES[parse]))
    def fuzz(content: bytes) -> None:
        line = refusal(lambda: parse(content, "a table"))
        assert line == "" or line.startswith("a table: ")
        seen[bool(line)] += 1

    parse(TABLES[parse], "a table")
    fuzz()
    assert seen[True] >= 100


def test_bad_studies_are_refused_by_name(folder: Path) -> None:
    good = (ROOT / study.STUDIES).read_bytes()[:4000]
    whole = (ROOT / study.STUDIES).read_bytes()

    seen: Counter[bool] = Counter()

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(with_flipped_bits(good) | with_a_changed_piece(whole) | OTHER_FILES)
    def fuzz(content: bytes) -> None:
        study.STUDIES.write_bytes(content)
        line = refusal(study.load_studies)
        if line:
            assert line.startswith(f"{study.STUDIES}: ")
        else:
            study.table(study.load_studies(), {})
        seen[bool(line)] += 1

    try:
        fuzz()
    finally:
        study.STUDIES.unlink()
    assert seen[True] >= 50


def test_a_training_set_smaller_than_the_validation_set_is_refused(
    drawing_room: None, folder: Path
) -> None:
    assert "cannot hold 5000 of 20 images out" in outcome(preprocess.main)


def test_a_bad_checkpoint_never_counts_and_never_stops_the_training(folder: Path) -> None:
    path, fingerprint = Path("checkpoint.npz"), {"parameters": "p", "data": "d", "code": "c"}
    layers = [Layer(WEIGHTS[f"W{n}"], WEIGHTS[f"b{n}"]) for n in (1, 2)]
    state = State(1, 5, 0.5, [0.25, 0.25], [layers, layers], layers)
    save_checkpoint(fingerprint, state, [Epoch(1, 0.5, 0.25, 0.75)], path)
    with np.load(path) as arrays:
        good = dict(arrays)
    seen: Counter[bool] = Counter()

    def contents_of(found: tuple[State, list[Epoch]]) -> list[object]:
        (*numbers, networks, kept), curves = found
        layers = [layer for network in (*networks, kept) for layer in network]
        return [numbers, curves, [(a.dtype, a.shape, a.tobytes()) for pair in layers for a in pair]]

    @settings(max_examples=300, suppress_health_check=list(HealthCheck))
    @given(bad_archives(good))
    def fuzz(content: bytes) -> None:
        path.write_bytes(content)
        found = load_checkpoint(fingerprint, path)
        if isinstance(found, tuple):  # what has changed is nothing that is read
            assert contents_of(found) == contents_of((state, [Epoch(1, 0.5, 0.25, 0.75)]))
        else:
            assert found is not None
            assert found.startswith(f"{path}: ignored: ")
        seen[isinstance(found, tuple)] += 1

    try:
        fuzz()
    finally:
        path.unlink()
    assert seen[False] >= 100


def test_the_trap_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.load(io.BytesIO(TRAP), allow_pickle=True)
    assert Path("harm").exists()
