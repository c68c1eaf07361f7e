"""Which code a process runs, so that a study takes no worker's bytes that are not its own."""

from __future__ import annotations

import subprocess

from stages.pipeline.command import InputError

CODE = ("stages", "tools", "requirements.lock")
"""What decides a worker's results: it gets parameters and images from the study."""


def revision() -> str:
    """Return the commit of the clone in the working directory.

    Raises:
        InputError: it is no clone, or its code or its lock file differs from the commit.
    """
    commit = _git("rev-parse", "HEAD").strip()
    changed = _git("status", "--porcelain", "-z", "--no-renames", "--", *CODE).split("\0")[0]
    if changed:
        raise InputError(
            f"{changed[3:]}: differs from commit {commit[:12]}: seeds are shared out only between "
            "clones of one commit; commit it, or 'git stash' it"
        )
    return commit


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)  # noqa: S603, S607
    except FileNotFoundError:
        raise InputError("git: not installed; a worker must tell its commit") from None
    if done.returncode != 0:
        line = (done.stderr.strip().splitlines() or ["failed"])[-1]
        raise InputError(f"git {arguments[0]}: {line}; a worker runs in a clone")
    return done.stdout
