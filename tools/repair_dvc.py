"""Repair what DVC itself does not: part of every `make` target that runs DVC.

DVC removes a stage's outputs before it runs the stage. If the stage is then killed or refuses a
parameter, the old ones are in DVC's cache: `dvc repro` restores them as soon as the parameters are
the old ones again, `git restore params.yaml dvc.lock reports && dvc checkout` at once. What is not
there is made anew.

That needs files that DVC can read. It writes dvc.lock and .dvc/tmp/rwlock in place, not whole at
once. Killed in between, it leaves a file that it refuses to read ever after, although it can do
without either: it writes dvc.lock anew, and takes results it already has from its cache.

And it needs a cache that is what it was, which DVC believes without looking. A file that has
changed, by a flipped bit, would be restored and used; without it, DVC makes it again, or pulls it.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.lock import LockError, make_lock
from dvc.repo import Repo
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils.serialize import ParseError
from dvc.utils.strictyaml import YAMLValidationError, load

from stages.pipeline.command import InputError, Parser, run

LOCK = Path("dvc.lock")
TEMPORARY = Path(".dvc/tmp")


def main() -> None:
    """Repair, unless a DVC is at work and may be writing."""
    Parser(prog="python -m tools.repair_dvc", description=__doc__).parse_args()
    try:
        cache = cache_folder()
        with make_lock(TEMPORARY / "lock"), make_lock(TEMPORARY / "rwlock.lock"):
            repair(cache)
    except LockError:
        return  # which DVC itself will say, better
    except DvcException as error:
        raise InputError(" ".join(str(error).split())) from None


def cache_folder() -> Path:
    """Return where the cache's files are: `dvc cache dir` may have set another place."""
    with Repo() as repo:
        return Path(repo.cache.local.path)


def repair(cache: Path) -> None:
    """Remove the half-written and the changed files.

    Raises:
        InputError: there is a folder or a pipe where a file must be, which no DVC has made.
    """
    rwlock = TEMPORARY / "rwlock"
    try:
        if _is_file(rwlock):
            json.loads(rwlock.read_bytes())
    except (ValueError, RecursionError):
        _remove(rwlock, "half-written")
    try:
        if _is_file(LOCK):
            load(str(LOCK), COMPILED_LOCKFILE_SCHEMA, localfs)
    except (ParseError, YAMLValidationError, RecursionError):
        _remove(LOCK, "half-written")
    shared = not cache.is_relative_to(Path.cwd())
    for path in cache.glob("??/*"):
        # The list of a folder's files has a suffix that is no part of its hash.
        expected = path.parent.name + path.name.removesuffix(".dir")
        if shared and not re.fullmatch("[0-9a-f]{32}", expected):
            continue  # what another project's DVC may be writing
        if path.is_dir():
            _refuse(path)
        if not path.is_file() or _md5(path) != expected:
            _remove(path, "changed since it was written")


def _is_file(path: Path) -> bool:
    """Say whether there is a file, not waiting for what could be read from a pipe."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        _refuse(path)
    return True


def _refuse(path: Path) -> None:
    raise InputError(f"{path}: must be a regular file, and no DVC has made it: remove it")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _remove(path: Path, reason: str) -> None:
    path.unlink(missing_ok=True)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    print(f"{shown}: {reason}: removed, DVC gets it anew")


if __name__ == "__main__":
    run(main)
