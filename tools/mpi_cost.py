"""What a step of a training over MPI costs, in two tables for docs/distributed.md.

    mpiexec -n 2 python -m tools.mpi_cost

Times of computing are CPU seconds of one core, those of reducing are wall seconds between the ranks
at hand; of either the fastest of several, so that other work on the machine matters little.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from stages import train as stage  # noqa: F401  isort: skip (before NumPy)

import numpy as np
from mpi4py import MPI

from stages.core import Array
from stages.core.augmentation import Augmentation
from stages.core.config import TrainConfig
from stages.core.exact import PIXELS, Exact
from stages.core.initialisation import initialise
from stages.core.network import Layer, losses_and_gradients, one_hot, quantised
from stages.core.optimizers import Descent
from stages.core.training import accumulated, micro_batches
from tools.mpi import Distributed

HIDDEN = ([64], [800], [1536, 1024, 512])
BATCHES = (128, 512, 4096)
INPUTS, CLASSES = 784, 10  # MNIST's
LIT = 0.19  # of its pixels
MACHINES = (1, 10, 100)
NETWORKS = {"10 Gbit/s, 30 us": (1.25e9, 30e-6), "100 Gbit/s, 2 us": (12.5e9, 2e-6)}
REPEATS = 7


class Cost(NamedTuple):
    """What one step takes: seconds, bytes and reductions.

    `computing` is, for each of `MACHINES`, one rank's part of the work that is divided; `updating`
    is done by every rank; `reducing` was measured among the ranks at hand.
    """

    computing: list[float]
    updating: float
    reducing: float
    reduced: int
    reductions: int

    def seconds(self, machine: int, rate: float, latency: float) -> float:
        """Return the step's time on `MACHINES[machine]` of them in a network, by the usual model.

        Reducing n bytes takes 2 ceil(log2(ranks)) latencies and 2 (ranks - 1) / ranks * n / rate.
        """
        ranks = MACHINES[machine]
        reducing = 2 * math.ceil(math.log2(ranks)) * latency * self.reductions
        reducing += 2 * (ranks - 1) / ranks * self.reduced / rate
        return self.computing[machine] + self.updating + reducing


def fastest(
    action: Callable[[], object],
    clock: Callable[[], float] = time.process_time,
    repeats: int = REPEATS,
) -> float:
    """Return the least seconds an action takes."""
    seconds = []
    for _ in range(repeats):
        MPI.COMM_WORLD.Barrier()
        start = clock()
        action()
        seconds.append(clock() - start)
    return min(seconds)


def config_of(hidden: list[int], batch: int) -> TrainConfig:
    """Return the default recipe's optimizer for a network."""
    return TrainConfig(
        hidden, "he", "sgd", 0.01, "one_cycle", 0.9, batch, 1, 0.0, 0.0, 0.0, 0.0, 0.999,
        Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0), 1, "last",
    )  # fmt: skip


def cost(hidden: list[int], batch: int) -> Cost:
    """Measure a step."""
    generator = np.random.default_rng(1)
    sizes = [INPUTS, *hidden, CLASSES]
    arithmetic, ranks = Exact(len(sizes) - 1), MPI.COMM_WORLD
    descent = Descent(initialise(sizes, "he", generator), config_of(hidden, batch), 10**6)
    weights = quantised(descent.parameters, arithmetic)
    targets = one_hot(np.arange(CLASSES), CLASSES)
    parts = micro_batches(0, batch)
    largest = parts[-1].stop - parts[-1].start

    def compute(samples: int) -> list[Layer]:
        pixels = generator.integers(1, 256, (samples, INPUTS)) * (
            generator.random((samples, INPUTS)) < LIT
        )
        x, labels = pixels.astype(np.uint8), generator.integers(0, CLASSES, samples)
        found: list[Layer] = []

        def work() -> None:
            nonlocal found
            inputs = x * np.float32(PIXELS.quantum)
            _, found = losses_and_gradients(weights, inputs, labels, targets, arithmetic)

        seconds.append(fastest(work) * len(parts))
        return found

    seconds: list[float] = []
    gradients, *_ = [compute(-(-largest // machines)) for machines in MACHINES]
    total = accumulated([], gradients, arithmetic)

    def update() -> None:
        quantised(descent.parameters, arithmetic)
        for _ in parts:
            accumulated(total, gradients, arithmetic)
        descent.update(total, batch)

    sums: list[list[Array]] = [list(layer) for layer in gradients]
    sums += [[np.zeros(units)] for units in hidden]
    distributed = Distributed(len(sizes) - 1, ranks)
    reducing = fastest(
        lambda: [distributed.all_reduce(*arrays) for arrays in sums], time.perf_counter, 100
    )
    reduced = sum(array.nbytes for arrays in sums for array in arrays)
    times = len(parts)
    return Cost(seconds, fastest(update), reducing * times, reduced * times, len(sums) * times)


def main() -> None:
    """Print what was measured, and what follows from it for more machines."""
    costs = {(tuple(hidden), batch): cost(hidden, batch) for hidden in HIDDEN for batch in BATCHES}
    ranks = MPI.COMM_WORLD
    if ranks.rank:
        return
    print(
        "| network | batch | computing, ms | updating, ms | reducing here, ms | bytes reduced "
        "| reductions |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    for (hidden, batch), found in costs.items():
        times = (found.computing[0], found.updating, found.reducing)
        figures = " | ".join(f"{1e3 * seconds:.2f}" for seconds in times)
        print(f"| {name(hidden)} | {batch} | {figures} | {found.reduced / 1e6:.2f} MB "
              f"| {found.reductions} |")  # fmt: skip
    columns = [(where, i) for where in NETWORKS for i in range(1, len(MACHINES))]
    heads = " | ".join(f"{MACHINES[i]}, {where}" for where, i in columns)
    print(f"\n| network | batch | 1 machine, ms | {heads} |\n|---|--:|--:|{'--:|' * len(columns)}")
    for (hidden, batch), found in costs.items():
        alone = found.computing[0] + found.updating
        cells = " | ".join(
            f"{1e3 * seconds:.2f} (x {alone / seconds:.1f})"
            for seconds in (found.seconds(i, *NETWORKS[where]) for where, i in columns)
        )
        print(f"| {name(hidden)} | {batch} | {1e3 * alone:.2f} | {cells} |")


def name(hidden: tuple[int, ...]) -> str:
    """Return a network's name by its sizes."""
    sizes = [INPUTS, *hidden, CLASSES]
    return "-".join(map(str, sizes))


if __name__ == "__main__":
    main()
