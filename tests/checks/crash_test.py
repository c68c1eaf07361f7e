"""Kill `dvc repro` at random moments, run it again, and look at what is left.

    python -m tests.checks.crash_test 100           # so many kills, spread over all stages
    python -m tests.checks.crash_test 30 --seed 2   # other moments

Killed with -9 is the stage, DVC, or both, in a small project that is out of date from some stage
on. DVC removes a stage's outputs before it runs the stage, so after every kill each output must be
missing, the old one or the new one, whole. What `make repro` does, repeated until it succeeds, must
end with the dvc.lock, byte for byte, and the outputs of a run that nothing disturbed, and with
every cached output in DVC's cache. If another instance is still at work, because DVC alone was
killed, it is waited for. Anything else that stops it counts as a manual step. The exit code is 0
only if there are none, and no difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from tests.checks.small_project import copy_project, isolated
from tests.checks.variations import run_script

STAGES = ["fetch", "preprocess", "train", "evaluate", "visualize"]
KINDS = ["stage", "DVC", "both"]
MOST_ATTEMPTS = 20
OLD = b"what an older run made"

# In place of the network, at the end of the copy's stages/pipeline/sources.py.
LOCAL_SOURCE = """
_LOCAL = {path.stem: np.load(path) for path in Path("local").glob("*.npy")}
MNIST = {n: (a.shape, hashlib.sha256(a.tobytes()).hexdigest()) for n, a in _LOCAL.items()}
SOURCES = {"keras": lambda: _LOCAL}
"""


@dataclass
class Tally:
    """What the crash test did and found.

    Attributes:
        kills: how many, by stage and kind.
        attempts: runs of `dvc repro` after the kills, all together.
        waits: how many of those found another instance at work.
        repaired: what `make repro` removed of DVC's own files, half-written.
        missing: outputs found after a kill that DVC had removed and no stage had written yet.
        torn: outputs found after a kill that were neither missing nor the old one nor the new one.
        wrong: runs whose final dvc.lock, outputs or cache differ from the undisturbed run's.
        left: files left over at the end that no undisturbed run leaves.
        manual: what stopped `dvc repro` for good, so that a file had to be removed by hand.
    """

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    attempts: int = 0
    waits: int = 0
    repaired: list[str] = field(default_factory=list)
    missing: int = 0
    torn: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    manual: list[str] = field(default_factory=list)

    def good(self) -> bool:
        """Say whether nothing was wrong and nothing had to be repaired by hand."""
        return not (self.torn or self.wrong or self.left or self.manual)


class CrashTest:
    """The small project before and after an undisturbed run, and the kills in copies of it."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place = place
        self.random = random.Random(seed)
        self.tally = Tally()

        self.undisturbed = place / "undisturbed"
        self._make(self.undisturbed)
        self.spans = self._finish(self.undisturbed)
        self.lock = (self.undisturbed / "dvc.lock").read_bytes()
        stages = yaml.safe_load(self.lock)["stages"]
        self.paths = {name: [out["path"] for out in stages[name]["outs"]] for name in STAGES}
        self.outputs = self._outputs(self.undisturbed)
        pipeline = yaml.safe_load((self.undisturbed / "dvc.yaml").read_text())["stages"]
        self.cached = {name: pipeline[name].get("outs", []) for name in STAGES}
        self.files = self._listed(self.undisturbed)

    def kill(self, stage: str, kind: str) -> None:
        """Kill once while `stage` is under way, recover, and take down what was found."""
        project = self.place / "project"
        longest = self.spans[stage]
        self._prepare(project, stage)
        while not self._killed(project, stage, kind, self.random.uniform(0, longest)):
            # All was over before the moment came.
            shutil.rmtree(project)
            self._prepare(project, stage)
            longest /= 2
        self.tally.kills[stage, kind] += 1
        name = f"{sum(self.tally.kills.values())}: {kind} in {stage}"
        for path, content in self._outputs(project).items():
            if content is None:
                self.tally.missing += 1
            elif content not in (OLD, self.outputs[path]):
                self.tally.torn.append(f"{name}: {path}")
        self._recover(project, name)
        self._compare(project, name)
        run = STAGES[STAGES.index(stage) :]
        self.tally.wrong += [
            f"{name}: {path} is not in the cache"
            for path in (path for stage in run for path in self.cached[stage])
            if _md5(self.outputs[path] or b"") not in self._cached(project)
        ]
        shutil.rmtree(project)

    def _make(self, project: Path) -> None:
        copy_project(project)
        (project / "data/raw").rename(project / "local")
        with (project / "stages/pipeline/sources.py").open("a") as file:
            file.write(LOCAL_SOURCE)
        for command in (
            ["init", "--quiet"],
            ["add", "."],
            ["commit", "--quiet", "--message=All"],
        ):
            subprocess.run(["git", *command], cwd=project, env=isolated(project), check=True)

    def _finish(self, project: Path) -> dict[str, float]:
        """Run the pipeline undisturbed; return the seconds from each stage's start to the next."""
        starts = []
        with self._repro(project) as dvc:
            for stage in STAGES:
                if self._process(dvc, stage) is None:
                    raise SystemExit(self._said(project))
                starts.append(time.monotonic())
            if dvc.wait() != 0:
                raise SystemExit(self._said(project))
        ends = [*starts[1:], time.monotonic()]
        return {stage: end - start for stage, start, end in zip(STAGES, starts, ends, strict=True)}

    def _prepare(self, project: Path, stage: str) -> None:
        """Copy the project as it is when `stage` and all after it are out of date."""
        shutil.copytree(
            self.undisturbed,
            project,
            ignore=shutil.ignore_patterns("cache", "tmp", "__pycache__"),
        )
        lock = yaml.safe_load(self.lock)
        for name in STAGES[STAGES.index(stage) :]:
            for dependency in lock["stages"][name]["deps"]:
                dependency["md5"] = "0" * 32
            for path in self.paths[name]:
                (project / path).write_bytes(OLD)
        (project / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))

    @contextmanager
    def _repro(self, project: Path) -> Iterator[subprocess.Popen[bytes]]:
        # A file, since a stage that outlives DVC would keep a pipe open.
        with (project.parent / "said").open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro"],
                cwd=project,
                env=isolated(project),
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def _said(self, project: Path) -> str:
        return (project.parent / "said").read_text(errors="replace")

    def _process(self, dvc: subprocess.Popen[bytes], stage: str) -> psutil.Process | None:
        """Wait for DVC to start the stage; return its process, or none if DVC ends first."""
        module = f"stages.{stage}"
        while dvc.poll() is None:
            for child in psutil.Process(dvc.pid).children(recursive=True):
                try:
                    if child.cmdline()[-1:] == [module]:
                        return child
                except psutil.Error:
                    continue
            time.sleep(0.005)
        return None

    def _killed(self, project: Path, stage: str, kind: str, seconds: float) -> bool:
        """Start DVC and kill `seconds` after the stage's start; return whether it came to that."""
        with self._repro(project) as dvc:
            process = self._process(dvc, stage)
            if process is None:
                raise SystemExit(self._said(project))
            time.sleep(seconds)
            if dvc.poll() is not None or (kind == "stage" and not process.is_running()):
                return False
            if kind == "both":
                os.killpg(dvc.pid, signal.SIGKILL)
            else:
                (process if kind == "stage" else dvc).kill()
            dvc.wait()
        return True

    def _recover(self, project: Path, name: str) -> None:
        for _ in range(MOST_ATTEMPTS):
            self.tally.attempts += 1
            repaired = subprocess.run(
                [sys.executable, "-m", "tools.repair_dvc"],
                cwd=project,
                env=isolated(project),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            self.tally.repaired += [f"{name}: {line}" for line in repaired.stdout.splitlines()]
            with self._repro(project) as dvc:
                if dvc.wait() == 0:
                    return
            said = self._said(project)
            if "already at work" in said:
                self.tally.waits += 1
                time.sleep(1)
                continue
            self.tally.manual.append(f"{name}: {said.strip().splitlines()[-1]}")
            (project / "dvc.lock").unlink(missing_ok=True)
            (project / ".dvc/tmp/rwlock").unlink(missing_ok=True)
        raise SystemExit(f"no recovery in {MOST_ATTEMPTS} attempts: {self._said(project)}")

    def _compare(self, project: Path, name: str) -> None:
        if (project / "dvc.lock").read_bytes() != self.lock:
            self.tally.wrong.append(f"{name}: dvc.lock")
        outputs = self._outputs(project)
        self.tally.wrong += [
            f"{name}: {path}" for path in outputs if outputs[path] != self.outputs[path]
        ]
        for md5, path in self._cached(project).items():
            if _md5(path.read_bytes()) != md5:
                self.tally.wrong.append(f"{name}: {path.relative_to(project)}")
        self.tally.left.update(self._listed(project) - self.files)

    def _cached(self, project: Path) -> dict[str, Path]:
        """Return the files in DVC's cache by what must be their MD5 sum."""
        found = (project / ".dvc/cache/files/md5").glob("??/*")
        return {path.parent.name + path.name: path for path in found}

    def _outputs(self, project: Path) -> dict[str, bytes | None]:
        paths = [path for paths in self.paths.values() for path in paths]
        return {
            path: (project / path).read_bytes() if (project / path).exists() else None
            for path in paths
        }

    def _listed(self, project: Path) -> set[str]:
        inner = {".git", ".dvc", "__pycache__"}
        found = (path.relative_to(project) for path in project.rglob("*"))
        return {str(path) for path in found if not inner & set(path.parts)}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def report(tally: Tally) -> None:
    """Print the table of kills and what they led to."""
    print(f"\n{'kills':12}" + "".join(f"{kind:>8}" for kind in KINDS))
    for stage in STAGES:
        print(f"{stage:12}" + "".join(f"{tally.kills[stage, kind]:8}" for kind in KINDS))
    kills = sum(tally.kills.values())
    print(f"\n{kills} kills, {kills} recoveries in {tally.attempts} runs of dvc repro, "
          f"{tally.waits} of which found another instance at work; {tally.missing} outputs were "
          "missing after the kills")  # fmt: skip
    for title, found in (
        ("of DVC's own files half-written, repaired by make repro", tally.repaired),
        ("half-written outputs", tally.torn),
        ("wrong final locks, outputs or cache files", tally.wrong),
        ("files left over", [json.dumps(tally.left)] if tally.left else []),
        ("manual steps", tally.manual),
    ):
        print(f"{title}: {len(found)}", *found, sep="\n  ")


def crash_test(kills: int, seed: int) -> Tally:
    """Kill so many times, over all stages and kinds in turn."""
    with tempfile.TemporaryDirectory() as place:
        test = CrashTest(Path(place), seed)
        every = [(stage, kind) for kind in KINDS for stage in STAGES]
        for number in range(kills):
            if number % len(every) == 0:
                test.random.shuffle(every)
            start = time.monotonic()
            try:
                test.kill(*every[number % len(every)])
            except KeyboardInterrupt:
                break  # and report what was found so far
            print(f"{number + 1:4} {' '.join(every[number % len(every)]):20} "
                  f"{time.monotonic() - start:5.1f} s", flush=True)  # fmt: skip
        return test.tally


def main() -> int:
    """Run the crash test as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kills", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    tally = crash_test(options.kills, options.seed)
    report(tally)
    return 0 if tally.good() else 1


if __name__ == "__main__":
    run_script(main)
