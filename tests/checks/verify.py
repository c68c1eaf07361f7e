"""Re-run the whole pipeline in a clean clone of HEAD and compare every output: `make verify`.

    python -m tests.checks.verify                                # against the hashes in dvc.lock
    python -m tests.checks.verify --vary "umask 077" "python -O"  # the same under variations
    python -m tests.checks.verify --quick --vary all             # with 2 epochs, against such a run

Nothing that was computed before can help: the clone's cache is empty, and dvc.lock and every
output it lists are removed first. The exit code is 0 only if all outputs are identical.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tests.checks.machines import Machine, NoMachineError
from tests.checks.small_project import ROOT, environment, set_parameters
from tests.checks.variations import (
    CACHE,
    METRICS,
    UNCHANGED,
    StageFailedError,
    Variation,
    copy_tree,
    run_python,
    run_script,
    select,
)

LOCK = "dvc.lock"
QUICK = {"train": {"epochs": 2}}

Hashes = dict[tuple[str, str], str]
"""The MD5 sum of each output, by its stage and its path."""

Inputs = dict[tuple[str, str], Any]
"""The MD5 sum of each dependency that no stage makes, and the value of each parameter, likewise."""


@dataclass(frozen=True)
class Run:
    """What the pipeline gave once.

    Attributes:
        hashes: of all outputs, as dvc.lock has them.
        inputs: what they were made from, likewise.
        metrics: reports/metrics.json, flat: `test.accuracy` and so on.
        changed: the clone's files that differ from what is committed.
        machine: what it ran on.
    """

    hashes: Hashes
    metrics: dict[str, float]
    inputs: Inputs = field(default_factory=dict)
    changed: str = ""
    machine: dict[str, str] | None = None


def hashes_in(lock: str) -> Hashes:
    """Return the outputs' hashes from the text of a dvc.lock."""
    stages = yaml.safe_load(lock)["stages"]
    return {
        (name, output["path"]): output["md5"]
        for name, stage in stages.items()
        for output in stage["outs"]
    }


def inputs_in(lock: str) -> Inputs:
    """Return the dependencies that no stage makes, and the parameters, from a dvc.lock's text."""
    made = {path for _, path in hashes_in(lock)}
    stages = yaml.safe_load(lock)["stages"]
    return {
        (name, key): value
        for name, stage in stages.items()
        for found in (
            {dependency["path"]: dependency["md5"] for dependency in stage.get("deps", [])},
            *stage.get("params", {}).values(),
        )
        for key, value in found.items()
        if key not in made
    }


def metrics_in(text: str) -> dict[str, float]:
    """Return the figures of a metrics.json by names such as `test.accuracy`."""
    return {
        f"{split}.{name}": value
        for split, figures in json.loads(text).items()
        for name, value in figures.items()
    }


def recorded() -> Run:
    """Return what is committed."""
    lock, metrics = (git("show", f"HEAD:./{path}") for path in (LOCK, METRICS))
    return Run(hashes_in(lock), metrics_in(metrics), inputs_in(lock))


def pipeline(variation: Variation, *, quick: bool, cache: Path) -> Run:
    """Run the pipeline in a clone of HEAD, under a variation."""
    machine = variation.machine(cache) if variation.machine else Machine()
    with tempfile.TemporaryDirectory() as place:
        clone, folder = Path(place) / "clone", Path(place) / variation.folder
        # The project may be a folder of a larger repository.
        repository, prefix = git("rev-parse", "--show-toplevel", "--show-prefix").splitlines()
        git("clone", "--quiet", repository, clone, umask=variation.umask)
        copy_tree(clone, folder, backwards=variation.backwards)
        folder /= prefix
        for _, output in hashes_in((folder / LOCK).read_text()):
            (folder / output).unlink(missing_ok=True)
        (folder / LOCK).unlink()
        if quick:
            set_parameters(folder, QUICK)

        def python(*arguments: str | Path) -> str:
            return run_python(arguments, folder, variation, machine, tell_stage)

        python("-m", "dvc", "repro", "--no-run-cache")
        lock = (folder / LOCK).read_text()
        return Run(
            hashes_in(lock),
            metrics_in((folder / METRICS).read_text()),
            inputs_in(lock),
            git("-C", folder, "status", "--short", "--", "."),
            json.loads(python(ROOT / "tests/checks/machines.py")),
        )


def tell_stage(line: str) -> None:
    """Print the stage's name if DVC's line says that one starts."""
    if started := re.match(r"Running stage '(\w+)'", line):
        print(started[1], end=" ", flush=True)


