"""The figures that the pipeline and its tools draw, from arrays to PNG files.

Matplotlib reads settings when it is imported: from MPLBACKEND, which Jupyter sets to a backend of
its own, and from a matplotlibrc in the working folder. Neither counts here: it is imported where
the matplotlibrc is its own.
"""

import os
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"
_matplotlib = find_spec("matplotlib")
if _matplotlib and _matplotlib.origin:
    with chdir(Path(_matplotlib.origin).parent / "mpl-data"):
        import matplotlib  # noqa: F401
