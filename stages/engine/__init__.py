"""Training with the same bytes as `stages.core.training`, compiled and on all cores.

Nobody needs this to understand the network. What may differ from the textbook: sums are taken in
any order and skip terms that are zero, since exact sums do not notice; a layer's units are divided
among threads. What may not: every rounding.
"""

import os

# The user's settings for Numba could switch it off, or make it check, trace or dump; only the
# processor may be chosen, which changes no result.
for _name in [name for name in os.environ if name.startswith("NUMBA_")]:
    if _name != "NUMBA_CPU_NAME":
        del os.environ[_name]
