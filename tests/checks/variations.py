"""Train under many variations of the machine and of what stands around it: one hash for all?

    python -m tests.checks.variations                    # everything, some of it slow
    python -m tests.checks.variations --fast             # few images, nothing downloaded: for CI
    python -m tests.checks.variations "workers: 3" "umask 077" --epochs 3

What is varied follows reprotest, Debian's tester of reproducible builds, and adds what changes
the order of floating-point sums: BLAS libraries, their kernels, threads, processors. Each
variation runs the train and evaluate stages, and all files that they write must be the same. What
is very slow, as an emulated processor is, trains on few images, and so does its own reference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml

from tests.checks import machines
from tests.checks.machines import Machine, NoMachineError
from tests.checks.small_project import ROOT, environment

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exact-mnist-machines"
MODEL = "models/model.npz"
METRICS = "reports/metrics.json"
FEW_IMAGES = 2000


class StageFailedError(Exception):
    """A command failed; the message is all that it printed."""


@dataclass(frozen=True)
class Variation:
    """One way in which a run differs; whatever is left out is as it is.

    Attributes:
        name: what the table calls it.
        environment: variables; `{folder}` in a value is the folder that the run has to itself.
        machine: makes what runs Python, in a cache folder, if that needs downloads.
        trains_only: DVC and TensorFlow are not on that machine, so only training can run there.
        slow: so much that it trains on few images.
        one_core: whether only one core may be used.
        umask: of the run's processes.
        folder: name of the folder in which it runs.
        backwards: whether the files there are made in reverse order.
        not_here: why it cannot run on this system, if so.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    machine: Callable[[Path], Machine] | None = None
    trains_only: bool = False
    slow: bool = False
    one_core: bool = False
    umask: int = -1
    folder: str = "run"
    backwards: bool = False
    not_here: str = ""


_FEATURES = machines.simd_features()
_ON_LINUX = "" if sys.platform == "linux" else "needs Linux"
_ON_X86 = "" if platform.machine() in ("x86_64", "AMD64") else "needs an x86-64 processor"
_ON_X86_LINUX = _ON_LINUX or _ON_X86
_AVX512 = any(_FEATURES.get(name) for name in ("X86_V4", "AVX512_SKX"))
_ON_AVX512 = _ON_X86 or ("" if _AVX512 else "the processor has no AVX-512")


def _threads(count: int, workers: int = 1) -> Variation:
    # With more threads than cores, OpenBLAS's threads mostly wait for each other.
    name = f"BLAS threads: {count}" if workers == 1 else f"{workers} workers, {count} BLAS threads"
    variables = {"BLAS_THREADS": str(count), "WORKERS": str(workers)}
    return Variation(name, variables, slow=count * workers > 2)


def _workers(count: int) -> Variation:
    return Variation(f"workers: {count}", {"WORKERS": str(count)})


def _kernel(name: str, not_here: str = _ON_X86) -> Variation:
    return Variation(f"BLAS kernel: {name}", {"OPENBLAS_CORETYPE": name}, not_here=not_here)


def _on(build: Callable[..., Machine], name: str, variant: str, **kind: bool) -> Variation:
    """Return a variation whose machine `build(cache, variant)` makes."""
    return Variation(name, machine=partial(build, variant=variant), not_here=_ON_X86_LINUX, **kind)


