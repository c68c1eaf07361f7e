"""The cache of compiled kernels: whatever is wrong with it, kernels are compiled anew."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from stages.engine import compiler
from tests.checks.small_project import ROOT, environment


def double(x: float) -> float:
    return x + x


def compiled() -> Any:
    """Return a kernel as a new process finds it."""
    return compiler.entry_kernel(double)


def loaded(kernel: Any) -> int:
    """Return how many of a kernel's signatures came from the cache."""
    return sum(kernel.stats.cache_hits.values())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(compiler, "cache_folder", lambda: tmp_path)
    return tmp_path


def test_a_kernel_is_compiled_once_for_each_signature(folder: Path) -> None:
    first, second = compiled(), compiled()
    assert [first(1.5), first(2), second(1.5), second(2)] == [3.0, 4, 3.0, 4]
    assert (loaded(first), loaded(second)) == (0, 2)
    assert len(list(folder.iterdir())) == 2


def with_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest() + content


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "shorter than a digest": lambda content: content[:20],
    "cut off": lambda content: content[:-1],
    "one bit": lambda content: content[:-900] + bytes([content[-900] ^ 1]) + content[-899:],
    "no pickle": lambda content: with_digest(b"no pickle"),
    "another pickle": lambda content: with_digest(pickle.dumps([1, 2, 3])),
    "a module that is gone": lambda content: with_digest(b"cno_such_module\nname\n."),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced(folder: Path, damage: str) -> None:
    assert compiled()(1.5) == 3.0
    (path,) = folder.iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    kernel, another = compiled(), compiled()
    assert kernel(1.5) == another(1.5) == 3.0
    assert (loaded(kernel), loaded(another)) == (0, 1)
    assert list(folder.iterdir()) == [path]


def test_what_is_no_file_is_left_alone(folder: Path) -> None:
    assert compiled()(1.5) == 3.0
    (path,) = folder.iterdir()
    path.unlink()
    path.mkdir()
    assert compiled()(1.5) == 3.0
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, step, fail)
    assert compiled()(1.5) == 3.0
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_no_error(folder: Path) -> None:
    assert compiled()(1.5) == 3.0
    (path,) = folder.iterdir()
    path.unlink()
    path.with_name(f"{path.name}.{os.getpid()}.part").symlink_to("/dev/full")
    assert compiled()(1.5) == 3.0
    assert list(folder.iterdir()) == []


def test_without_a_folder_kernels_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "cache_folder", lambda: None)
    kernels = compiled(), compiled()
    assert [kernel(1.5) for kernel in kernels] == [3.0, 3.0]
    assert sum(map(loaded, kernels)) == 0


# ---- which folder it is

find_folder: Callable[[], Path | None] = compiler.cache_folder.__wrapped__


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the three places for the cache, the best first."""
    places = [tmp_path / "xdg", tmp_path / "home" / ".cache", tmp_path / "temporary"]
    for place in places:
        place.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(places[0]))
    monkeypatch.setenv("HOME", str(places[1].parent))
    monkeypatch.setattr(compiler.tempfile, "gettempdir", lambda: str(places[2]))
    return places


def test_the_first_place_that_can_be_written_is_used(roots: list[Path]) -> None:
    for place in roots:
        folder = find_folder()
        assert folder is not None
        assert folder.parent == place
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.rmdir()
        place.rmdir()
        place.touch()
    assert find_folder() is None


def test_a_relative_place_is_not_used(
    roots: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "xdg")
    folder = find_folder()
    assert folder is not None
    assert folder.parent == roots[1]


def opened(folder: Path) -> None:
    folder.chmod(0o770)


def linked(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize("change", [opened, linked])
def test_a_folder_that_others_may_have_filled_is_not_trusted(
    roots: list[Path], change: Callable[[Path], None]
) -> None:
    found = []
    for place in roots:
        folder = find_folder()
        assert folder is not None
        found.append(folder.parent == place)
        change(folder)
    assert found == [True, True, True]
    assert find_folder() is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such numbers")
def test_another_users_folder_is_not_trusted(tmp_path: Path, monkeypatch: Any) -> None:
    tmp_path.chmod(0o700)
    assert compiler._is_private(tmp_path)
    another = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    assert not compiler._is_private(tmp_path)


def test_old_folders_go_when_a_new_one_is_made(roots: list[Path]) -> None:
    kept = ["exact-mnist-00000000000000a1", "exact-mnist-machines", "other", "exact-mnist-1"]
    for name in (*kept, "exact-mnist-00000000000000a0"):
        (roots[0] / name).mkdir()
        (roots[0] / name / "file").touch()
        days = 1 if name == kept[0] else 31
        os.utime(roots[0] / name, (time.time() - days * 86400,) * 2)
    folder = find_folder()
    assert folder is not None
    assert sorted(path.name for path in roots[0].iterdir()) == sorted([*kept, folder.name])
    os.utime(folder, (0, 0))
    assert find_folder() == folder
    assert folder.stat().st_mtime > time.time() - 86400


# ---- the user's own settings for Numba

SETTINGS = """
from stages.engine.compiler import kernel
import numba

print(numba.config.DISABLE_JIT, int(numba.config.OPT), numba.config.BOUNDSCHECK)
print(numba.config.CPU_NAME, type(kernel(lambda: 0)).__name__)
"""


@pytest.mark.parametrize("file", ["", "disable_jit: 1\nopt: '0'\n"])
@pytest.mark.parametrize(
    "variables",
    [
        {"NUMBA_DISABLE_JIT": "1"},
        {"NUMBA_OPT": "9", "NUMBA_BOUNDSCHECK": "1", "NUMBA_DEBUG": "1"},
        {"NUMBA_CACHE_LOCATOR_CLASSES": "nothing", "NUMBA_CACHE_DIR": "/nowhere"},
    ],
)
def test_settings_for_numba_do_not_reach_the_engine(
    tmp_path: Path, variables: dict[str, str], file: str
) -> None:
    (tmp_path / ".numba_config.yaml").write_text(file)
    done = subprocess.run(
        [sys.executable, "-c", SETTINGS],
        cwd=tmp_path,
        env=environment(**{"PYTHONPATH": str(ROOT), "NUMBA_CPU_NAME": "generic"} | variables),
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout == "0 3 None\ngeneric CPUDispatcher\n"
