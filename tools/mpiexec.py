"""`make train RANKS=4`: start a training over MPI, and say in one line what went wrong."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

from stages.pipeline.command import INTERRUPTED, InputError, Parser, run

MOST_RANKS = 1024
PATIENCE = 5.0  # seconds

# What MPICH's mpiexec adds to the ranks' own words.
CHATTER = re.compile(
    r"$|=+$|=   |\[(mpiexec|proxy)|Abort\(|YOUR APPLICATION|This typically|Please see the FAQ"
)


def main() -> None:
    """Train over MPI."""
    parser = Parser(prog="python -m tools.mpiexec", description=__doc__)
    parser.add_argument("ranks", help="how many processes")
    parser.add_argument("hosts", nargs="?", default="", help="file with a line `host:ranks` each")
    arguments = parser.parse_args()
    ranks, hosts = arguments.ranks, arguments.hosts
    if not (ranks.isdecimal() and 1 <= int(ranks) <= MOST_RANKS):
        raise InputError(f"RANKS: {ranks}: must be a whole number from 1 to {MOST_RANKS}")
    if hosts and not Path(hosts).is_file():
        raise InputError(f"HOSTS: {hosts}: no such file; must have a line 'host:ranks' each")
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        raise InputError(f"{mpiexec}: not installed; 'make .venv/.mpi' installs it")
    command = [str(mpiexec), "-n", ranks, *(["-f", hosts] if hosts else [])]
    start([*command, sys.executable, "-m", "tools.mpi"])


def start(command: list[str]) -> None:
    """Run mpiexec and exit as it does, with the ranks' errors and none of its own words.

    Raises:
        InputError: a rank was killed, or mpiexec failed.
    """
    words: list[str] = []
    # In a session of its own: Ctrl-C reaches the ranks once, through mpiexec.
    with subprocess.Popen(  # noqa: S603 (our own command)
        command, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    ) as process:
        assert process.stderr is not None
        said = False
        try:
            for line in process.stderr:
                words.append(line)
                if not CHATTER.match(line):
                    print(line, end="", file=sys.stderr, flush=True)
                    said = True
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            print(INTERRUPTED, file=sys.stderr)
            sys.exit(130)
    if process.returncode and not said:
        raise InputError(reason("".join(words), process.returncode))
    sys.exit(process.returncode)


def reason(words: str, code: int) -> str:
    """Return why mpiexec failed, from what it said."""
    place = re.search(r"PID (\d+) RUNNING AT (\S+)", words)
    end = re.search(r"EXIT STRING: (.+)", words)
    if place and end:
        return (
            f"rank lost: process {place[1]} on host {place[2]}: {end[1]}; "
            "all others were ended: run it again to go on from the checkpoint"
        )
    last = words.strip().splitlines()[-1:] or [f"it exited with {code}"]
    return f"mpiexec: {last[0]}"


if __name__ == "__main__":
    run(main)
