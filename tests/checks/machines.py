"""Other machines to compute on, put together in a cache folder with nothing installed.

Debian's packages come through apt, from the sources that this system has, and are unpacked;
wheels come through pip. Run as a script it describes the machine that runs it, as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

DEBIAN = {
    "amd64": (
        *("python3-numpy", "libblas3", "liblapack3", "libatlas3-base", "libblis4-pthread"),
        *("libopenblas0-pthread", "libfaketime", "locales", "qemu-user-static"),
    ),
    "arm64": ("python3", "libstdc++6"),
}
PURE = ("pydantic", "pyyaml", "tqdm")
"""What training imports beside NumPy."""
ENGINE = ("numba", "llvmlite")
"""And what the engine does; without these the textbook trains."""
PACKAGES = ("numpy", "matplotlib", "pydantic", "pyyaml", "tqdm", "tensorflow", "dvc")


class NoMachineError(Exception):
    """A machine that cannot be had here. The message says why in one line."""


@dataclass(frozen=True)
class Machine:
    """What runs Python: the command's first words, and the environment they need."""

    python: Sequence[str] = (sys.executable,)
    environment: Mapping[str, str] = field(default_factory=dict)


def other_wheels(cache: Path, variant: str) -> Machine:
    """Return this Python with other wheels from PyPI, given as `name==version ...`."""
    return Machine(environment={"PYTHONPATH": str(wheels(cache, *variant.split()))})


