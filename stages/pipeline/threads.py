"""The numeric runtime: how many cores compute. Imported before NumPy, and nothing depends on it.

The training engine runs one process a core, so each process's BLAS keeps to one thread, whatever
the shell says: more of them would fight over the cores. BLAS libraries read these variables once,
when NumPy is first imported. Because the arithmetic is exact (see `stages.core.exact`), neither
the threads nor the workers change a single bit of any output: they are a matter of speed alone,
and the variables `BLAS_THREADS` and `WORKERS` are there to show it.
"""

from __future__ import annotations

import os
import sys

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
                 "VECLIB_MAXIMUM_THREADS"):  # fmt: skip
    os.environ[variable] = os.environ.get("BLAS_THREADS", "1")

MOST_WORKERS = 4
CHECKPOINT_SECONDS = 10.0


def worker_count() -> int:
    """Return the number of training processes: the cores this process may use, at most 4.

    The environment variable `WORKERS` overrides it. Workers are forked, which only Linux does
    safely beside a system BLAS; elsewhere one process trains.
    """
    chosen = os.environ.get("WORKERS", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    if sys.platform != "linux":
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def checkpoint_seconds() -> float:
    """Return the least seconds of training between two checkpoints.

    The environment variable `CHECKPOINT_SECONDS` overrides the usual 10; 0 saves each epoch.
    """
    chosen = os.environ.get("CHECKPOINT_SECONDS", "")
    return float(chosen) if chosen.replace(".", "", 1).isdecimal() else CHECKPOINT_SECONDS
