"""How threads meet: a barrier, and a status that makes all of them stop."""

from __future__ import annotations

from stages.engine.compiler import kernel
from stages.engine.vectors import atomic_add, atomic_load, atomic_store, yield_core

SPINS = 2000

# Where the control array has what, each on a cache line of its own.
ARRIVED, GENERATION, STATUS, LAYER = 0, 8, 16, 24
CONTROL_SIZE = 32
# What STATUS says: running, or why every thread is to stop.
RUNNING, STOPPED, WEIGHTS_TOO_LARGE, DELTAS_TOO_LARGE = range(4)


@kernel
def barrier(control, threads):
    """Wait for all threads; what each wrote before, all can read after. Return the status.

    Whoever finds the status not RUNNING leaves at once, so that nobody waits for a thread that has
    stopped.
    """
    if threads > 1 and atomic_load(control, STATUS) == RUNNING:
        generation = atomic_load(control, GENERATION)
        if atomic_add(control, ARRIVED, 1) == threads - 1:
            atomic_store(control, ARRIVED, 0)
            atomic_store(control, GENERATION, generation + 1)
        else:
            spins = 0
            while (
                atomic_load(control, GENERATION) == generation
                and atomic_load(control, STATUS) == RUNNING
            ):
                spins += 1
                if spins > SPINS:
                    yield_core()
    return atomic_load(control, STATUS)


@kernel
def fail(control, status, layer):
    """Tell all threads to stop, and why."""
    atomic_store(control, LAYER, layer)
    atomic_store(control, STATUS, status)
