"""What a stage asks about the DVC that started it: which experiment, and whether it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

Process = tuple[int, str]
"""A process: its number, and when it started, since numbers are used again."""


def in_another_folder() -> bool:
    """Say whether this is an experiment that DVC runs in a copy: `exp run --temp` or the queue."""
    root = os.environ.get("DVC_ROOT")
    return (
        "DVC_EXP_NAME" in os.environ
        and root is not None
        and Path(root).resolve() != Path.cwd().resolve()
    )


def loses_its_result() -> bool:
    """Say whether DVC will lose this experiment's result without a word.

    In a copy of the project DVC commits the result on top of the last commit, and a shallow clone
    cannot take the new commit over.
    """
    if not in_another_folder():
        return False
    command = ["git", "-C", os.environ["DVC_ROOT"], "rev-parse", "--is-shallow-repository"]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
    return done.stdout.strip() == "true"


def ancestors() -> list[Process]:
    """Return DVC's processes above this one, from the closest; none where DVC did not start it.

    Linux tells all of them, the queue's worker too; elsewhere only the parent is known.
    """
    if "DVC_STAGE" not in os.environ:
        return []
    if sys.platform != "linux":
        return [(os.getppid(), "")]
    found: list[Process] = []
    number = os.getppid()
    while number > 1 and (process := _process(number)):
        found.append(process)
        number = _parent(number)
    of_dvc = [i for i, (number, _) in enumerate(found) if _runs_dvc(number)]
    return found[: of_dvc[-1] + 1] if of_dvc else found[:1]


def ended(before: list[Process]) -> list[int]:
    """Return which of the processes that `ancestors` returned have ended."""
    if sys.platform == "linux":
        return [number for number, start in before if _process(number) != (number, start)]
    return [number for number, _ in before if os.getppid() != number]


def _status(number: int) -> list[str]:
    """Return what Linux tells of a process: its state, its parent, ... (`man 5 proc`)."""
    try:
        text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _process(number: int) -> Process | None:
    """Return a process, none if it has ended, also if nobody has asked for its status yet."""
    status = _status(number)
    return (number, status[19]) if status and status[0] not in "ZX" else None


def _parent(number: int) -> int:
    status = _status(number)
    return int(status[1]) if status else 0


def _runs_dvc(number: int) -> bool:
    """Say whether a process is a DVC that waits for the stage; `dvc queue start` need not."""
    try:
        arguments = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"queue" not in arguments and any(part.endswith(b"dvc") for part in arguments[:3])
