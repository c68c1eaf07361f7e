"""The benchmark: `make bench`, or `python -m benchmark.run` where the peers are installed.

Every contender has a process of its own. All of them wait, and one at a time is told to train an
epoch; when all have had their turn the next round begins, with another contender first. What one
round measures was measured within seconds, so ratios are taken within rounds, and their median
counts. A first epoch, in which some compile and all warm up, never counts.

About the comparison: our engine's products visit only what is not zero, which exact sums do not
notice, while the peers multiply everything; so does our engine in the row "zeros multiplied".
Shares of the sgemm limit count all multiplications, so that ours can exceed it.
"""

from __future__ import annotations

from benchmark import plots
from benchmark.peers import CONTENDERS, NOTEBOOK_ITERATIONS, Task, cores
from benchmark.worker import Unavailable, Worker

# isort: split
import os
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from stages.pipeline import command
from stages.pipeline.files import load_array, save_json
from stages.pipeline.threads import worker_count

DATA = Path("data/raw")
REPORTS = Path("reports")
PARTIAL = Path(".dvc/tmp/bench")  # the reports of what is not the whole benchmark
PARTS = ("throughput", "accuracy", "scaling")
OURS = "ours_exact"
TABLE = (
    OURS,
    "ours_plain",
    "ours_dense",
    "jax",
    "pytorch",
    "pytorch_compiled",
    "keras",
    "keras_jit",
    "scikit_learn",
)
LIMIT = "sgemm"
NOTE = (
    "Our engine's products visit only what is not zero: exact sums do not "
    "notice. The peers multiply them; shares of the sgemm limit count all pixels, for everyone."
)
FEWER_IMAGES = 16_384
"""Training images in a timed epoch of a large network, the same for everyone."""
LARGE = 1e6  # additions and multiplications a sample
SMALL = (64,)
GOAL_BATCH_SIZE = 128
SCALING_BATCH_SIZE = 512
SCALING_ROUNDS = 3
NOTEBOOK_ROUNDS = 5
NOTEBOOK_RUN = 2000
NOTEBOOK_ACCURACY = 0.9625
"""What the notebook's run has reached on the test set after all its iterations."""
BUSY = 0.1
"""The part of the cores that others may have before a comparison says little."""
_SETTLE = 0.05  # seconds in which the threads of whoever trained last stop spinning

Key = TypeVar("Key", bound=Hashable)
Report = dict[str, Any]


class Entry(NamedTuple):
    """A contender and what it is to train."""

    contender: str
    task: Task
    repeats: int | None = None


class Goal(NamedTuple):
    """A test accuracy, and how to get there: half a cosine down over so many epochs.

    Of the rates and batch sizes tried, these take every contender there soonest, from any seed.
    """

    target: float
    epochs: int
    learning_rate: float = 0.2


@dataclass(frozen=True)
class BenchmarkConfig:
    """How much is measured."""

    networks: Sequence[tuple[int, ...]] = (SMALL, (512,), (1024, 512))
    batch_sizes: Sequence[int] = (128, 512)
    least_rounds: int = 5
    most_rounds: int = 9
    seconds: float = 25.0
    """A network's rounds end after so many seconds if there are enough of them."""
    goals: Sequence[Goal] = (Goal(NOTEBOOK_ACCURACY, 2), Goal(0.975, 8))
    seeds: int = 5
    workers: Sequence[int] = (1, 2, 4)
    scaling_batch_sizes: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048)
    hidden_sizes: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    repeats: Sequence[int] = (1, 2, 5, 10)


FULL = BenchmarkConfig()
QUICK = BenchmarkConfig(
    networks=(SMALL,),
    least_rounds=2,
    most_rounds=2,
    goals=FULL.goals[:1],
    seeds=1,
    scaling_batch_sizes=(128, 512),
    hidden_sizes=(16, 64, 256),
    repeats=(1, 2),
)


