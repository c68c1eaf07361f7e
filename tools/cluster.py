"""Share the seeds of a study out to the workers of a Dask cluster.

A worker has one seed at a time, chosen here and not by Dask's scheduler: a worker that joins late
then gets its part, and a seed of a worker that has died goes to the next that is free.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from stages.pipeline import threads  # (before NumPy)

# isort: split
import dask
import numpy as np
from distributed import Client, Future, LocalCluster

from stages.pipeline.command import InputError
from tools.revision import revision
from tools.seed import Outcome, Result, Sets, Task
from tools.worker import ADDRESS, LOGGING, PATIENCE, SEEDS_OF, AbandonedError, quiet

MOST_LOCAL = 64
POLL = 0.25  # seconds

Done = Callable[[Task, Outcome], None]
Failed = Callable[[Task, str], None]


class _Running(NamedTuple):
    task: Task
    future: Future


def train(cluster: str, tasks: Sequence[Task], sets: Sets, done: Done, failed: Failed) -> None:
    """Train every task on a cluster and tell of each as it ends.

    Args:
        cluster: `local:N` for N workers on this machine, or a scheduler's address.
        tasks: what to train.
        sets: the images, sent to the workers once.
        done: called with what the training of a seed gave.
        failed: called with the reason of a failure.

    Raises:
        InputError: there is no such cluster, the code here is not a commit's, or the scheduler
            is lost.
    """
    quiet()
    with _connected(cluster) as (client, resource):
        print(f"dashboard: {client.dashboard_link}", flush=True)
        study = _Study(client, resource, cluster, tasks)
        try:
            study.run(sets, done, failed)
        finally:
            study.abandon()


@contextmanager
def _connected(cluster: str) -> Iterator[tuple[Client, str]]:
    """Yield a client and the resource that a worker for this study has."""
    local = re.fullmatch(r"local:([0-9]{1,9})", cluster)
    if local and 1 <= int(local[1]) <= MOST_LOCAL:
        count, resource = int(local[1]), f"{SEEDS_OF}here"
        workers, logging = threads.worker_count(count), os.environ.get(LOGGING, "critical")
        environment = {"WORKERS": str(workers), LOGGING: logging}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another port for the dashboard is as good
            server = LocalCluster(
                n_workers=count, threads_per_worker=1, memory_limit=0, host="127.0.0.1",
                resources={resource: 1}, preload="tools.worker", env=environment,
            )  # fmt: skip
        with server, Client(server) as client:
            yield client, resource
        return
    if not ADDRESS.fullmatch(cluster):
        raise InputError(
            f"CLUSTER: {cluster}: must be local:N for 1 to {MOST_LOCAL} workers on this machine, "
            "or a scheduler's address such as tcp://host:8786"
        )
    resource = SEEDS_OF + revision()
    try:
        client = Client(cluster, timeout=PATIENCE)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"CLUSTER: {cluster}: {' '.join(str(error).split())}") from None
    try:
        yield client, resource
    finally:
        client.close(timeout=2)


class _Study:
    """The tasks of a study: waiting, running on a worker each, done or failed."""

    def __init__(self, client: Client, resource: str, cluster: str, tasks: Sequence[Task]) -> None:
        self._client = client
        self._resource = resource
        self._cluster = cluster
        self._waiting = deque(tasks)
        self._running: dict[str, _Running] = {}  # by the worker's address
        self._deaths = Counter[str]()
        self._refused: set[str] = set()
        self._total, self._done, self._failed = len(tasks), 0, 0
        self._attempts = 0
        self._alone = False

    def run(self, sets: Sets, done: Done, failed: Failed) -> None:
        """Keep every worker busy until no task is left.

        Raises:
            InputError: the scheduler is lost.
        """
        # Not the files that they may be mapped to, which another machine has not.
        copies = tuple((np.array(images), np.array(labels)) for images, labels in sets)
        data: Future | None = None
        while self._waiting or self._running:
            with self._asking():
                workers = self._workers()
            for address, (task, future) in list(self._running.items()):
                self._collect(address, task, future, done, failed)
            for address in self._running.keys() - workers.keys():
                self._return(address, failed)
            ready = [address for address, takes_seeds in workers.items() if takes_seeds]
            free = [address for address in ready if address not in self._running]
            if self._waiting and free:
                with self._asking():
                    # The last worker that held the images may have died.
                    if data is None or data.status != "finished":
                        (data,) = self._client.scatter([copies], workers=ready, broadcast=True)
                    for address in free[: len(self._waiting)]:
                        self._submit(self._waiting.popleft(), address, data)
                self._say("")
            time.sleep(POLL)

    def abandon(self) -> None:
        """Let the workers drop what they are at."""
        if self._client.status == "running":
            with suppress(OSError, TimeoutError):
                self._client.cancel([future for _, future in self._running.values()])

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn whatever a lost scheduler makes Dask raise into one line."""
        try:
            if self._client.status != "running":
                raise OSError
            yield
        except (OSError, TimeoutError, CancelledError):
            raise InputError(
                f"CLUSTER: {self._cluster}: the scheduler is lost: {self._done} of {self._total} "
                "seeds are kept, and the same command resumes"
            ) from None

    def _workers(self) -> dict[str, bool]:
        """Return by address the workers for this study, and whether each takes seeds.

        Others of ours are refused; a cluster may have workers for other work as well.
        """
        found: dict[str, bool] = {}
        known = self._client.sync(
            self._client.scheduler.identity, n_workers=-1, callback_timeout=PATIENCE
        )["workers"]
        for address, worker in known.items():
            ours = [name for name in worker["resources"] if name.startswith(SEEDS_OF)]
            if self._resource in ours:
                found[address] = worker["status"] == "running"  # not about to close
            elif ours and address not in self._refused:
                self._refused.add(address)
                other, wanted = (
                    name.removeprefix(SEEDS_OF)[:12] for name in (ours[0], self._resource)
                )
                line = f"{address}: commit {other}: must be {wanted}, the study's"
                print(f"worker refused: {line}", flush=True)
                self._client.run(_refusal(line), workers=[address], on_error="ignore")
        if not (found or self._alone or self._cluster.startswith("local:")):
            print(
                f"no worker yet: 'make worker SCHEDULER={self._cluster}' in a clone of "
                f"commit {self._resource.removeprefix(SEEDS_OF)[:12]} starts one",
                flush=True,
            )
        self._alone = not found
        return found

    def _submit(self, task: Task, address: str, data: Future) -> None:
        self._attempts += 1
        future = self._client.submit(
            _trainer(), task.params.model_dump(), task.section, data, pure=False,
            key=f"{task} ({self._attempts})", workers=[address], allow_other_workers=False,
        )  # fmt: skip
        self._running[address] = _Running(task, future)

    def _collect(
        self, address: str, task: Task, future: Future, done: Done, failed: Failed
    ) -> None:
        """Take the outcome of a task that has ended."""
        if future.status == "pending" or self._client.status != "running":
            return
        try:
            outcome = future.result(timeout=PATIENCE)
        except (AbandonedError, OSError, TimeoutError, CancelledError):
            self._return(address, failed)
            return
        except Exception as error:
            outcome = f"{task.section}: {type(error).__name__}: {error}"
        del self._running[address]
        if isinstance(outcome, str):
            self._failed += 1
            failed(task, outcome)
            self._say(f"{task} failed; ")
        else:
            self._done += 1
            result = Result(**outcome.pop("result"))
            done(task, Outcome(result, **outcome))
            self._say(f"{task}: {result.test_accuracy:.2%}; ")

    def _return(self, address: str, failed: Failed) -> None:
        """Take a task back from a worker that has died or leaves."""
        task, future = self._running.pop(address)
        future.cancel()
        self._deaths[str(task)] += 1
        deaths = self._deaths[str(task)]
        if deaths > dask.config.get("distributed.scheduler.allowed-failures"):
            self._failed += 1
            failed(task, f"{task.section}: {deaths} workers left or died over it")
        else:
            self._waiting.appendleft(task)
        self._say(f"{task}: its worker {address} is gone; ")

    def _say(self, what: str) -> None:
        print(
            f"{what}{self._done} of {self._total} done, {len(self._running)} running, "
            f"{self._failed} failed",
            flush=True,
        )


# Dask sends what these two return by value, so that a scheduler needs no clone, and a worker
# of another commit none of this code.


def _trainer() -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        from tools.worker import train_seed

        return train_seed(*arguments)

    return call


def _refusal(line: str) -> Callable[..., None]:
    def refuse(dask_worker: Any) -> None:
        dask_worker.refusal = line
        dask_worker.loop.add_callback(dask_worker.close, reason=line)

    return refuse
