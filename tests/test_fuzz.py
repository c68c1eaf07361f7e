"""Over a thousand bad parameter and model files: each gives one line, and nothing is touched."""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_files import TouchOnUnpickling
from test_params import ANY_VALUE, leaves

from stages import evaluate, preprocess
from stages.pipeline import command, datasets
from stages.pipeline.files import save_array
from tests.checks.small_project import ROOT, images_and_labels

PARAMS = (ROOT / "params.yaml").read_bytes()
LINES = PARAMS.splitlines(keepends=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Enter a folder with a small data set and outputs that must stay as they are."""
    folder, before = tmp_path_factory.mktemp("fuzz"), Path.cwd()
    os.chdir(folder)
    for part, shape in (("train", (-1, 784)), ("validation", (-1, 784)), ("test", (-1, 28, 28))):
        images, labels = images_and_labels(20, seed=1)
        home = datasets.RAW if part == "test" else datasets.PROCESSED
        save_array(home / f"x_{part}.npy", images.reshape(shape))
        save_array(home / f"y_{part}.npy", labels)
    for path in (Path("data/scored.npz"), Path("reports/metrics.json")):
        path.parent.mkdir(exist_ok=True)
        path.write_text("what an older run made")
    Path("params.yaml").write_bytes(PARAMS)
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


SIZES = ((784, 1), (1,), (1, 10), (10,))
GOOD = {
    name: np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    for name, shape in zip(("W1", "b1", "W2", "b2"), SIZES, strict=True)
}
MEMBERS = {f"{name}.npy": array_bytes(array) for name, array in GOOD.items()}
MODEL = archive(MEMBERS.items())
TRAP = array_bytes(np.array([TouchOnUnpickling(Path("harm"))], dtype=object))
HUGE = array_bytes(np.zeros((1, 10), "f4")).replace(b"(1, 10), }       ", b"(1, 9999999999)}")


@st.composite
def with_flipped_bits(draw: st.DrawFn) -> bytes:
    damaged = bytearray(MODEL)
    for place in draw(st.lists(st.integers(0, len(MODEL) * 8 - 1), min_size=1, max_size=4)):
        damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


@st.composite
def with_a_changed_piece(draw: st.DrawFn) -> bytes:
    """Damage the last kilobyte, where the small arrays and the directory of the archive are."""
    start = draw(st.integers(max(0, len(MODEL) - 1000), len(MODEL)))
    end = min(len(MODEL), start + draw(st.integers(0, 8)))
    return MODEL[:start] + draw(st.binary(max_size=8)) + MODEL[end:]


@st.composite
def with_another_array(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from([*GOOD, "W3", "b3", "W0", "w1", "scale", ""]))
    shape = draw(st.sampled_from([*SIZES, (), (0,), (1, 784), (10, 1), (784, 1, 1), (2, 10)]))
    kind = draw(
        st.sampled_from(["f4", "f8", ">f4", "f2", "i4", "u1", "?", "c8", "S3", "U2", "M8[s]"])
    )
    value = draw(st.sampled_from([0, 1, np.nan, np.inf, -np.inf, 3e38]))
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array = np.full(shape, value, "f4").astype(kind)
    return archive((MEMBERS | {f"{name}.npy": array_bytes(array)}).items())


@st.composite
def with_other_members(draw: st.DrawFn) -> bytes:
    names = st.sampled_from(
        [*MEMBERS, "W1", "W3.npy", "../harm.npy", "/tmp/harm.npy", "a/", "two\nlines", "\x1b[2J"]
    )
    insides = st.sampled_from([*MEMBERS.values(), TRAP, HUGE, MODEL, b"", b"\x80\x04.", MODEL[:99]])
    members = dict(MEMBERS) if draw(st.booleans()) else {}
    pairs = [*members.items(), *draw(st.lists(st.tuples(names, insides), min_size=1, max_size=3))]
    methods = [zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
    return archive(pairs, draw(st.sampled_from(methods)))


OTHER_FILES = st.sampled_from([
    b"", TRAP, HUGE, PARAMS, pickle.dumps(TouchOnUnpickling(Path("harm"))), archive([]),
    archive([("W1.npy", bytes(2**24))], zipfile.ZIP_DEFLATED),  # a bomb, small enough for a test
    MODEL[:-22], MODEL[-22:], MODEL * 2,
]) | st.binary(max_size=100)  # fmt: skip


def test_hundreds_of_bad_model_files_give_one_line_each(folder: Path) -> None:
    seen: Counter[str] = Counter()
    evaluate.MODEL.parent.mkdir()
    planted = contents()

    @settings(max_examples=600, suppress_health_check=list(HealthCheck))
    @given(
        with_flipped_bits() | with_a_changed_piece() | with_another_array() | with_other_members()
        | st.integers(0, len(MODEL)).map(lambda end: MODEL[:end]) | OTHER_FILES
    )  # fmt: skip
    def fuzz(content: bytes) -> None:
        evaluate.MODEL.write_bytes(content)
        line = outcome(evaluate.main)
        if line:
            assert line.startswith("error: models/model.npz: ")
        else:
            for path, before in planted.items():
                Path(path).write_bytes(before)
        seen["refused" if line else "evaluated"] += 1

    fuzz()
    print(f"model files: {dict(seen)}; tracebacks: 0, outputs changed by a refused one: 0")
    assert seen["refused"] >= 400
    assert not Path("harm").exists()


def test_the_trap_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.load(io.BytesIO(TRAP), allow_pickle=True)
    assert Path("harm").exists()
