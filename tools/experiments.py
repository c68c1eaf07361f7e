"""List the experiments on the current commit, the most accurate on the validation set first.

`dvc exp show` has a column for every parameter and metric, hundreds once recipes have run, and
shows a running experiment with the metrics of the commit it started from.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stages.pipeline.command import InputError, Parser, run
from stages.pipeline.params import PARAMS
from stages.pipeline.schemas import METRICS, parse_metrics
from tools.recipe import leaves

WIDTH = 100
"""Characters of a line."""


class Row(NamedTuple):
    """An experiment: its name, its accuracies or its state, and the parameters it changed."""

    name: str
    validation: float | None
    test: float | None
    state: str
    changes: list[str]


def main() -> None:
    """Print the table.

    Raises:
        InputError: DVC cannot list the experiments.
    """
    Parser(prog="python -m tools.experiments", description=__doc__).parse_args()
    shown = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--json"], capture_output=True, text=True
    )
    if shown.returncode:
        raise InputError(f"DVC: {' '.join(shown.stderr.split())}")
    print(table(rows(json.loads(shown.stdout))))


def rows(document: list[dict[str, Any]]) -> list[Row]:
    """Return the experiments that `dvc exp show --json` lists after the commit's own row."""
    commit = document[-1]
    found = [_row("(this commit)", commit, {}, "")]
    before = _parameters(commit)
    for experiment in commit["experiments"] or []:
        state = (experiment["executor"] or {}).get("state", "")
        newest = experiment["revs"][0]
        name = experiment["name"] or newest["rev"][:7]
        found.append(_row(name, newest, before, "" if state == "success" else state))
    return sorted(found, key=lambda row: (row.validation is None, -(row.validation or 0.0)))


def _row(name: str, revision: Mapping[str, Any], before: Mapping[str, Any], state: str) -> Row:
    after = _parameters(revision)
    changes = [f"{key}={value}" for key, value in after.items() if before.get(key, value) != value]
    if revision.get("error"):
        state = state or "failed"
    metrics = ((revision["data"] or {}).get("metrics") or {}).get(str(METRICS)) or {}
    try:
        found = parse_metrics(json.dumps(metrics.get("data")).encode(), METRICS)
    except InputError:
        state = state or "no result"
    if state:
        return Row(name, None, None, state, changes)
    return Row(name, found.validation.accuracy, found.test.accuracy, "", changes)


def _parameters(revision: Mapping[str, Any]) -> dict[str, Any]:
    files = (revision["data"] or {}).get("params") or {}
    return dict(leaves((files.get(str(PARAMS)) or {}).get("data") or {}))


def table(found: list[Row]) -> str:
    """Return the rows as lines that fit a terminal, under a heading."""
    wide = max(len(row.name) for row in found)
    lines = [f"{'experiment':{max(wide, 10)}}  validation    test  changes"]
    for row in found:
        if row.validation is None or row.test is None:
            figures = f"{row.state:18}"
        else:
            figures = f"{row.validation:10.2%}  {row.test:6.2%}"
        start = f"{row.name:{max(wide, 10)}}  {figures}  "
        lines.append((start + _shortened(row.changes, WIDTH - len(start))).rstrip())
    return "\n".join(lines)


def _shortened(changes: list[str], room: int) -> str:
    """Return as many changes as there is room for, and how many there are besides."""

    def texts() -> Iterator[str]:
        yield " ".join(changes)
        for kept in reversed(range(1, len(changes))):
            yield f"{' '.join(changes[:kept])} and {len(changes) - kept} more"

    fitting = (text for text in texts() if len(text) <= room)
    return next(fitting, f"{len(changes)} parameters" if changes else "")


if __name__ == "__main__":
    run(main, single=False)
