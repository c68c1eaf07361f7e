"""How a stage runs: one instance at a time, and with one clear line if its input is bad."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NoReturn

from stages.pipeline import interrupts, under_dvc

if sys.platform != "win32":
    import fcntl

LOCKS = Path(".dvc/tmp")  # which Git and DVC ignore
PATIENCE = 3.0  # seconds


class InputError(Exception):
    """Something the user gave is wrong, or the machine lacks something.

    The message is one line: the file, the key or the source, what was found, what is allowed.
    """


class Parser(argparse.ArgumentParser):
    """A parser of the command line whose refusal is an `InputError`, one line like every other."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise InputError(f"{self.prog}: {message}; --help says what is allowed")


def whole_number(name: str, text: str, most: int) -> int:
    """Return the whole number, from 1 to `most`, that a variable or a command line holds.

    Raises:
        InputError: it holds something else.
    """
    if re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= most:
        return int(text)
    raise InputError(f"{name}: {text}: must be a whole number from 1 to {most}")


def run(main: Callable[[], None], *, no_arguments: bool = False, single: bool = True) -> None:
    """Run a script's `main` and exit with 0, or with 1 and one line for a bad input.

    With `no_arguments`, as for a stage, the command line may only ask for help. Unless `single`,
    several instances may run in this folder.

    A full disk, a missing permission or too little memory is the user's to repair as well, so an
    `OSError` or a `MemoryError` is reported in the same way. Ctrl-C exits with 130, as shells
    expect.
    """
    with _one_line_on_interrupt():
        try:
            _run(main, no_arguments, single)
        except InputError as error:
            sys.exit(printable(f"error: {error}"))
        except OSError as error:
            reason = error.strerror or error
            sys.exit(printable(f"error: {error.filename or 'system'}: {reason}"))
        except MemoryError as error:
            reason = str(error) or "none is left"
            sys.exit(printable(f"error: system: not enough memory: {reason}"))


@contextmanager
def _one_line_on_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, interrupts.interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if before is interrupts.end_at_once:  # this is a script's process, so nothing need go on
            interrupts.end_at_once(signal.SIGINT, None)
        print(interrupts.INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    finally:
        interrupts.forget()
        signal.signal(signal.SIGINT, before)


def _run(main: Callable[[], None], no_arguments: bool, single: bool) -> None:
    name = Path(inspect.getfile(main)).stem
    if no_arguments:
        about = (sys.modules[main.__module__].__doc__ or "").partition("\n\n")[0]
        epilog = "Its parameters are in params.yaml, and 'dvc repro' runs it when it is due."
        Parser(prog=f"python -m stages.{name}", description=about, epilog=epilog).parse_args()
        if under_dvc.loses_its_result():
            raise InputError(
                "Git: a shallow clone, in which DVC loses the results of --temp and of the queue: "
                "'git fetch --unshallow' first, or run the experiment without them"
            )
    with single_instance(name) if single else nullcontext():
        main()


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once: while nothing is written, and threads cannot be stopped.

    Outside the main thread, which alone can say so, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, interrupts.end_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
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
