"""One rank of a training over MPI: it writes what the `train` stage writes, the same bytes.

    mpiexec -n 4 python -m tools.mpi

Every rank holds all parameters and computes its shard of each micro-batch; the sums over samples
are then added up over the ranks (`MPI_Iallreduce`). They are exact, so neither the number of ranks
nor the order in which MPI adds changes a bit. Rank 0 alone reads and writes files and reports
progress. `python -m tools.mpiexec` starts the ranks and says in one line what went wrong.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from stages import train as stage  # isort: skip (before NumPy, which reads BLAS_THREADS once)

import numpy as np
from mpi4py import MPI
from mpi4py.run import set_abort_status

from stages.core import Array
from stages.core import training as textbook
from stages.core.config import TrainConfig
from stages.core.data import LabelledImages
from stages.core.exact import Exact
from stages.core.network import Layer
from stages.core.state import State
from stages.core.training import Epoch
from stages.pipeline.checkpoint import fingerprint_of
from stages.pipeline.command import InputError, run, single_instance


class Distributed(Exact):
    """Exact arithmetic whose samples, and so the sums over them, are divided among ranks."""

    def __init__(self, layers: int, ranks: MPI.Comm) -> None:
        super().__init__(layers)
        self.ranks = ranks

    def fresh(self) -> Distributed:
        """Return the arithmetic for another network of as many layers."""
        return Distributed(len(self.inputs), self.ranks)

    def shard(self, samples: int) -> slice:
        """Return this rank's part of a micro-batch; sizes differ by at most one."""
        rank, size = self.ranks.rank, self.ranks.size
        return slice(samples * rank // size, samples * (rank + 1) // size)

    def all_reduce(self, *sums: Array) -> Sequence[Array]:
        """Return sums over the samples of all ranks, given this rank's, which are overwritten."""
        totals = [np.asarray(partial, order="C") for partial in sums]
        MPI.Request.Waitall([self.ranks.Iallreduce(MPI.IN_PLACE, total) for total in totals])
        return totals


class Job:
    """The training that rank 0 shares with the other ranks.

    Attributes:
        shared: whether they have it.
        abandoned: whether they wait in vain for rank 0's part of a sum.
    """

    def __init__(self, ranks: MPI.Comm) -> None:
        self.ranks = ranks
        self.shared = self.abandoned = False

    def train(
        self,
        training_set: LabelledImages,
        validation_set: LabelledImages,
        config: TrainConfig,
        on_epoch: Callable[[Epoch], None],
        resume: State | None,
        on_state: Callable[[State], None],
    ) -> list[Layer]:
        """Train as `stages.core.training.train` does, on all ranks."""
        # What is mapped from a file becomes an array in memory, to be sent.
        training_set, validation_set = (
            (np.array(images), np.array(labels))
            for images, labels in (training_set, validation_set)
        )
        self.shared = True
        try:
            self.ranks.bcast((training_set, validation_set, config, resume))
            arithmetic = Distributed(len(config.hidden_sizes) + 1, self.ranks)
            return textbook.train(
                training_set, validation_set, config, on_epoch, arithmetic, resume, on_state
            )
        except ArithmeticError:  # every rank has raised it
            raise
        except BaseException:
            self.abandoned = True
            raise


def lead(ranks: MPI.Comm, codes: Sequence[tuple[str, str]]) -> None:
    """Run the stage as rank 0."""
    job = Job(ranks)

    def main() -> None:
        for rank, (host, code) in enumerate(codes):
            if code != codes[0][1]:
                raise InputError(f"rank {rank}: the code on host {host} differs from rank 0's")
        with single_instance("train"):
            stage.main(job.train)

    try:
        run(main)
    except BaseException as error:
        if job.abandoned:
            set_abort_status(error)
        raise
    finally:
        if not job.shared:
            ranks.bcast(None)


def follow(ranks: MPI.Comm) -> None:
    """Do another rank's part of the training, if rank 0 has one to share."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 ends all
    job: Any = ranks.bcast(None)
    if job is None:
        return
    training_set, validation_set, config, resume = job
    arithmetic = Distributed(len(config.hidden_sizes) + 1, ranks)
    try:
        textbook.train(training_set, validation_set, config, arithmetic=arithmetic, resume=resume)
    except ArithmeticError:
        pass  # rank 0 reports it
    except Exception as error:
        set_abort_status(error)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.exit(f"error: rank {ranks.rank} on {MPI.Get_processor_name()}: {reason}")


def main() -> None:
    """Take this process's part."""
    ranks = MPI.COMM_WORLD
    codes = ranks.gather((MPI.Get_processor_name(), fingerprint_of({}, [])["code"]))
    if codes:
        lead(ranks, codes)
    else:
        follow(ranks)


if __name__ == "__main__":
    main()