class Rounds(Generic[Key]):
    """Contenders that take turns; closes their processes when it is left.

    Attributes:
        workers: the processes of those that take part, by the caller's keys.
        skipped: why others do not.
        rates: samples a second, round by round.
        others: seconds of all cores that other work took in the turns.
        all: seconds of all cores in the turns.
    """

    def __init__(self, entries: Mapping[Key, Entry], data: Path) -> None:
        self.entries, self.data = entries, data
        self.workers: dict[Key, Worker] = {}
        self.skipped: dict[Key, str] = {}
        self.rates: dict[Key, list[float]] = {key: [] for key in entries}
        self.others = self.all = 0.0

    def __enter__(self) -> Rounds[Key]:
        """Start all processes at once, then let one after the other prepare and warm up."""
        try:
            for key, (contender, task, repeats) in self.entries.items():
                self.workers[key] = Worker(contender, task, self.data, repeats)
            for key in self.entries:
                with self._skipping(key):
                    self.workers[key].answer()
                    self.workers[key].ask(question="prepare")
                    self.workers[key].ask(question="epoch")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()

    def measure(self, least: int, most: int, seconds: float) -> None:
        """Train an epoch each in at least `least` rounds, and at most `most` within `seconds`."""
        started = time.monotonic()
        for number in range(most):
            if number >= least and time.monotonic() - started > seconds:
                break
            for key, answer in self.ask_all(number, question="epoch"):
                self.rates[key].append(answer["samples"] / answer["seconds"])
                self.others += answer["machine_seconds"] - answer["processor_seconds"]
                self.all += answer["seconds"] * cores()

    def ask_all(self, number: int, **question: Any) -> Iterator[tuple[Key, dict[str, Any]]]:
        """Let everyone answer a question, one after the other.

        The order depends on the `number` of the round: who follows a contender that heats or slows
        the cores is to be another each time.
        """
        keys = list(self.workers)
        if number % 2:
            keys.reverse()
        for place in range(len(keys)):
            key = keys[(number + place) % len(keys)]
            with self._skipping(key):
                time.sleep(_SETTLE)
                yield key, self.workers[key].ask(**question)

    @contextmanager
    def _skipping(self, key: Key) -> Iterator[None]:
        """Go on without a peer that cannot take part.

        Raises:
            InputError: it is no peer but ours, or what all are compared with.
        """
        try:
            yield
        except Unavailable as error:
            contender = self.entries[key].contender
            if not CONTENDERS[contender].is_peer:
                raise command.InputError(f"{contender}: {error}") from None
            self.skipped[key] = str(error)
            self.workers.pop(key).close()


def throughput(config: BenchmarkConfig, data: Path, contenders: Sequence[str]) -> Report:
    """Measure the samples a second of everyone, for each network and batch size."""
    cells: list[Report] = []
    skipped: dict[str, str] = {}
    for hidden_sizes in config.networks:
        for batch_size in config.batch_sizes:
            task = _task(hidden_sizes, batch_size)
            _say(f"throughput: {_network(hidden_sizes)}, batches of {batch_size}")
            entries = {key: Entry(key, task) for key in (*contenders, LIMIT)}
            with Rounds(entries, data) as rounds:
                rounds.measure(config.least_rounds, config.most_rounds, config.seconds)
            skipped |= rounds.skipped
            limits, busy = rounds.rates[LIMIT], max(0.0, rounds.others / rounds.all)
            if busy > BUSY:
                _say(
                    f"  the machine is busy: others had {busy:.0%} of its cores; do not trust this"
                )
            rows = [
                {
                    "contender": key,
                    "samples_per_second": _spread(rounds.rates[key]),
                    "ratio_to_ours": _spread(_ratios(rounds.rates[key], rounds.rates[OURS])),
                    "share_of_sgemm": _share(rounds.rates[key], limits, task),
                }
                for key in contenders
                if key in rounds.workers
            ]
            cells.append(
                {
                    "network": _network(hidden_sizes),
                    "batch_size": batch_size,
                    "images": task.images or len(load_array(data / "y_train.npy")),
                    "rounds": len(limits),
                    "cores_used_by_others": busy,
                    "operations_per_sample": task.operations,
                    "sgemm_operations_per_second": _spread(limits),
                    "rows": rows,
                }
            )
    return {"cells": cells, "skipped": skipped}


