"""How a stage runs: one instance at a time, and with one clear line if its input is bad."""

from __future__ import annotations

import argparse
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import NoReturn

if sys.platform != "win32":
    import fcntl

LOCKS = Path(".dvc/tmp")  # which Git and DVC ignore
PATIENCE = 3.0  # seconds
INTERRUPTED = "interrupted: every file on disk is whole, and 'dvc repro' goes on from here"


class InputError(Exception):
    """Something the user gave is wrong, or the machine lacks something.

    The message is one line: the file, the key or the source, what was found, what is allowed.
    """


class Parser(argparse.ArgumentParser):
    """A parser of the command line whose refusal is an `InputError`, one line like every other."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise InputError(f"{self.prog}: {message}; --help says what is allowed")


def run(main: Callable[[], None], *, no_arguments: bool = False, single: bool = True) -> None:
    """Run a script's `main` and exit with 0, or with 1 and one line for a bad input.

    With `no_arguments`, as for a stage, the command line may only ask for help. Unless `single`,
    several instances may run in this folder.

    A full disk, a missing permission or too little memory is the user's to repair as well, so an
    `OSError` or a `MemoryError` is reported in the same way. Ctrl-C exits with 130, as shells
    expect.
    """
    signal.signal(signal.SIGINT, _interrupt)
    name = Path(inspect.getfile(main)).stem
    try:
        if no_arguments:
            about = (sys.modules[main.__module__].__doc__ or "").partition("\n\n")[0]
            epilog = "Its parameters are in params.yaml, and 'dvc repro' runs it when it is due."
            Parser(prog=f"python -m stages.{name}", description=about, epilog=epilog).parse_args()
        with single_instance(name) if single else nullcontext():
            main()
    except InputError as error:
        sys.exit(_one_line(f"error: {error}"))
    except OSError as error:
        sys.exit(_one_line(f"error: {error.filename or 'system'}: {error.strerror or error}"))
    except MemoryError as error:
        sys.exit(_one_line(f"error: system: not enough memory: {error or 'none is left'}"))
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)


_lost_interrupts: list[int] = []


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    _lost_interrupts.append(signal_number)
    raise KeyboardInterrupt


def raise_lost_interrupt() -> None:
    """Raise the KeyboardInterrupt of an earlier Ctrl-C that ended nothing, if there was one.

    Python only reports what is raised while it runs a callback, such as a weak reference's.
    """
    if _lost_interrupts:
        _lost_interrupts.clear()
        raise KeyboardInterrupt


def _end_at_once(signal_number: int, frame: FrameType | None) -> None:
    """Answer Ctrl-C while a stage is imported, when a library could take an exception for its own.

    Nothing has been written yet.
    """
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # Python is importing this package to run `python -m stages.<name>`
    signal.signal(signal.SIGINT, _end_at_once)


def _one_line(text: str) -> str:
    """Escape what would break a line or command a terminal: a damaged file may hold any name."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextmanager
def single_instance(stage: str) -> Iterator[None]:
    """Hold the lock of the named stage in this folder, so that no other instance writes its files.

    When DVC is killed, the stage that it started runs on, and the next `dvc repro` starts another.
    The lock is the operating system's and ends with the process, however it ends: no file needs to
    be removed. A wait of `PATIENCE` covers a process that is just ending. Windows has no such lock.

    Raises:
        InputError: another instance is at work and does not end; the message names its process.
    """
    if sys.platform == "win32":
        yield
        return
    LOCKS.mkdir(parents=True, exist_ok=True)
    with (LOCKS / f"{stage}.lock").open("a+") as file:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise InputError(
                        f"{stage}: already at work in this folder, as process {file.read()}; "
                        "let it end or stop it, then try again"
                    ) from None
                time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
