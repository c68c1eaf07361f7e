"""Remove those of DVC's own files that a killed DVC left half-written: part of `make repro`.

DVC writes dvc.lock and .dvc/tmp/rwlock in place, not whole at once. Killed in between, it leaves a
file that it refuses to read ever after, although it can do without either: it writes dvc.lock
anew, and takes results it already has from its cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dvc.fs import localfs
from dvc.lock import LockError, make_lock
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils.serialize import ParseError
from dvc.utils.strictyaml import YAMLValidationError, load

TEMPORARY = Path(".dvc/tmp")


def main() -> None:
    """Remove what DVC could not read, unless a DVC is at work and may be writing it."""
    if not TEMPORARY.exists():
        return  # DVC has never run here
    try:
        with make_lock(TEMPORARY / "lock"):
            _remove_unless(_lock_is_whole, Path("dvc.lock"))
            with make_lock(TEMPORARY / "rwlock.lock"):
                _remove_unless(_json_is_whole, TEMPORARY / "rwlock")
    except LockError:
        return  # which DVC itself will say, better


def _remove_unless(whole: Callable[[Path], bool], path: Path) -> None:
    if path.exists() and not whole(path):
        path.unlink()
        print(f"{path}: half-written by a DVC that was killed: removed, DVC makes it anew")


def _lock_is_whole(path: Path) -> bool:
    try:
        load(str(path), COMPILED_LOCKFILE_SCHEMA, localfs)
    except (ParseError, YAMLValidationError):
        return False
    return True


def _json_is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    main()