def time_to_accuracy(config: BenchmarkConfig, data: Path, contenders: Sequence[str]) -> Report:
    """Measure the seconds until a test accuracy, and those of the notebook's own algorithm."""
    _say("time to accuracy")
    images = len(load_array(data / "y_train.npy"))
    notebook = {"notebook": Entry("notebook", Task(SMALL, images))}
    with Rounds(notebook, data) as rounds:
        rounds.measure(NOTEBOOK_ROUNDS, NOTEBOOK_ROUNDS, 0.0)
    rates = rounds.rates["notebook"]

    entries = {key: Entry(key, Task(SMALL, GOAL_BATCH_SIZE)) for key in contenders}
    answers: dict[Goal, dict[str, list[Report]]] = {
        goal: {key: [] for key in contenders} for goal in config.goals
    }
    with Rounds(entries, data) as rounds:
        for seed in range(1, config.seeds + 1):
            for goal in config.goals:
                for key, answer in rounds.ask_all(
                    seed, question="reach", seed=seed, **goal._asdict()
                ):
                    answers[goal][key].append(answer)
    return {
        "network": _network(SMALL),
        "batch_size": GOAL_BATCH_SIZE,
        "seeds": config.seeds,
        "goals": [
            goal._asdict()
            | {
                "rows": [
                    {"contender": key} | _times(answers[goal][key])
                    for key in contenders
                    if key in rounds.workers
                ]
            }
            for goal in config.goals
        ],
        "notebook": {
            "iterations_timed": len(rates) * NOTEBOOK_ITERATIONS,
            "iterations_per_second": _spread([rate / images for rate in rates]),
            "samples_per_second": _spread(rates),
            "iterations": NOTEBOOK_RUN,
            "seconds": _spread([NOTEBOOK_RUN * images / rate for rate in rates]),
            "accuracy": NOTEBOOK_ACCURACY,
        },
        "skipped": rounds.skipped,
    }


def _times(answers: Sequence[Report]) -> Report:
    reached = [answer["seconds"] for answer in answers if answer["seconds"] is not None]
    return {
        "seconds": _spread(reached) if len(reached) == len(answers) else None,
        "reached": len(reached),
        "epochs": _spread([answer["epochs"] for answer in answers]),
        "accuracy": _spread([answer["accuracy"] for answer in answers]),
    }


def scaling(config: BenchmarkConfig, data: Path) -> Report:
    """Measure what our throughput depends on, one thing varied at a time."""

    def ours(hidden_sizes: tuple[int, ...], **others: Any) -> Entry:
        return Entry(OURS, _task(hidden_sizes, **{"batch_size": SCALING_BATCH_SIZE} | others))

    counts = [count for count in config.workers if count <= cores()]
    workers = {
        (hidden_sizes, count): ours(hidden_sizes, workers=count)
        for hidden_sizes in config.networks
        for count in counts
    }
    batches = {size: ours(SMALL, batch_size=size) for size in config.scaling_batch_sizes}
    hidden = {size: ours((size,)) for size in config.hidden_sizes}
    limit = {LIMIT: Entry(LIMIT, Task(SMALL, SCALING_BATCH_SIZE))}
    repeats = {count: ours(SMALL)._replace(repeats=count) for count in config.repeats}

    report: Report = {"batch_size_elsewhere": SCALING_BATCH_SIZE}
    rates, _ = _curve("workers", workers, data)
    report["workers"] = [
        {"network": _network(hidden_sizes), "workers": count}
        | {"samples_per_second": _spread(rates[hidden_sizes, count])}
        for hidden_sizes, count in workers
    ]
    rates, _ = _curve("batch size", batches, data)
    report["batch_size"] = [
        {"batch_size": size, "samples_per_second": _spread(rates[size])} for size in batches
    ]
    rates, _ = _curve("hidden size", hidden | limit, data)
    report["hidden_size"] = [
        {
            "hidden_size": size,
            "samples_per_second": _spread(rates[size]),
            "share_of_sgemm": _share(rates[size], rates[LIMIT], entry.task),
        }
        for size, entry in hidden.items()
    ]
    rates, memory = _curve("training set, memory-mapped", repeats, data)
    images = len(load_array(data / "y_train.npy"))
    report["training_set"] = [
        {
            "images": count * images,
            "samples_per_second": _spread(rates[count]),
            "memory_bytes": memory[count],
        }
        for count in repeats
    ]
    return report


def _curve(
    name: str, entries: Mapping[Any, Entry], data: Path
) -> tuple[dict[Any, list[float]], dict[Any, dict[str, int] | None]]:
    _say(f"scaling: {name}")
    with Rounds(entries, data) as rounds:
        rounds.measure(SCALING_ROUNDS, SCALING_ROUNDS, 0.0)
        return rounds.rates, {key: worker.memory() for key, worker in rounds.workers.items()}


def _spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _ratios(values: Iterable[float], others: Iterable[float]) -> list[float]:
    return [value / other for value, other in zip(values, others, strict=True)]


def _share(rates: Iterable[float], limits: Iterable[float], task: Task) -> dict[str, float]:
    return _spread(ratio * task.operations for ratio in _ratios(rates, limits))


def _task(hidden_sizes: Sequence[int], batch_size: int, workers: int | None = None) -> Task:
    task = Task(hidden_sizes, batch_size, workers=workers)
    return replace(task, images=FEWER_IMAGES) if task.operations > LARGE else task


