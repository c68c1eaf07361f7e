"""A crew of processes that compute one thing together, in memory they share.

Threads of one Python process hand the interpreter's lock back and forth, which costs more than
a small network's matrix products. Forked processes have an interpreter each; they meet at a
barrier that costs about a microsecond, with one hidden layer once a step.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from stages.core import Array

_SPINS = 20000
_PATIENCE = 1.0  # seconds between looks at whether the others are still alive


def shared_array(shape: int | Sequence[int], dtype: DTypeLike = np.float32) -> Array:
    """Return an array of zeros that processes forked from now on share."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    memory = mmap.mmap(-1, max(1, count * dtype.itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)


class CrewError(RuntimeError):
    """Another process of the crew failed or is gone."""


class Crew:
    """`size` processes, numbered by rank; rank 0 is the process that made the crew."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._parent = os.getpid()
        self._children: list[int] = []
        self._failure = shared_array(1024, np.uint8)
        if size > 1:
            fork = multiprocessing.get_context("fork")
            self._gates = [[fork.Semaphore(0) for _ in range(size)] for _ in range(size)]

    def share(self, count: int, rank: int) -> slice:
        """Return the part of `range(count)` that is this rank's."""
        return slice(count * rank // self.size, count * (rank + 1) // self.size)

    def run(self, task: Callable[[int], Any]) -> Any:
        """Call `task(rank)` in every process at once; return what rank 0's call returned.

        Raises:
            CrewError: another rank failed; says what it said.
            Exception: whatever rank 0's call raised.
        """
        for rank in range(1, self.size):
            child = os.fork()
            if child == 0:
                self._work(task, rank)
            self._children.append(child)
        try:
            result = task(0)
        except BaseException:
            self._fail("rank 0 failed")
            for child in self._children:
                os.kill(child, signal.SIGTERM)
            raise
        finally:
            for child in self._children:
                os.waitpid(child, 0)
            self._children.clear()
        return result

    def wait(self, rank: int, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until every rank has come here; what each wrote before, all can read after.

        Args:
            rank: whose call it is.
            meanwhile: done before waiting, while the others are on their way.

        Raises:
            CrewError: another rank failed or is gone.
        """
        for other in range(self.size):
            if other != rank:
                self._gates[other][rank].release()
        if meanwhile:
            meanwhile()
        for other in range(self.size):
            if other == rank:
                continue
            gate = self._gates[rank][other]
            for _ in range(_SPINS):
                if gate.acquire(False):
                    break
            else:
                while not gate.acquire(True, _PATIENCE):
                    self._check_alive(rank)

    def _work(self, task: Callable[[int], Any], rank: int) -> None:
        """Be a forked rank, and never return."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 answers Ctrl-C for all
        status = 0
        try:
            task(rank)
        except CrewError:
            status = 1
        except BaseException as error:
            status = 1
            self._fail(str(error) or type(error).__name__)
            if not isinstance(error, ArithmeticError):
                traceback.print_exc()
        finally:
            os._exit(status)

    def _fail(self, message: str) -> None:
        text = message.encode()[: len(self._failure)]
        self._failure[: len(text)] = np.frombuffer(text, np.uint8)

    def _check_alive(self, rank: int) -> None:
        if self._failure[0]:
            raise CrewError(self._failure.tobytes().rstrip(b"\0").decode(errors="replace"))
        if rank > 0 and os.getppid() != self._parent:
            raise CrewError("the training process is gone")
        if rank == 0:
            for child in self._children:
                if os.waitpid(child, os.WNOHANG) != (0, 0):
                    self._children.remove(child)
                    raise CrewError(f"worker process {child} is gone")