def other_python(cache: Path, variant: str) -> Machine:
    """Return another Python of this system, with the same packages."""
    name = f"python{variant}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for program in (shutil.which(name), *pyenv.glob(f"versions/*/bin/{name}")):
        # pyenv puts a program of every name into PATH; it fails unless its version is chosen.
        if program and subprocess.run([program, "--version"], capture_output=True).returncode == 0:
            path = wheels(cache, _numpy(), *PURE, python=name, machine=platform.machine())
            return Machine([str(program)], {"PYTHONPATH": str(path)})
    raise NoMachineError(f"this system has no {name}")


def debian_numpy(cache: Path, variant: str) -> Machine:
    """Return Debian's Python and NumPy on a BLAS of Debian's, given as the folder it lies in."""
    root = unpacked(cache, "amd64")
    python, loader = _one(root, "usr/bin/python3.*"), _one(root, "lib/*/ld-linux-x86-64.so.2")
    libraries = root / "usr/lib/x86_64-linux-gnu"
    if not (libraries / variant).is_dir():
        raise NoMachineError(f"this system's packages have no BLAS in a folder named {variant}")
    search = _joined(libraries / variant, libraries / "lapack", libraries, loader.parent)
    path = _joined(wheels(cache, *PURE, python=python.name, machine="x86_64"),
                   root / "usr/lib/python3/dist-packages")  # fmt: skip
    # Through its own loader, and so with its own C library, whatever this system's is.
    return Machine([str(loader), "--library-path", search, str(python)],
                   {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": path})  # fmt: skip


def aarch64(cache: Path, variant: str) -> Machine:
    """Return the same NumPy's wheel for aarch64, on a processor that QEMU emulates."""
    root = unpacked(cache, "arm64")
    python = _one(root, "usr/bin/python3.*")
    path = wheels(cache, _numpy(), *ENGINE, *PURE, python=python.name, machine="aarch64")
    return Machine([*_qemu(cache, "aarch64", variant), "-L", str(root), str(python)],
                   {"PYTHONHOME": str(root / "usr"), "PYTHONPATH": str(path)})  # fmt: skip


def x86_64(cache: Path, variant: str) -> Machine:
    """Return this Python on an x86-64 processor that QEMU emulates."""
    return Machine([*_qemu(cache, "x86_64", variant), sys.executable])


def moved_clock(cache: Path, variant: str) -> Machine:
    """Return this Python with a clock that is ahead, by an interval as libfaketime takes it."""
    library = _one(unpacked(cache, "amd64"), "usr/lib/*/faketime/libfaketimeMT.so.1")
    return Machine(environment={"LD_PRELOAD": str(library), "FAKETIME": variant})


def foreign_locale(cache: Path, variant: str) -> Machine:
    """Return this Python in a locale of Debian's, compiled for it."""
    characters = unpacked(cache, "amd64") / "usr/share/i18n"
    locales = cache / "locales"
    if not (locales / variant).is_dir():
        with _built(locales / variant) as folder:
            output(["localedef", "--no-archive", "-i", variant, "-f", "UTF-8", folder / variant],
                   I18NPATH=str(characters))  # fmt: skip
    return Machine(environment={"LOCPATH": str(locales / variant), "LC_ALL": variant})


def unpacked(cache: Path, architecture: str) -> Path:
    """Return a folder with Debian's packages for an architecture and all they need, unpacked."""
    root = cache / architecture
    if not root.is_dir():
        with _built(root) as folder, tempfile.TemporaryDirectory() as apt:
            for name in ("lists/partial", "archives/partial"):
                (Path(apt) / name).mkdir(parents=True)
            # By this record nothing is installed yet, so everything needed is downloaded.
            (Path(apt) / "status").touch()
            settings = {
                "APT::Architecture": architecture,
                "APT::Architectures": architecture,
                "APT::Sandbox::User": "",
                "Dir::State": apt,
                "Dir::State::status": f"{apt}/status",
                "Dir::Cache": apt,
            }
            options = [f"-o{name}={value}" for name, value in settings.items()]
            output(["apt-get", *options, "update"])
            known = set(output(["apt-cache", *options, "pkgnames"]).split())
            wanted = [name for name in DEBIAN[architecture] if name in known]
            output(["apt-get", *options, "--yes", "--no-install-recommends", "--download-only",
                    "install", *wanted])  # fmt: skip
            for package in Path(apt, "archives").glob("*.deb"):
                output(["dpkg", "-x", package, folder])
    return root


def wheels(cache: Path, *requirements: str, python: str = "", machine: str = "") -> Path:
    """Return a folder with wheels from PyPI, for this Python or for another one and its machine."""
    pins = [r if "==" in r else f"{r}=={metadata.version(r)}" for r in requirements]
    names = (python or f"python3.{sys.version_info[1]}", machine or "this", *pins)
    folder = cache / "-".join(names).replace("==", "-")
    if not folder.is_dir():
        options = ["--no-deps"]
        if machine:
            tags = ("_2_28", "_2_27", "_2_17", "2014")
            options = [f"--platform=manylinux{tag}_{machine}" for tag in tags]
            options += ["--python-version", python.removeprefix("python")]
        with _built(folder) as target:
            output([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check",
                    "install", "--only-binary=:all:", "--target", target, *options, *pins],
                  )  # fmt: skip
    return folder


def output(command: Sequence[str | Path], **environment: str) -> str:
    """Return what a command prints.

    Raises:
        NoMachineError: it cannot be run, or it failed.
    """
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True,
                              env=os.environ | {"LC_ALL": "C"} | environment).stdout  # fmt: skip
    except OSError as error:
        raise NoMachineError(f"{command[0]}: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if not line.startswith("W")]
        raise NoMachineError(f"{Path(command[0]).name}: {(lines or ['failed'])[-1]}") from None


@contextmanager
def _built(target: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes `target` only when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)
        Path(folder).chmod(0o755)
        Path(folder).rename(target)


def _qemu(cache: Path, architecture: str, processor: str) -> list[str]:
    program = _one(unpacked(cache, "amd64"), f"usr/bin/qemu-{architecture}-static")
    return [str(program), "-cpu", processor]


def _numpy() -> str:
    return f"numpy=={metadata.version('numpy')}"


def _one(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if not found:
        raise NoMachineError(f"this system's packages have no {pattern}")
    return found[0]


def _joined(*folders: Path) -> str:
    return os.pathsep.join(map(str, folders))


def description() -> dict[str, Any]:
    """Describe the machine that runs this."""
    features = simd_features()
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "Python": platform.python_version(),
        "BLAS": _blas(),
        "SIMD": " ".join(name for name, found in features.items() if found) or "baseline",
        **versions,
    }


def simd_features() -> dict[str, bool]:
    """Return the processor features that NumPy can be told not to use, and whether they are on."""
    try:
        from numpy._core import _multiarray_umath as umath
    except ImportError:  # before NumPy 2
        from numpy.core import _multiarray_umath as umath
    return {name: umath.__cpu_features__[name] for name in umath.__cpu_dispatch__}


def _processor() -> str:
    with suppress(OSError):
        names = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
        if names:
            return str(names[0])
    return platform.processor() or "unknown"


def _blas() -> str:
    """Return name, version and kernel of the BLAS in memory, or else what NumPy was built with."""
    import numpy as np

    libraries = []
    with suppress(OSError):
        mapped = Path("/proc/self/maps").read_text()
        libraries = sorted(set(re.findall(r"/\S.*/lib[^/]*(?:blas|blis).*", mapped)))
    for library in libraries:
        for prefix, suffix in (("scipy_", "64_"), ("", "64_"), ("", "")):
            function = getattr(ctypes.CDLL(library), f"{prefix}openblas_get_config{suffix}", None)
            if function:
                function.restype = ctypes.c_char_p
                words = function().decode().split()
                return f"{words[0]} {words[1]} {words[-2]}"  # before MAX_THREADS
    if libraries:
        return f"{Path(libraries[0]).parent.name}/{Path(libraries[0]).name}"
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


if __name__ == "__main__":
    print(json.dumps(description()))