def _network(hidden_sizes: Sequence[int]) -> str:
    return "-".join(str(units) for units in Task(hidden_sizes, 1).sizes)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def surroundings() -> Report:
    """Return who takes part, in which versions, on which machine and when."""
    return {
        "note": NOTE,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": _versions(),
        "contenders": {
            key: {"name": contender.name, "form": contender.form}
            for key, contender in CONTENDERS.items()
        },
    }


def _machine() -> Report:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "processor": _processor(),
        "cores": cores(),
        "our_workers": worker_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "load_average_before": os.getloadavg()[0],
        "numpy_blas": f"{blas['name']} {blas['version']}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _versions() -> Report:
    packages = {package for contender in CONTENDERS.values() for package in contender.packages}
    found: Report = {"python": platform.python_version()}
    for package in sorted(packages):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def table(report: Report) -> str:
    """Return the report as lines of text."""
    lines: list[str] = []
    for cell in report.get("throughput", {}).get("cells", []):
        limit = cell["sgemm_operations_per_second"]["median"]
        lines += [
            "",
            f"{cell['network']}, batches of {cell['batch_size']}; "
            f"medians of {cell['rounds']} epochs of {cell['images']:,} images; "
            f"sgemm limit {limit / 1e9:,.0f} GFLOP/s",
            f"  {'':20}{'samples/s':>11}{'min':>11}{'max':>11}{'of ours':>9}{'of sgemm':>10}",
        ]
        for row in cell["rows"]:
            rate = row["samples_per_second"]
            lines.append(
                f"  {CONTENDERS[row['contender']].name:20}{rate['median']:11,.0f}"
                f"{rate['min']:11,.0f}{rate['max']:11,.0f}"
                f"{row['ratio_to_ours']['median']:9.2f}{row['share_of_sgemm']['median']:10.0%}"
            )
    if accuracy := report.get("time_to_accuracy"):
        for goal in accuracy["goals"]:
            lines += ["", f"seconds of training to {goal['target']:.2%} on the test set"]
            for row in goal["rows"]:
                name, seconds = CONTENDERS[row["contender"]].name, row["seconds"]
                lines.append(
                    f"  {name:20}{seconds['median']:9.2f}{seconds['min']:9.2f}{seconds['max']:9.2f}"
                    if seconds
                    else f"  {name:20} reached from {row['reached']} of {accuracy['seeds']} seeds"
                )
        notebook = accuracy["notebook"]
        lines += [
            "",
            f"the notebook: {notebook['iterations_per_second']['median']:.2f} iterations/s, so "
            f"{notebook['seconds']['median']:,.0f} s for its {notebook['iterations']:,}",
        ]
    lines += ["", *textwrap.wrap(report["note"], 90)]
    for key, reason in _skipped(report).items():
        lines += ["", f"skipped: {CONTENDERS[key].name}: {reason}"]
    return "\n".join(lines).strip()


def _skipped(report: Report) -> dict[str, str]:
    parts = (report.get(part, {}) for part in ("throughput", "time_to_accuracy"))
    return {key: reason for part in parts for key, reason in part.get("skipped", {}).items()}


def main() -> None:
    """Measure, print the table, write the report and its pictures."""
    parser = command.Parser(prog="python -m benchmark.run", description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="the small network, few repetitions")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="measure these parts alone",
    )
    parser.add_argument("--output", type=Path, help=f"folder for the report; {REPORTS} if whole")
    arguments = parser.parse_args()
    whole = not arguments.quick and set(arguments.only) == set(PARTS)
    output = arguments.output or (REPORTS if whole else PARTIAL)
    output.mkdir(parents=True, exist_ok=True)

    started = time.monotonic()
    config = QUICK if arguments.quick else FULL
    load_array(DATA / "x_train.npy", memory_map=True)  # or a clear line that says what is missing
    report = surroundings() | {"quick": arguments.quick}
    if "throughput" in arguments.only:
        report["throughput"] = throughput(config, DATA, TABLE)
    if "accuracy" in arguments.only:
        report["time_to_accuracy"] = time_to_accuracy(config, DATA, TABLE)
    if "scaling" in arguments.only:
        report["scaling"] = scaling(config, DATA)
    report["minutes"] = round((time.monotonic() - started) / 60, 1)
    print(table(report))
    save_json(output / "benchmark.json", report)
    plots.draw(report, output)
    print(output / "benchmark.json")


if __name__ == "__main__":
    command.run(main)
