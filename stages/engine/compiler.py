"""The compiler, and its cache of compiled kernels.

Kernels are plain Python loops that Numba compiles. Without `fastmath` every operation is IEEE
754's and none is fused with another, so a kernel rounds what its loop says it rounds.

Numba's own cache does not notice changes in a function that was inlined from another file, and a
damaged or unwritable file ends the program. Here a compiled kernel is found by the hash of all the
sources that it may contain, and whatever is wrong with the cache only means compiling anew.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import config
from numba.core.caching import NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, CompileResult
from numba.core.serialize import dumps

# As in `stages.engine`: nor does a .numba_config.yaml in the working directory reach the engine.
config._config_fname = os.devnull
config.reload_config()  # type: ignore[no-untyped-call]

HERE = Path(__file__).parent
SOURCES = (HERE, HERE.parent / "core")
FOLDER_NAME = re.compile(r"exact-mnist-[0-9a-f]{16}")
UNUSED_SECONDS = 30 * 86400.0
"""After which the kernels of other sources are removed."""


@cache
def cache_folder() -> Path | None:
    """Return the folder of the compiled kernels, or None where none can be written."""
    user = getattr(os, "getuid", int)()
    about = f"{user} {sys.version} {numba.__version__} {np.__version__}"
    digest = hashlib.sha256(about.encode())
    for folder in SOURCES:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    for root in filter(Path.is_absolute, _cache_roots()):
        folder = root / f"exact-mnist-{digest.hexdigest()[:16]}"
        try:
            if not folder.exists():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                _remove_unused(root)
            if _is_private(folder):
                tempfile.TemporaryFile(dir=folder).close()
                os.utime(folder)
                return folder
        except OSError:
            continue
    return None


def _cache_roots() -> Iterator[Path]:
    """Yield where caches belong, best first."""
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"])
    yield Path(os.path.expanduser("~/.cache"))
    yield Path(tempfile.gettempdir())


def _is_private(folder: Path) -> bool:
    """Return whether nobody else can have put a file there: its pickles can run any code."""
    if sys.platform == "win32":
        return True
    status = folder.lstat()
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and stat.S_IMODE(status.st_mode) == 0o700
    )


def _remove_unused(root: Path) -> None:
    """Remove the folders of sources that have long not been used."""
    for folder in root.iterdir():
        with suppress(OSError):
            if (
                FOLDER_NAME.fullmatch(folder.name)
                and folder.lstat().st_mtime < time.time() - UNUSED_SECONDS
            ):
                shutil.rmtree(folder)


class KernelCache(NullCache):
    """A kernel's compiled code, one file for each signature and processor.

    A file is the SHA-256 of the rest, and a pickle. One that cannot be read is removed, one that
    cannot be written is left out.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        key = repr((signature, codegen.magic_tuple()))
        folder = cache_folder()
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        return folder / f"{self.name}-{digest}.pickle" if folder else None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what was compiled for a signature, or None."""
        target_context.refresh()
        path = self._path(sig, target_context.codegen())
        try:
            content = path.read_bytes() if path else b""
        except OSError:
            return None
        try:
            if content and content[:32] == hashlib.sha256(content[32:]).digest():
                reduced = pickle.loads(content[32:])  # noqa: S301  (nobody else writes there)
                return CompileResult._rebuild(target_context, *reduced)  # type: ignore[no-untyped-call]
        except Exception:  # noqa: S110  (whatever is wrong, compiling anew is right)
            pass
        if path:
            with suppress(OSError):
                path.unlink()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep what was compiled for a signature."""
        path = self._path(sig, data.codegen)
        if path is None or data.library.has_dynamic_globals:
            return
        pickled = dumps(data._reduce())  # type: ignore[no-untyped-call]
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(hashlib.sha256(pickled).digest() + pickled)
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink()


class InnerLibrary(JITCodeLibrary):
    """The LLVM code of a kernel that kernels alone call.

    It is optimised and made machine code within its callers, never by itself: Numba would do both
    once for every kernel, and again for all that call it.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: there is no machine code."""
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0

    @property
    def codegen(self) -> InnerLibrary:
        """What `set_env` is called of."""
        return self

    def set_env(self, name: str, environment: object) -> None:
        """Do nothing: only machine code would find the environment."""


class InnerCompiler(Compiler):
    """Numba's compiler, for a kernel that kernels alone call."""

    def compile_extra(self, function: Callable[..., Any]) -> Any:
        """Compile the kernel."""
        about = self.state.targetctx.codegen(), function.__qualname__
        self.state.library = InnerLibrary(*about)  # type: ignore[no-untyped-call]
        return super().compile_extra(function)  # type: ignore[no-untyped-call]


Kernel = Callable[[Callable[..., Any]], Callable[..., Any]]

# Without NRT, Numba counts no references to arrays, for every view an atomic addition to a cache
# line that all threads share. So a kernel allocates nothing.
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
# What kernels alone call needs no entry from Python.
INNER: dict[str, Any] = {
    **OPTIONS,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": InnerCompiler,
}

kernel: Kernel = numba.njit(**INNER)

inlined_kernel: Kernel = numba.njit(**INNER, inline="always")
"""For what returns a view of an array, as a kernel can only where it is inlined."""

exact_kernel: Kernel = numba.njit(**INNER, fastmath={"reassoc", "contract", "nsz"})
"""For exact sums alone: neither their order nor fusing changes a bit of them."""


def entry_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what Python calls; its compiled code, with that of all it calls, is cached."""
    compiled: Any = numba.njit(**OPTIONS)(function)
    compiled._cache = KernelCache(function)
    return compiled  # type: ignore[no-any-return]
