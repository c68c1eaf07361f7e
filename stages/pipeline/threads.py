"""How many threads compute, and how often a checkpoint is saved. Imported before NumPy.

BLAS keeps to one thread, whatever the shell says: the training's own threads use the cores. BLAS
libraries read these variables once, when NumPy is first imported. Because the arithmetic is exact
(see `stages.core.exact`), neither the threads nor the workers change a single bit of any output:
the variables `BLAS_THREADS`, `WORKERS` and `ENGINE` are there to show it.
"""

from __future__ import annotations

import os
import re
import sys

from stages.pipeline.command import InputError, whole_number

BLAS_THREADS = os.environ.get("BLAS_THREADS") or "1"
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
                 "VECLIB_MAXIMUM_THREADS"):  # fmt: skip
    os.environ[variable] = BLAS_THREADS

MOST_WORKERS = 4
MOST_CHOSEN_WORKERS = 64
CHECKPOINT_SECONDS = 10.0
MOST_CHECKPOINT_SECONDS = 86400.0


def worker_count(processes: int = 1) -> int:
    """Return the number of training threads: the cores this process may use, at most 4.

    The environment variable `WORKERS` overrides it.

    Args:
        processes: among which the cores are divided.

    Raises:
        InputError: the variable, or `BLAS_THREADS`, is not a whole number from 1 to 64.
    """
    whole_number("BLAS_THREADS", BLAS_THREADS, MOST_CHOSEN_WORKERS)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    chosen = os.environ.get("WORKERS") or str(min(max(1, cores // processes), MOST_WORKERS))
    # Threads that wait for a core that others of them hold only slow each other down.
    return min(whole_number("WORKERS", chosen, MOST_CHOSEN_WORKERS), max(cores, MOST_WORKERS))


def checkpoint_seconds() -> float:
    """Return the least seconds of training between two checkpoints.

    The environment variable `CHECKPOINT_SECONDS` overrides the usual 10; 0 saves each epoch.

    Raises:
        InputError: the variable is not a number from 0 to 86400.
    """
    chosen = os.environ.get("CHECKPOINT_SECONDS") or str(CHECKPOINT_SECONDS)
    if re.fullmatch(r"\d+\.?\d*", chosen, re.ASCII) and float(chosen) <= MOST_CHECKPOINT_SECONDS:
        return float(chosen)
    raise InputError(
        f"CHECKPOINT_SECONDS: {chosen}: must be a number from 0 to {MOST_CHECKPOINT_SECONDS:g}"
    )
