"""How a stage ends when its input is bad: one clear line, a non-zero exit, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class InputError(Exception):
    """Something the user gave is wrong, or the machine lacks something.

    The message is one line: the file, the key or the source, what was found, what is allowed.
    """


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main` and exit with 0, or with 1 and one line for a bad input.

    A full disk or a missing permission is the user's to mend as well, so an `OSError`
    is reported in the same way. Ctrl-C exits with 130, as shells expect.
    """
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or 'system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted: outputs already on disk are unchanged", file=sys.stderr)
        sys.exit(130)
