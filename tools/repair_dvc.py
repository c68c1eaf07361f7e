"""Repair what DVC itself does not: part of `make repro`, `make recipe`, `make study`, `make push`.

DVC removes a stage's outputs before it runs the stage. If the stage is then killed or refuses a
parameter, the old ones are in DVC's cache: `dvc repro` restores them as soon as the parameters are
the old ones again, `git restore . && dvc checkout` at once. What is not there is made anew.

That needs files that DVC can read. It writes dvc.lock and .dvc/tmp/rwlock in place, not whole at
once. Killed in between, it leaves a file that it refuses to read ever after, although it can do
without either: it writes dvc.lock anew, and takes results it already has from its cache.

And it needs a cache that is what it was, which DVC believes without looking. A file that has
changed, by a flipped bit, would be restored and used; without it, DVC makes it again, or pulls it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dvc.fs import localfs
from dvc.lock import LockError, make_lock
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils.serialize import ParseError
from dvc.utils.strictyaml import YAMLValidationError, load

LOCK = Path("dvc.lock")
TEMPORARY = Path(".dvc/tmp")
CACHE = Path(".dvc/cache/files/md5")


def main() -> None:
    """Repair, unless a DVC is at work and may be writing."""
    if not TEMPORARY.exists():
        return  # DVC has never run here
    try:
        with make_lock(TEMPORARY / "lock"), make_lock(TEMPORARY / "rwlock.lock"):
            repair()
    except LockError:
        return  # which DVC itself will say, better


def repair() -> None:
    """Remove the half-written and the changed files."""
    rwlock = TEMPORARY / "rwlock"
    try:
        json.loads(rwlock.read_bytes() if rwlock.exists() else "{}")
    except ValueError:
        _remove(rwlock, "half-written")
    try:
        if LOCK.exists():
            load(str(LOCK), COMPILED_LOCKFILE_SCHEMA, localfs)
    except (ParseError, YAMLValidationError):
        _remove(LOCK, "half-written")
    for path in CACHE.glob("??/*"):
        # The list of a folder's files has a suffix that is no part of its hash.
        expected = path.parent.name + path.name.removesuffix(".dir")
        if path.is_file() and _md5(path) != expected:
            _remove(path, "changed since it was written")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _remove(path: Path, reason: str) -> None:
    path.unlink()
    print(f"{path}: {reason}: removed, DVC gets it anew")


if __name__ == "__main__":
    main()
