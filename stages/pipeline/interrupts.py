"""Ctrl-C: one line and exit status 130, whenever it comes and however often.

The first module that a stage loads, and it imports next to nothing: until it is loaded, which takes
Python some hundredths of a second, Ctrl-C is answered by Python's own traceback.
"""

import atexit
import os
import signal
import sys

INTERRUPTED = "interrupted: every file on disk is whole, and 'dvc repro' resumes"

_received: list[int] = []


def _nothing(signal_number: int, frame: object) -> None:
    """Ignore a Ctrl-C.

    With `SIG_IGN` instead, Python prints a traceback for one that came just before that was set.
    """


def end_at_once(signal_number: int, frame: object) -> None:
    """Say the line and end the process, without anything that could raise or wait.

    While a stage is imported, a library could take an exception for its own; after the first Ctrl-C
    an exception could end what cleans up. No file is half-written at any moment.
    """
    signal.signal(signal.SIGINT, _nothing)
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # Python is importing this package to run `python -m stages.<name>`
    signal.signal(signal.SIGINT, end_at_once)
    # Registered first, it runs last: then Python puts its handlers away, and Ctrl-C would kill a
    # process that has done its work.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def interrupt(signal_number: int, frame: object) -> None:
    """Raise KeyboardInterrupt the first time, and end the process the next.

    Raises:
        KeyboardInterrupt: there was no Ctrl-C before.
    """
    if _received:
        end_at_once(signal_number, frame)
    _received.append(signal_number)
    raise KeyboardInterrupt


def raise_lost_interrupt() -> None:
    """Raise the KeyboardInterrupt of an earlier Ctrl-C that ended nothing, if there was one.

    Python only reports what is raised while it runs a callback, such as a weak reference's.
    """
    if _received:
        raise KeyboardInterrupt


def forget() -> None:
    """Count from none again: what was interrupted has ended."""
    _received.clear()
