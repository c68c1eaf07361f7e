"""Push or pull through DVC's default remote: the run in the workspace and the run cache.

`dvc push --run-cache` pushes the list of results alone, not the files it names, so a colleague's
`dvc repro` would run again what somebody has tried but not committed.
"""

from __future__ import annotations

import sys

from dvc.cli import main as dvc
from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.pipeline.command import InputError, Parser, run


def main() -> None:
    """Push or pull, as the command line says."""
    parser = Parser(prog="python -m tools.share", description=__doc__)
    parser.add_argument("action", choices=["push", "pull"])
    action = parser.parse_args().action
    if status := dvc([action]):
        sys.exit(status)
    try:
        with Repo() as repo, repo.lock:
            runs = getattr(repo.stage_cache, action)(None)
            files = set().union(*repo.stage_cache.get_used_objs(runs).values())
            moved, failed = getattr(repo.cloud, action)(files)
    except DvcException as error:
        raise InputError(" ".join(str(error).split())) from None
    if failed:
        raise InputError(
            f"run cache: {len(failed)} of {len(moved) + len(failed)} files were not {action}ed: "
            "see above, then try again"
        )
    print(f"run cache: {len(runs)} results, {len(moved)} files {action}ed")


if __name__ == "__main__":
    run(main)
