"""Train seeds for the studies of a Dask cluster, until its scheduler ends.

A worker gets parameters and images from the study and needs no data of its own. A study takes only
workers of its own commit, with no change.

`dask worker --preload tools.worker`, run in a clone, makes such a worker as well: that is for what
starts Dask's workers itself, such as dask-jobqueue.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

from stages.pipeline import threads  # noqa: F401  (before NumPy)

# isort: split
import numpy as np
from distributed import Status, Worker, get_worker

from stages.pipeline.command import InputError, Parser, run
from stages.pipeline.params import TrainParams
from tools.revision import revision
from tools.seed import Sets, trained_and_scored

CHECKPOINTS = Path(".dvc/tmp")
SEEDS_OF = "exact-mnist "
"""Begins the name of the resource, in Dask's sense, that a worker has: seeds of a commit."""
ADDRESS = re.compile(r"(tcp|tls)://[^\s/]+:[0-9]+")
PATIENCE = 30  # seconds that a scheduler may take to answer


LOGGING = "DASK_LOGGING__DISTRIBUTED"


class AbandonedError(Exception):
    """Nobody waits for this seed any more: the study or the worker is about to end."""


def quiet() -> None:
    """Keep Dask's log off the terminal, where one line is ours to say, unless the user wants it."""
    if LOGGING not in os.environ:
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def main() -> None:
    """Join a cluster; leave it when the scheduler ends, or on Ctrl-C."""
    parser = Parser(prog="python -m tools.worker", description=__doc__)
    parser.add_argument("scheduler", help="its address, such as tcp://host:8786")
    address = parser.parse_args().scheduler
    if not ADDRESS.fullmatch(address):
        raise InputError(f"SCHEDULER: {address}: must be an address such as tcp://host:8786")
    quiet()
    code = asyncio.run(_serve(address, revision()))
    os._exit(code)  # a training thread may be in the middle of an epoch


async def _serve(address: str, commit: str) -> int:
    """Work until the scheduler ends or a signal comes. Return the exit status.

    Raises:
        InputError: no scheduler answers, or a study refuses this worker.
    """
    signalled = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    interrupt = asyncio.ensure_future(signalled.wait())
    try:
        worker = Worker(address, nthreads=1, memory_limit=0, death_timeout=PATIENCE,
                        resources={SEEDS_OF + commit: 1}, dashboard=False)  # fmt: skip
        start = asyncio.ensure_future(worker.start())
        await asyncio.wait([start, interrupt], return_when=asyncio.FIRST_COMPLETED)
        if not interrupt.done():
            await start
    except (OSError, ValueError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or f"no scheduler answers within {PATIENCE} s"
        raise InputError(f"SCHEDULER: {address}: {reason}") from None
    print(f"joined {address} with commit {commit[:12]}", flush=True)
    end = asyncio.ensure_future(worker.finished())
    await asyncio.wait([end, interrupt], return_when=asyncio.FIRST_COMPLETED)
    refusal = getattr(worker, "refusal", None)
    if refusal:
        raise InputError(refusal)
    if interrupt.done():
        print("interrupted: the study gives this worker's seed to another one", file=sys.stderr)
        await worker.close(timeout=5)
        return 130
    print(f"the scheduler at {address} has ended", flush=True)
    return 0


def dask_setup(worker: Worker) -> None:
    """Make a worker that Dask has started one of ours; Dask calls this before it registers."""
    if not any(name.startswith(SEEDS_OF) for name in worker.state.total_resources):
        name = SEEDS_OF + revision()
        worker.state.total_resources[name] = worker.state.available_resources[name] = 1
    # Many workers in one terminal or log: the study tells the progress.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def train_seed(settings: dict[str, Any], section: str, sets: Sets) -> dict[str, Any] | str:
    """Train and score one seed, as a task of Dask's.

    Returns:
        The fields of an `Outcome`, or why the seed failed.
    """
    worker = get_worker()
    key = worker.get_current_task()

    def check() -> None:
        task = worker.state.tasks.get(key)
        if (
            not task
            or task.state == "cancelled"
            or worker.status in (Status.closing, Status.closed)
        ):
            raise AbandonedError

    # Arrays that came over the network are read-only, for which Numba would compile anew.
    own: Any = tuple(tuple(np.require(array, requirements="W") for array in pair) for pair in sets)
    digest = hashlib.sha256(f"{section} {settings}".encode()).hexdigest()[:16]
    checkpoint = CHECKPOINTS / f"study.{digest}.checkpoint.npz"
    try:
        params = TrainParams(**settings)
        outcome = trained_and_scored(params, section, own, checkpoint, check)
    except InputError as error:
        return str(error)
    checkpoint.unlink(missing_ok=True)
    return outcome._asdict() | {"result": outcome.result.model_dump()}


if __name__ == "__main__":
    run(main, single=False)
