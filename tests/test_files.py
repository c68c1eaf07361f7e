"""Files: whole or not at all, never unpickled, and a clear line when they cannot be read."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.pipeline.command import InputError
from stages.pipeline.files import (
    atomic_write,
    load_array,
    load_arrays,
    load_bytes,
    replaced_together,
    save_array,
    save_arrays,
    save_csv,
    save_json,
)
from stages.pipeline.params import read_document
from tests.checks.small_project import ROOT, environment

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)


class TouchOnUnpickling:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def array_bytes(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def archive_bytes(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def one_line(load: Callable[[Path], object], path: Path) -> str:
    """Return the message of the InputError that loading `path` must raise."""
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def load_mapped(path: Path) -> object:
    return load_array(path, memory_map=True)


@pytest.mark.parametrize("failure", [ValueError, OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    expected = InputError if failure is OSError else failure
    with pytest.raises(expected), atomic_write(path) as file:  # noqa: PT012
        file.write(b"half of the ne")
        raise failure
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_files_that_belong_together_are_replaced_together(tmp_path: Path) -> None:
    def contents() -> dict[str, str]:
        return {path.name: path.read_text() for path in tmp_path.iterdir()}

    def write(name: str, content: str) -> None:
        with atomic_write(tmp_path / name) as file:
            file.write(content.encode())
            if content == "too much":
                raise OSError

    old = {"one": "old", "other": "old"}
    for name in old:
        write(name, "old")
    with pytest.raises(InputError, match="other: cannot be written"), replaced_together():  # noqa: PT012
        write("one", "new")
        write("other", "too much")
    assert contents() == old
    with replaced_together():
        write("one", "new")
        write("other", "newer")
        assert {name: (tmp_path / name).read_text() for name in old} == old
    assert contents() == {"one": "new", "other": "newer"}
    write("one", "newest")  # at once again
    assert contents() == {"one": "newest", "other": "newer"}


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import sys, time; from pathlib import Path\n"
        "from stages.pipeline.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half of the ne'); file.flush(); print('writing', flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    # What it left behind stands in no later write's way.
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_text() == "new"


def test_a_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    save_array(tmp_path / "a" / "b" / "x.npy", ARRAY)
    np.testing.assert_array_equal(load_array(tmp_path / "a" / "b" / "x.npy"), ARRAY)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_what_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "file"
    before = os.umask(umask)
    try:
        with atomic_write(path) as file:
            file.write(b"new")
        assert os.umask(umask) == umask  # writing leaves the umask itself alone
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = {"W1": ARRAY, "b1": np.zeros(0, np.float32), "labels": np.array([3, 1], np.uint8)}
    save_arrays(tmp_path / "a.npz", arrays)
    loaded = load_arrays(tmp_path / "a.npz")
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)

    save_array(tmp_path / "a.npy", ARRAY)
    for load in (load_array, load_mapped):
        np.testing.assert_array_equal(load(tmp_path / "a.npy"), ARRAY)


def test_the_bytes_of_an_archive_do_not_depend_on_when_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_arrays(tmp_path / "now.npz", {"W1": ARRAY})
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(1e9))
    save_arrays(tmp_path / "then.npz", {"W1": ARRAY})
    assert (tmp_path / "now.npz").read_bytes() == (tmp_path / "then.npz").read_bytes()


@pytest.mark.parametrize("load", [load_array, load_mapped, load_arrays, load_bytes])
def test_a_missing_file_is_named_with_the_remedy(
    tmp_path: Path, load: Callable[[Path], object]
) -> None:
    message = one_line(load, tmp_path / "missing")
    assert "no such file" in message
    assert "dvc repro" in message


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
@pytest.mark.parametrize("load", [load_array, load_mapped, load_arrays, load_bytes, read_document])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(
    tmp_path: Path, load: Callable[[Path], object]
) -> None:
    path = tmp_path / "file"
    os.mkfifo(path)
    assert "must be a regular file" in one_line(load, path)
    path.unlink()
    for device in ("/dev/zero", "/dev/tty"):
        path.symlink_to(device)
        assert "must be a regular file" in one_line(load, path)
        path.unlink()
    path.mkdir()
    assert one_line(load, path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_a_pipe_in_place_of_what_is_written_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for name in ("file", ".file.part"):
        os.mkfifo(tmp_path / name)
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


NOT_ARRAYS = {
    "empty": b"",
    "text": b"not an array",
    "the start of a zip": b"PK\x03\x04not a zip",
    "an archive": archive_bytes(W1=ARRAY),
    "an open quote": array_bytes(ARRAY).replace(b"'descr'", b"'descr,"),
    "a key of bytes": array_bytes(ARRAY).replace(b"'shape':", b"b'shap':"),
    "a broken shape": array_bytes(ARRAY).replace(b"(3, 4)", b"(3,,4)"),
    "too large a shape": array_bytes(ARRAY).replace(b"(3, 4)", b"(3, 5)"),
    "far too large a shape": array_bytes(ARRAY).replace(b"(3, 4), }       ", b"(3, 4000000000)}"),
    "objects": array_bytes(ARRAY).replace(b"<f4", b"|O8"),
}


@pytest.mark.parametrize("content", NOT_ARRAYS.values(), ids=NOT_ARRAYS)
@pytest.mark.parametrize("load", [load_array, load_mapped])
def test_what_is_not_an_array_is_named(
    tmp_path: Path, load: Callable[[Path], object], content: bytes
) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    assert "not a readable .npy array" in one_line(load, path)


NOT_ARCHIVES = {
    "empty": b"",
    "text": b"not an archive",
    "the start of a zip": b"PK\x03\x04not a zip",
    "an array": array_bytes(ARRAY),
    "a wrong checksum": archive_bytes(W1=ARRAY).replace(b"(3, 4)", b"(4, 3)"),
}


@pytest.mark.parametrize("content", NOT_ARCHIVES.values(), ids=NOT_ARCHIVES)
def test_what_is_not_an_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert "not a readable .npz archive" in one_line(load_arrays, path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (6, 100),  # a version of the format that is not there yet
        (8, 1),  # encrypted
        (10, 1),  # compressed by a method of the eighties
        (10, 8),  # deflated, which it is not
        (10, 12),  # bzip2, the same
        (10, 14),  # LZMA, the same
    ],
)
def test_an_archive_with_a_damaged_directory_is_named(
    tmp_path: Path, field: int, value: int
) -> None:
    content = bytearray(archive_bytes(W1=ARRAY))
    content[content.index(b"PK\x01\x02") + field] = value
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert "not a readable .npz archive" in one_line(load_arrays, path)


def test_a_zip_bomb_is_named_before_it_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, W1=np.zeros(2**24, np.float32))
    assert path.stat().st_size < 2**17
    assert "'W1.npy' is compressed" in one_line(load_arrays, path)


@pytest.mark.parametrize(
    ("load", "content"),
    [
        (load_array, array_bytes(ARRAY)),
        (load_mapped, array_bytes(ARRAY)),
        (load_arrays, archive_bytes(W1=ARRAY, b1=ARRAY)),
    ],
)
def test_a_file_cut_short_anywhere_is_named(
    tmp_path: Path, load: Callable[[Path], object], content: bytes
) -> None:
    path = tmp_path / "a.npy"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert "not a readable" in one_line(load, path)


@pytest.mark.parametrize("load", [load_array, load_mapped, load_arrays])
def test_nothing_is_unpickled(tmp_path: Path, load: Callable[[Path], object]) -> None:
    trap = TouchOnUnpickling(tmp_path / "unpickled")
    objects = np.array([trap], dtype=object)
    path = tmp_path / "a.npy"
    for content in (array_bytes(objects), archive_bytes(W1=objects), pickle.dumps(trap)):
        path.write_bytes(content)
        one_line(load, path)
    assert not trap.path.exists()


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        save_array(tmp_path / "a.npy", np.array([{}], dtype=object))
    assert list(tmp_path.iterdir()) == []


def test_a_table_has_lf_ends_and_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [("1", "plain"), ("2", 'a "quoted", text'), ("3", "two\nlines, in Zürich")]
    save_csv(path, ("number", "text"), rows)
    assert b"\r" not in path.read_bytes()
    assert path.read_bytes().startswith(b"number,text\n1,plain\n")
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["number", "text"], *map(list, rows)]


def test_json_is_as_given_and_ends_with_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    document = {"train": {"loss": 0.25, "accuracy": 1.0}, "a": [1, 2]}
    save_json(path, document)
    assert json.loads(path.read_text()) == document
    assert list(json.loads(path.read_text())) == ["train", "a"]
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_what_json_has_not(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        save_json(path, {"loss": value})
    assert path.read_text() == "old"