def git(*arguments: str | Path, umask: int = -1) -> str:
    """Return what git prints, run in the repository.

    Raises:
        StageFailedError: git fails.
    """
    done = subprocess.run(["git", *arguments], cwd=ROOT, env=environment(), umask=umask,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode != 0:
        raise StageFailedError(done.stderr)
    return done.stdout


def report(expected: Run, found: Run) -> bool:
    """Print the table, and the differences if there are any; say whether there are none."""
    outputs = {**expected.hashes, **found.hashes}
    width = max(len(path) for _, path in outputs)
    print(f"{'stage':12} {'output':{width}} {'recorded':12} {'now':12} identical")
    for stage, path in outputs:
        old, new = (run.hashes.get((stage, path), "none") for run in (expected, found))
        same = "yes" if old == new else "NO"
        print(f"{stage:12} {path:{width}} {old[:12]:12} {new[:12]:12} {same}")
    if expected.hashes == found.hashes:
        return True

    print()
    report_inputs(expected, found)
    print("\nmetric differences, recorded and now:")
    names = [name for name in {**expected.metrics, **found.metrics}
             if expected.metrics.get(name) != found.metrics.get(name)]  # fmt: skip
    for name in names:
        print(f"  {name}: {expected.metrics.get(name)} {found.metrics.get(name)}")
    print("" if names else "  none\n", "this platform:", sep="")
    for name, value in (found.machine or {}).items():
        print(f"  {name}: {value}")
    print("  packages not as locked:", ", ".join(not_as_locked()) or "none")
    return False


def report_inputs(expected: Run, found: Run) -> None:
    """Name the dependencies and parameters that differ, in which case the commit is stale."""
    print("dependencies and parameters that are not those of dvc.lock:")
    names = [f"  {stage}: {key}" for stage, key in {**expected.inputs, **found.inputs}
             if expected.inputs.get((stage, key)) != found.inputs.get((stage, key))]  # fmt: skip
    print(*names or ["  none"], sep="\n")
    if names:
        print("so the commit is stale: 'dvc repro', then commit dvc.lock and reports/")


def not_as_locked() -> list[str]:
    """Name the installed packages whose version is not the one in requirements.lock."""
    lock = (ROOT / "requirements.lock").read_text()
    locked: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock, re.MULTILINE):
        locked.setdefault(name, set()).add(version)
    installed = {d.metadata["Name"].lower().replace("_", "-"): d.version
                 for d in metadata.distributions()}  # fmt: skip
    return [f"{name} {installed[name]} (locked: {' or '.join(sorted(versions))})"
            for name, versions in locked.items()
            if name in installed and installed[name] not in versions]  # fmt: skip


def verify(variations: Sequence[Variation], *, quick: bool, cache: Path) -> bool:
    """Run the pipeline under each variation, report, and say whether all outputs were the same."""
    uncommitted = git("status", "--short", "--", ".")
    commit = git("rev-parse", "--short", "HEAD").strip()
    print(f"running all stages in a clean clone of {commit}: about a minute for each run")
    expected = pipeline(UNCHANGED, quick=True, cache=cache) if quick else recorded()
    ran, same = 0, True
    for variation in variations:
        print(f"\n{variation.name}: ", end="", flush=True)
        start = time.monotonic()
        try:
            if variation.not_here:
                raise NoMachineError(variation.not_here)
            found = pipeline(variation, quick=quick, cache=cache)
        except NoMachineError as error:
            print(f"not run: {error}")
            continue
        count = sum(found.hashes.get(key) == value for key, value in expected.hashes.items())
        print(f"\n{count} of {len({**expected.hashes, **found.hashes})} outputs identical, "
              f"{time.monotonic() - start:.0f} s")  # fmt: skip
        ran += 1
        if len(variations) == 1 or found.hashes != expected.hashes:
            same &= report(expected, found)
        if found.changed and found.hashes == expected.hashes and not quick:
            print(f"but the run changed:\n{found.changed}")
            report_inputs(expected, found)
            same = False
    if uncommitted:
        print(f"\nnot verified, for it is not committed:\n{uncommitted.rstrip()}")
    return same and ran > 0


def main() -> int:
    """Verify as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 epochs, against another such run")
    parser.add_argument("--vary", nargs="+", default=[UNCHANGED.name], metavar="NAME",
                        help="variations by name, or all")  # fmt: skip
    parser.add_argument("--cache", type=Path, default=CACHE,
                        help="where other machines are kept (default: %(default)s)")  # fmt: skip
    options = parser.parse_args()
    everything = options.vary == ["all"]
    chosen = select([] if everything else options.vary, parser.error)
    alone = [variation.name for variation in chosen if variation.trains_only]
    if alone and not everything:
        parser.error(f"only training runs under: {', '.join(alone)}; use tests.checks.variations")
    try:
        same = verify([variation for variation in chosen if not variation.trains_only],
                      quick=options.quick, cache=options.cache)  # fmt: skip
    except StageFailedError as error:
        print(f"\nFAILED:\n{error}")
        return 1
    print("\nidentical: " + ("yes" if same else "NO"))
    return 0 if same else 1


if __name__ == "__main__":
    run_script(main)
