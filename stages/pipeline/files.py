"""Reading and writing files so that nothing is half-written and nothing is unpickled."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.pipeline.command import InputError

if TYPE_CHECKING:
    from pydantic import ValidationError

Array = NDArray[Any]


_written: ContextVar[dict[Path, Path] | None] = ContextVar("written", default=None)
"""Within `replaced_together`: the files to be replaced, and their temporary files."""


@contextmanager
def replaced_together() -> Iterator[None]:
    """Keep all old files until every `atomic_write` within has gone well.

    Raises:
        InputError: a file cannot be replaced.
    """
    written: dict[Path, Path] = {}
    token = _written.set(written)
    try:
        yield
        for path, temporary in written.items():
            with _writing(path):
                os.replace(temporary, path)
    finally:
        _written.reset(token)
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; move it over `path` only when all went well.

    A reader sees the old file or the whole new one, whatever interrupts the write. What a killed
    process left of the temporary file, the next write replaces.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    written = _written.get()
    temporary = path.with_name(f".{path.name}.part")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.unlink(missing_ok=True)  # not opened: it could be a pipe
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if written is None:
                os.replace(temporary, path)
            else:
                written[path] = temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def save_array(path: Path, array: Array) -> None:
    """Write one array as `.npy`."""
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path, *, memory_map: bool = False) -> Array:
    """Read one `.npy` array, never unpickling.

    Raises:
        InputError: the file is missing, no regular file, cut short or not an array.
    """
    with _reading(path, "a readable .npy array"):
        if memory_map:
            return np.lib.format.open_memmap(path, mode="c")
        with path.open("rb") as file:
            array: Array = np.lib.format.read_array(file, allow_pickle=False)
            return array


def check_regular(path: Path) -> None:
    """Refuse what is no file of bytes before it is opened: reading a pipe or a device can hang.

    Raises:
        InputError: it is a folder, a pipe, a device or a socket.
        FileNotFoundError: there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path}: must be a regular file, not a folder, a pipe or a device")


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged file makes a reader raise into one line that names the file."""
    try:
        check_regular(path)
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; 'dvc repro' makes it") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise InputError(f"{path}: not {kind} ({reason})") from None


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays as an uncompressed `.npz`, whose bytes depend on the arrays alone.

    `np.savez` streams each array into the archive, and how Python's zipfile marks a stream's size
    has changed between its patch releases; a member of known size looks the same in all.
    """
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
            add_member(archive, f"{name}.npy", content.getvalue())


def add_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to an archive so that its bytes depend on its name and content alone."""
    member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    member.create_system = 3  # Unix, on every system
    member.external_attr = 0o600 << 16
    archive.writestr(member, content)


def load_arrays(path: Path) -> dict[str, Array]:
    """Read a `.npz` archive, never unpickling.

    Raises:
        InputError: the file is missing, no regular file, cut short, compressed or not such an
            archive.
    """
    arrays: dict[str, Array] = {}
    with _reading(path, "a readable .npz archive"), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            # As `save_arrays` stores them, arrays take no more memory than the file takes disk; a
            # compressed megabyte may unpack to a gigabyte.
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{member.filename!r} is compressed")
            with archive.open(member) as file:
                name = member.filename.removesuffix(".npy")
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def save_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document, keys in the order given; NaN and infinity are refused."""
    with atomic_write(path) as file:
        file.write((json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def save_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV with LF line ends on every platform."""
    with atomic_write(path) as file:
        lines = csv.writer(_Utf8(file), lineterminator="\n")
        lines.writerow(header)
        lines.writerows(rows)


class _Utf8:
    """The text side of a binary file, for the csv module."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())


def load_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        InputError: the file is missing, no regular file or cannot be read.
    """
    with _reading(path, "a readable file"):
        return path.read_bytes()


def damaged(name: object, error: ValidationError) -> InputError:
    """Return the refusal of a document, called `name`, that is not what its schema says."""
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    return InputError(": ".join(filter(None, [f"{name}: damaged", place, problem["msg"]])))
