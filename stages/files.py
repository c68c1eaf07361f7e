"""Reading and writing files so that nothing is half-written and nothing is unpickled."""

from __future__ import annotations

import csv
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import InputError

Array = NDArray[Any]


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; move it over `path` only when all went well.

    A reader sees the old file or the whole new one, whatever interrupts the write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # mkstemp makes private files; outputs get the mode that `open` would give.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_array(path: Path, array: Array) -> None:
    """Write one array as `.npy`."""
    with replacing(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path, *, memory_map: bool = False) -> Array:
    """Read one `.npy` array, never unpickling.

    Raises:
        InputError: the file is missing, cut short or not an array.
    """
    try:
        array: Array = np.load(path, allow_pickle=False, mmap_mode="r" if memory_map else None)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; 'dvc repro' makes it") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: not a readable .npy array ({_first_line(error)})") from None
    return array


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays as an uncompressed `.npz`, whose bytes depend on the arrays alone."""
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, Array]:
    """Read a `.npz` archive, never unpickling.

    Raises:
        InputError: the file is missing, cut short or not such an archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; 'dvc repro' makes it") from None
    except (ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable .npz archive ({_first_line(error)})") from None


def save_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document, keys in the order given; NaN and infinity are refused."""
    with replacing(path) as file:
        file.write((json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def save_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV with LF line ends on every platform."""
    with replacing(path) as file:
        lines = csv.writer(_Utf8(file), lineterminator="\n")
        lines.writerow(header)
        lines.writerows(rows)


class _Utf8:
    """The text side of a binary file, for the csv module."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())


def load_csv(path: Path) -> list[dict[str, str]]:
    """Read a table: one mapping a row, from column name to text.

    Raises:
        InputError: the file is missing or not UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; 'dvc repro' makes it") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV table ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__
