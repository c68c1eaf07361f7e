"""The compiler, and its cache of compiled kernels.

Kernels are plain Python loops that Numba compiles. Without `fastmath` every operation is IEEE
754's and none is fused with another, so a kernel rounds what its loop says it rounds.

Numba's own cache does not notice changes in a function that was inlined from another file. Here a
compiled kernel is found by the hash of all the sources that it may contain.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

# Numba reads it when it is first imported, and imports the class when it first compiles.
os.environ["NUMBA_CACHE_LOCATOR_CLASSES"] = f"{__name__}.SourceHashLocator"

import numba
import numpy as np
from numba.core.caching import _CacheLocator

HERE = Path(__file__).parent
SOURCES = (HERE, HERE.parent / "core")


@cache
def cache_folder() -> Path | None:
    """Return the folder of the compiled kernels, or None where none can be written."""
    digest = hashlib.sha256(f"{sys.version} {numba.__version__} {np.__version__}".encode())
    for folder in SOURCES:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    for root in _cache_roots():
        folder = root / f"exact-mnist-{digest.hexdigest()[:16]}"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            tempfile.TemporaryFile(dir=folder).close()
            return folder
        except OSError:
            continue
    return None


def _cache_roots() -> Iterator[Path]:
    """Yield where caches belong, best first."""
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"])
    yield Path(os.path.expanduser("~/.cache"))
    yield Path(tempfile.gettempdir()) / f"cache-{getattr(os, 'getuid', int)()}"


class SourceHashLocator(_CacheLocator):
    """Tells Numba where a kernel's compiled code is, wherever the checkout lies."""

    def __init__(self, py_file: str) -> None:
        self._py_file = py_file

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> SourceHashLocator | None:
        """Return the locator of a function, or None if no folder can be written."""
        return cls(py_file) if cache_folder() else None

    def get_cache_path(self) -> str:
        """Return the folder."""
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        """Return what a compiled kernel must have been compiled from: the folder's name says it."""
        return str(cache_folder())

    def get_disambiguator(self) -> str:
        """Return what tells functions of the same name apart."""
        return Path(self._py_file).stem


# What the environment variable NUMBA_CACHE_LOCATOR_CLASSES sets, even if Numba is imported already.
numba.config.CACHE_LOCATOR_CLASSES = f"{__name__}.{SourceHashLocator.__name__}"  # type: ignore[attr-defined]

Kernel = Callable[[Callable[..., Any]], Callable[..., Any]]

kernel: Kernel = numba.njit(nogil=True, error_model="numpy")

exact_kernel: Kernel = numba.njit(
    nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)
"""For exact sums alone: neither their order nor fusing changes a bit of them."""

entry_kernel: Kernel = numba.njit(nogil=True, error_model="numpy", cache=cache_folder() is not None)
"""What Python calls; its compiled code, with that of all kernels it calls, is cached."""
