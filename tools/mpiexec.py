"""`make train RANKS=4`: start a training over MPI, and say in one line what went wrong."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, TextIO

from stages.pipeline.command import InputError, Parser, run, whole_number
from stages.pipeline.interrupts import INTERRUPTED

MOST_RANKS = 1024
PATIENCE = 5.0  # seconds

# What MPICH's mpiexec adds to the ranks' own words, and what each rank may say to Ctrl-C.
CHATTER = re.compile(
    rf"({re.escape(INTERRUPTED)})?$|=+$|=   |\[(mpiexec|proxy)|Abort\(|YOUR APPLICATION"
    "|This typically|Please see the FAQ"
)


def main() -> None:
    """Train over MPI."""
    parser = Parser(prog="python -m tools.mpiexec", description=__doc__)
    parser.add_argument("ranks", help="how many processes")
    parser.add_argument("hosts", nargs="?", default="", help="a file of `host:ranks` lines")
    arguments = parser.parse_args()
    ranks, hosts = whole_number("RANKS", arguments.ranks, MOST_RANKS), arguments.hosts
    if hosts and not Path(hosts).is_file():
        raise InputError(f"HOSTS: {hosts}: no such file; must have 'host:ranks' lines")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        raise InputError(f"{mpiexec}: not installed; 'make .venv/.mpi' installs it")
    command = [str(mpiexec), "-n", str(ranks), *(["-f", hosts] if hosts else [])]
    start([*command, sys.executable, "-m", "tools.mpi"])


def start(command: list[str]) -> None:
    """Run mpiexec and exit as it does, passing on what the ranks say and none of its own words.

    Raises:
        InputError: a rank was killed, or mpiexec failed.
    """
    with (
        # In a session of its own: Ctrl-C reaches the ranks once, through mpiexec.
        subprocess.Popen(  # noqa: S603 (our own command)
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process,
        ThreadPoolExecutor() as pool,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        spoken = pool.submit(pass_on, process.stdout, sys.stdout)
        errors = pool.submit(pass_on, process.stderr, sys.stderr)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            print(INTERRUPTED, file=sys.stderr)
            sys.exit(130)
    if code and not errors.result().passed_on:
        raise InputError(reason(spoken.result().chatter + errors.result().chatter, code))
    sys.exit(code)


class Words(NamedTuple):
    """What came over a stream: mpiexec's own lines, and whether there were others."""

    chatter: str
    passed_on: bool


def pass_on(source: IO[str], target: TextIO) -> Words:
    """Copy a stream's lines, but for those of mpiexec."""
    chatter, passed_on = "", False
    for line in source:
        if CHATTER.match(line):
            chatter += line
        else:
            passed_on = True
            print(line, end="", file=target, flush=True)
    return Words(chatter, passed_on)


def reason(words: str, code: int) -> str:
    """Return why mpiexec failed, from what it said."""
    # Its process number and host may be those of a rank that mpiexec ended itself.
    if end := re.search(r"EXIT STRING: (.+)", words):
        return (
            f"a rank was lost: {end[1]}; mpiexec ended the others; "
            "run it again to resume from the last checkpoint"
        )
    last = words.strip().splitlines()[-1:] or [f"it exited with {code}"]
    return f"mpiexec: {last[0]}"


if __name__ == "__main__":
    run(main)