UNCHANGED = Variation("unchanged")
VARIATIONS = (
    UNCHANGED,
    *(_threads(count) for count in (1, 2, 4)),
    *(_workers(count) for count in (1, 2, 3)),
    _threads(2, workers=2),
    Variation("one core", one_core=True, not_here=_ON_LINUX),
    *(_kernel(name) for name in ("Prescott", "Nehalem", "Sandybridge", "Haswell")),
    _kernel("SkylakeX", _ON_AVX512),
    Variation("textbook", {"ENGINE": "textbook"}),
    Variation("kernels for any processor", {"NUMBA_CPU_NAME": "generic"}),
    Variation(
        "NumPy SIMD off",
        {"NPY_DISABLE_CPU_FEATURES": " ".join(name for name, on in _FEATURES.items() if on)},
        not_here="" if any(_FEATURES.values()) else "NumPy uses none here",
    ),
    Variation(
        "C library without AVX2, FMA",
        {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F"},
        not_here=_ON_X86_LINUX,
    ),
    Variation("hash seed", {"PYTHONHASHSEED": "12345"}),
    Variation("time zone", {"TZ": "NPT-5:45"}),
    Variation("locale: C, ASCII", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    _on(machines.foreign_locale, "locale: Turkish", "tr_TR"),
    _on(machines.moved_clock, "clock: 77 hours ahead", "+77h"),
    Variation("umask 077", umask=0o077),
    Variation("home directory", {"HOME": "{folder}/home"}),
    Variation("user name", dict.fromkeys(("USER", "LOGNAME", "USERNAME"), "somebody")),
    Variation("path: spaces, not ASCII", folder="a schön \N{CJK UNIFIED IDEOGRAPH-5B57} folder"),
    Variation("files in reverse order", backwards=True),
    Variation("python -O", {"PYTHONOPTIMIZE": "1"}),
    Variation("python -OO", {"PYTHONOPTIMIZE": "2"}),
    # On these machines are neither DVC nor TensorFlow, so that only training runs there.
    *(_on(machines.other_python, f"Python {version}", version, trains_only=True)
      for version in ("3.12", "3.13", "3.14")),
    # A wheel of NumPy brings its own OpenBLAS.
    *(_on(machines.other_wheels, f"NumPy {version}", f"numpy=={version}", trains_only=True)
      for version in ("1.26.4", "2.0.2")),
    *(_on(machines.other_wheels, f"Numba {numba}",
          f"numba=={numba} llvmlite=={llvmlite} numpy=={numpy}", trains_only=True)
      for numba, llvmlite, numpy in (("0.61.2", "0.44.0", "2.2.6"), ("0.65.1", "0.47.0", "2.4.6"))),
    *(_on(machines.debian_numpy, f"Debian's NumPy, {name}", folder, trains_only=True)
      for name, folder in (("reference BLAS", "blas"), ("ATLAS", "atlas"),
                           ("BLIS", "blis-pthread"), ("OpenBLAS", "openblas-pthread"))),
    _on(machines.x86_64, "emulated x86-64 without AVX", "Nehalem", trains_only=True, slow=True),
    _on(machines.aarch64, "emulated aarch64", "cortex-a57", trains_only=True, slow=True),
    _on(machines.aarch64, "emulated aarch64, SVE", "max", trains_only=True, slow=True),
)  # fmt: skip


def run_python(
    arguments: Sequence[str | Path],
    folder: Path,
    variation: Variation = UNCHANGED,
    machine: Machine | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> str:
    """Run Python in a folder, under a variation, and return what it prints on standard output.

    Each line is also given to `on_line` as it comes. Whatever ends this, Ctrl-C too, ends all
    processes that it started.

    Raises:
        StageFailedError: it exited with another code than 0.
    """
    machine = machine or Machine()
    changed = {
        name: value.format(folder=folder.parent) for name, value in variation.environment.items()
    }
    output = ""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [*machine.python, *arguments],
            cwd=folder,
            env=environment(**machine.environment, **changed),
            umask=variation.umask,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_use_one_core if variation.one_core else None,
        )
        try:
            for line in process.stdout or ():
                output += line
                on_line(line)
            process.wait()
        except BaseException:
            # DVC's stages and the workers are in its process group, and may start one more.
            with suppress(ProcessLookupError):
                for _ in range(100):
                    os.killpg(process.pid, signal.SIGKILL)
                    process.poll()
                    time.sleep(0.05)
            raise
        if process.returncode != 0:
            errors.seek(0)
            raise StageFailedError(output + errors.read())
    return output


def _use_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def copy_tree(source: Path, target: Path, *, backwards: bool = False) -> None:
    """Copy what is in a folder one by one in the order of its names, or in the reverse order."""
    for path in sorted(source.rglob("*"), reverse=backwards):
        copy = target / path.relative_to(source)
        if path.is_dir():  # maybe an empty one, without which Git knows no repository
            copy.mkdir(parents=True, exist_ok=True)
        elif path.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        machine: what it ran on.
        loop: what trained, `engine` or `textbook`.
        model: SHA-256 sum of the model file.
        scores: SHA-256 sum of all other outputs that it wrote, one after the other.
        accuracy: on the test images.
        seconds: that it took.
    """

    machine: dict[str, str]
    loop: str
    model: str
    scores: str
    accuracy: float
    seconds: float


def make_project(folder: Path, changes: Mapping[str, Any]) -> None:
    """Make a folder in which the train stage can start, with some of its parameters changed."""
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("*.pyc"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["train"].update(changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    if (ROOT / "data/raw/dataset.json").exists():
        shutil.copytree(ROOT / "data/raw", folder / "data/raw")
    else:
        run_python(["-m", "stages.fetch"], folder)
    run_python(["-m", "stages.preprocess"], folder)


def keep_few_images(folder: Path) -> None:
    """Cut every set of images in a project down to its first few."""
    for path in folder.glob("data/*/*.npy"):
        np.save(path, np.load(path)[:FEW_IMAGES])


def train(project: Path, variation: Variation, cache: Path) -> Result:
    """Train and evaluate in a copy of a project under a variation."""
    machine = variation.machine(cache) if variation.machine else Machine()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / variation.folder
        copy_tree(project, folder, backwards=variation.backwards)
        about = json.loads(
            run_python([ROOT / "tests/checks/machines.py"], folder, variation, machine)
        )
        start = time.monotonic()
        said = run_python(["-m", "stages.train"], folder, variation, machine)
        run_python(["-m", "stages.evaluate"], folder, variation, machine)
        seconds = time.monotonic() - start
        chosen = variation.environment.get("ENGINE") == "textbook"
        loop = "textbook" if chosen or "the textbook loop trains" in said else "engine"
        model, scores = hashlib.sha256((folder / MODEL).read_bytes()), hashlib.sha256()
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            made_here = path.is_file() and not (project / name).exists()
            # What DVC ignores is no output; a lock holds the process's number.
            if made_here and name != Path(MODEL) and name.parts[0] != ".dvc":
                scores.update(path.read_bytes())
        accuracy = json.loads((folder / METRICS).read_text())["test"]["accuracy"]
        return Result(about, loop, model.hexdigest(), scores.hexdigest(), accuracy, seconds)


def main() -> int:
    """Run the variations that were asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="variations (default: all)")
    parser.add_argument("--fast", action="store_true", help="few images, and no downloads")
    parser.add_argument("--epochs", type=int, help="instead of those in params.yaml")
    parser.add_argument("--network", type=int, nargs="+", help="hidden sizes, likewise")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    options = parser.parse_args()
    chosen = select(options.names, parser.error)
    if options.fast:
        chosen = [variation for variation in chosen if not variation.machine]

    changes = {"epochs": options.epochs, "hidden_sizes": options.network}
    changes = {name: value for name, value in changes.items() if value}
    few = [variation for variation in chosen if options.fast or variation.slow]
    many = [variation for variation in chosen if variation not in few]
    outcomes = []
    with tempfile.TemporaryDirectory() as place:
        if many:
            whole = Path(place) / "whole"
            make_project(whole, changes)
            outcomes.append(table(whole, many, options.cache))
        if few:
            part = Path(place) / "part"
            make_project(part, {"epochs": 1 if options.fast else 5} | changes)
            keep_few_images(part)
            outcomes.append(table(part, few, options.cache))
    same = True in outcomes and False not in outcomes
    print(f"one hash: {'yes' if same else 'NO'}")
    return 0 if same else 1


def select(names: Sequence[str], fail: Callable[[str], Any]) -> list[Variation]:
    """Return the variations with these names, all of them for no name."""
    known = {variation.name: variation for variation in VARIATIONS}
    for name in names:
        if name not in known:
            fail(f"no variation {name!r}; there are: {', '.join(known)}")
    return [known[name] for name in names] or list(VARIATIONS)


def table(project: Path, variations: Sequence[Variation], cache: Path) -> bool | None:
    """Train under each variation, print a row for each, and say whether all gave one hash.

    Where none of them could be run, that is neither true nor false.
    """
    images = len(np.load(project / "data/processed/y_train.npy"))
    columns = "{:30} {:7} {:7} {:31} {:10} {:8} {:12} {:12} {:8} {:>7}"
    print(f"\n{images} training images")
    print(columns.format("variation", "Python", "NumPy", "BLAS", "SIMD", "loop", "model",
                         "scores", "accuracy", "seconds"))  # fmt: skip
    results, failures = [], []
    for variation in [UNCHANGED, *(v for v in variations if v != UNCHANGED)]:
        try:
            if variation.not_here:
                raise NoMachineError(variation.not_here)
            result = train(project, variation, cache)
        except NoMachineError as error:
            print(f"{variation.name:30} not run: {error}")
        except StageFailedError as error:
            print(f"{variation.name:30} FAILED: see below")
            failures.append(f"{variation.name}:\n{error}")
        else:
            results.append(result)
            about = result.machine
            print(columns.format(
                variation.name, about["Python"], about["numpy"], about["BLAS"],
                about["SIMD"].split()[-1], result.loop, result.model[:12],
                result.scores[:12], f"{result.accuracy:.2%}", f"{result.seconds:.1f}",
            ), flush=True)  # fmt: skip
    print(*failures, sep="\n", end="")
    if len(results) == 1 and not failures and any(v != UNCHANGED for v in variations):
        return None
    return not failures and len({(result.model, result.scores) for result in results}) == 1


def run_script(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns; Ctrl-C and SIGTERM unwind it, so that nothing stays behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run_script(main)
