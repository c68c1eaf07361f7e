"""One contender in a process of its own, which computes only when it is told to.

`Worker` is the near end: it starts the process and asks it things. Questions and answers are JSON,
one a line, on the process's standard input and output. Between questions the process waits for
input, so that contenders can take turns without a process started anew for each.
"""

from __future__ import annotations

from benchmark.peers import (
    CONTENDERS,
    Contender,
    Data,
    Layers,
    Plan,
    StopTraining,
    Task,
    Train,
    predict,
)

# isort: split
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stages.pipeline.files import load_array

ROOT = Path(__file__).parents[1]
_MODULES = {"scikit-learn": "sklearn"}
_PATIENCE = 10.0


class Unavailable(Exception):  # noqa: N818  (a fact to report, not an error)
    """The contender is not installed, or cannot do this on this machine; the message says why."""


class Worker:
    """A contender's process, seen from outside."""

    def __init__(self, contender: str, task: Task, data: Path, repeats: int | None = None) -> None:
        """Start the process; it imports and reads what it needs while others do the same.

        Args:
            contender: its key in `CONTENDERS`.
            task: the network and the batch.
            data: the folder with x_train.npy, y_train.npy, x_test.npy and y_test.npy.
            repeats: train on a memory-mapped file that holds the training images so many times;
                None for the training images themselves, in memory.
        """
        self.contender = contender
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (see close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmark.worker"],
            cwd=ROOT,
            env=os.environ | CONTENDERS[contender].variables(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self._say(
            {
                "contender": contender,
                "task": asdict(task),
                "data": str(data.resolve()),
                "repeats": repeats,
            }
        )

    @property
    def process_id(self) -> int:
        """The process's, and its group's."""
        return self._process.pid

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the oldest open question; the first is to the start itself.

        Raises:
            Unavailable: the contender cannot take part.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines() or ["it ended without a word"]
            raise Unavailable(lines[-1])
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        return answer

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask a question and wait for its answer."""
        self._say(question)
        return self.answer()

    def memory(self) -> dict[str, int] | None:
        """Return the bytes that the process and those it forked hold now, as Linux counts them.

        `own`: memory that is theirs, shared memory counted once. `file`: pages of mapped files,
        which the system keeps while it has room and drops when it needs it.
        """
        if not sys.platform.startswith("linux"):
            return None
        totals = {"Pss_Anon": 0, "Pss_Shmem": 0, "Pss_File": 0}
        for process in [self.process_id, *_children(self.process_id)]:
            for name, size in _sizes(Path(f"/proc/{process}/smaps_rollup")).items():
                if name in totals:
                    totals[name] += size
        return {"own": totals["Pss_Anon"] + totals["Pss_Shmem"], "file": totals["Pss_File"]}

    def close(self) -> None:
        """End the process and all that it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()  # the end of its input ends it
            self._process.wait(_PATIENCE)
        except (subprocess.TimeoutExpired, OSError):
            os.killpg(self.process_id, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _say(self, question: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # if it is gone, `answer` finds out why
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()


def _children(process: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (name) state parent ...; the name may contain anything
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == process:
            found.append(int(status.parent.name))
    return found


def _sizes(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}


class _Desk:
    """The far end: hears questions, trains, answers."""

    def __init__(self) -> None:
        # What libraries print on standard output goes to standard error instead.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def hear(self) -> dict[str, Any] | None:
        """Wait for a question; None when nobody will ask any more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def answer(self, **answer: Any) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def serve(self) -> None:
        """Get ready, then answer questions until nobody asks any more.

        prepare: build what can be kept.
        epoch:   train one epoch more, from new weights if another question came before.
        reach:   train from new weights until the accuracy on the test set is `target`.
        """
        start = self.hear()
        assert start is not None
        contender, task = CONTENDERS[start["contender"]], Task(**start["task"])
        _import(contender)
        with _data(Path(start["data"]), task.images, start["repeats"]) as data:
            self.answer(ready=True)
            question = self.hear()
            train: Train
            while question is not None:
                kind = question.pop("question")
                if kind == "prepare":
                    train = contender.build(task, data)
                    self.answer()
                    question = self.hear()
                elif kind == "epoch":
                    question = self._epochs(train)
                else:
                    self.answer(**_reach(train, data, **question))
                    question = self.hear()

    def _epochs(self, train: Train) -> dict[str, Any] | None:
        """Train an epoch for each question that asks for one; return the first other question."""
        question: dict[str, Any] | None = None
        started = used = machine = 0.0

        def after_epoch(samples: int, layers: Callable[[], Layers]) -> None:
            nonlocal started, used, machine, question
            self.answer(
                seconds=time.perf_counter() - started,
                processor_seconds=time.process_time() - used,
                machine_seconds=_machine_seconds() - machine,
                samples=samples,
            )
            question = self.hear()
            if question is None or question["question"] != "epoch":
                raise StopTraining
            started, used, machine = time.perf_counter(), time.process_time(), _machine_seconds()

        started, used, machine = time.perf_counter(), time.process_time(), _machine_seconds()
        with suppress(StopTraining):
            train(0, Plan(), after_epoch)
        return question


def _import(contender: Contender) -> None:
    for package in contender.packages:
        try:
            importlib.import_module(_MODULES.get(package, package))
        except ModuleNotFoundError:
            raise Unavailable(f"{package} is not installed") from None
        except Exception as error:
            raise Unavailable(f"{package} cannot be imported: {_first_line(error)}") from error


@contextmanager
def _data(folder: Path, images: int | None, repeats: int | None) -> Iterator[Data]:
    mapped = repeats is not None
    x, y, x_test, y_test = (
        load_array(folder / f"{name}.npy", memory_map=mapped)
        for name in ("x_train", "y_train", "x_test", "y_test")
    )
    x, y, x_test = x.reshape(len(x), -1)[:images], y[:images], x_test.reshape(len(x_test), -1)
    if repeats is None:
        yield Data(x, y, x_test, y_test)
        return
    # Beside the data, where there is a disk: a temporary folder may lie in memory.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tiled-") as scratch:
        path = Path(scratch) / "x_train.npy"
        header = np.lib.format.header_data_from_array_1_0(x) | {
            "shape": (repeats * len(x), *x.shape[1:])
        }
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(repeats):
                x.tofile(file)
        yield Data(load_array(path, memory_map=True), np.tile(y, repeats), x_test, y_test)


def _reach(
    train: Train, data: Data, *, seed: int, learning_rate: float, epochs: int, target: float
) -> dict[str, Any]:
    """Train until the test accuracy is `target`, looked at after each epoch, off the clock.

    Returns:
        seconds: of training from drawing the weights on; None if the target was not reached.
        epochs: trained. accuracy: at the end.
    """
    seconds, done, accuracy, started = 0.0, 0, 0.0, 0.0

    def after_epoch(samples: int, layers: Callable[[], Layers]) -> None:
        nonlocal seconds, done, accuracy, started
        seconds += time.perf_counter() - started
        done += 1
        accuracy = float((predict(layers(), data.x_test) == data.y_test).mean())
        if accuracy >= target:
            raise StopTraining
        started = time.perf_counter()

    started = time.perf_counter()
    with suppress(StopTraining):
        train(seed, Plan(learning_rate, epochs), after_epoch)
    return {
        "seconds": seconds if accuracy >= target else None,
        "epochs": done,
        "accuracy": accuracy,
    }


def _machine_seconds() -> float:
    """Return how long all cores together have been busy or taken away; 0 where nothing says so."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, interrupts, soft, stolen = map(
        int, stat.read_text().split("\n", 1)[0].split()[1:9]
    )
    busy = user + nice + system + interrupts + soft + stolen
    return busy / float(os.sysconf("SC_CLK_TCK"))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def main() -> None:
    """Be a contender until standard input ends."""
    desk = _Desk()
    try:
        desk.serve()
    except Unavailable as error:
        desk.answer(unavailable=str(error))
    except Exception as error:
        traceback.print_exc()
        desk.answer(unavailable=_first_line(error))
    os._exit(0)  # some libraries take seconds to take themselves down


if __name__ == "__main__":
    main()
