"""Write reports/report.html: a revision beside the workspace, on one page that needs no network.

A revision is all that DVC takes for one: a commit, a branch, a tag or an experiment.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from html import escape
from operator import itemgetter
from pathlib import Path
from string import Template
from typing import Any, NamedTuple, TypeVar

import matplotlib
import numpy as np
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from stages.pipeline.command import InputError, run
from stages.pipeline.files import atomic_write

REPORT = Path("reports/report.html")
TEMPLATE = Path(__file__).with_suffix(".html")
CURVES = "reports/learning_curves.csv"
CONFUSION = "reports/confusion.csv"
PER_CLASS = "reports/per_class.csv"
PICTURES = "reports/*.png"
# The page has its own curves and its own confusion matrices.
REDRAWN = {"reports/learning_curves.png", "reports/confusion_matrix.png"}
COLOURS = ("#be5000", "#004488")
LEAST_LOSS = 1e-6  # the last digit of the table; a logarithm has no zero

Array = NDArray[np.float64]
Content = TypeVar("Content")


class Side(NamedTuple):
    """One of the two that are compared."""

    name: str
    files: DVCFileSystem


class NotShownError(Exception):
    """A file cannot be shown. The message is a sentence for the page."""


def main() -> None:
    """Compare the workspace with the revision that the command line names, or with HEAD."""
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("revision", nargs="?", default="HEAD", help="(default: HEAD)")
    revision = parser.parse_args().revision
    try:
        with closing(DVCFileSystem(rev=revision)) as old, closing(DVCFileSystem()) as new:
            text = page(Side(revision, old), Side("the workspace", new))
    except DvcException as error:
        raise InputError(_line(error)) from None
    with atomic_write(REPORT) as file:
        file.write(text.encode())
    print(REPORT)


def page(old: Side, new: Side) -> str:
    """Return the whole page.

    Raises:
        InputError: DVC knows no such revision, or a side's dvc.yaml is damaged.
    """
    try:
        commit = old.files.repo.scm.resolve_commit(old.files.repo.get_rev())
    except (DvcException, AttributeError):  # DVC takes a folder's hash for a commit's, and trips
        raise InputError(
            f"{old.name}: no such revision: must be a commit, a branch, a tag or an experiment"
        ) from None
    paths: set[str] = set()
    for side in (old, new):
        try:
            paths.update(side.files.glob(PICTURES))  # DVC reads dvc.yaml for a list of files
        except DvcException as error:
            raise InputError(f"{side.name}: {_line(error)}") from None
    date = datetime.fromtimestamp(commit.commit_time, UTC).date()
    subject = commit.message.split("\n", 1)[0]
    revisions = {"a_rev": commit.hexsha, "b_rev": "workspace"}
    repository, sides = new.files.repo, (old, new)
    sections = {
        "Parameters that differ": parameters(repository.params.diff(**revisions), sides),
        "Metrics": metrics(repository.metrics.diff(**revisions, all=True), sides),
        "Learning curves": learning_curves(sides),
        "Confusion matrices": confusion_matrices(sides),
        "Each digit, in percent": per_class(sides),
        "Pictures": pictures(sorted(paths - REDRAWN), sides),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"From {old.name} to the workspace"),
        about=escape(f"{old.name} is commit {commit.hexsha[:7]} of {date}: {subject}"),
        sections="\n".join(
            f"<section>\n<h2>{heading}</h2>\n{content}\n</section>"
            for heading, content in sections.items()
        ),
    )


def parameters(diff: Mapping[str, Any], sides: Sequence[Side]) -> str:
    """Return a table of what DVC's diff of the parameters holds."""
    rows = [[key, _value(old), _value(new)] for key, old, new in _changes(diff)]
    head = ["parameter", *(side.name for side in sides)]
    return _problems(diff, sides) + (_table(head, rows) if rows else "<p>None.</p>")


def metrics(diff: Mapping[str, Any], sides: Sequence[Side]) -> str:
    """Return a table of what DVC's diff of the metrics holds."""
    rows = [[key, *_three(old, new, 6)] for key, old, new in _changes(diff)]
    head = ["metric", *(side.name for side in sides), "difference"]
    return _problems(diff, sides) + (_table(head, rows) if rows else "")


def _changes(diff: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, old, new) for each key in DVC's diff, over all its files."""
    changes = [
        (key, change["old"], change["new"])
        for found in diff.get("diff", {}).values()
        for key, change in found.items()
    ]
    return sorted(changes, key=itemgetter(0))


def _problems(diff: Mapping[str, Any], sides: Sequence[Side]) -> str:
    """Return a note for each file that DVC could not read."""
    notes = ""
    for revision, found in diff.get("errors", {}).items():
        name = sides[revision == "workspace"].name
        for path, error in found.items() if isinstance(found, dict) else [("dvc.yaml", found)]:
            notes += _note(_cannot(path, name, error))
    return notes


def learning_curves(sides: Sequence[Side]) -> str:
    """Return a drawing of the accuracies and one of the losses, each with both sides' curves."""
    found, notes = _read(
        sides, CURVES, "epoch", "validation_accuracy", "validation_loss", "train_loss"
    )
    accuracies, losses = [], []
    for side, colour in zip(sides, COLOURS, strict=True):
        if side.name in found:
            epochs, accuracy, validation, training = found[side.name]
            accuracies.append(_Curve(f"{side.name}, validation", colour, "solid", epochs, accuracy))
            losses += [
                _Curve(f"{side.name}, validation", colour, "solid", epochs, validation),
                _Curve(f"{side.name}, training", colour, "dashed", epochs, training),
            ]
    if not found:
        return notes
    return (
        f'{notes}<div class="pair">\n'
        f"{_drawing('accuracy', 'Accuracy over the epochs', accuracies, 'linear')}"
        f"{_drawing('loss', 'Loss (cross-entropy) over the epochs', losses, 'log')}</div>"
    )


class _Curve(NamedTuple):
    label: str
    colour: str
    line: str
    x: Array
    y: Array


def _drawing(name: str, title: str, curves: Sequence[_Curve], scale: str) -> str:
    """Return a figure with the curves; `name` keeps its ids apart from other drawings'."""
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        matplotlib.rcParams["svg.fonttype"] = "none"  # letters stay text
        matplotlib.rcParams["svg.hashsalt"] = "the same ids in every run"
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            axes.plot(
                curve.x,
                curve.y if scale == "linear" else curve.y.clip(LEAST_LOSS),
                color=curve.colour,
                linestyle=curve.line,
                marker="." if len(curve.x) == 1 else "",
                label=curve.label.replace("$", r"\$"),  # no formula
            )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yscale(scale)
        if scale == "log":
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        file = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=metadata)
    svg = file.getvalue()
    svg = re.sub(r'( id="|"#|url\(#)', rf"\g<1>{name}-", svg[svg.index("<svg ") :])
    label = escape(f"{title}: {'; '.join(curve.label for curve in curves)}")
    return (
        f"<figure><figcaption>{title}</figcaption>\n"
        f'<svg role="img" aria-label="{label}" {svg.removeprefix("<svg ")}</figure>\n'
    )


def confusion_matrices(sides: Sequence[Side]) -> str:
    """Return each side's table of counts, or one table if they are equal."""
    found, notes = _read(sides, CONFUSION, "actual", "predicted")
    if not found:
        return notes
    counts = _once({name: Counter(zip(*columns, strict=True)) for name, columns in found.items()})
    digits = sorted({digit for count in counts.values() for pair in count for digit in pair})
    most = max(n for count in counts.values() for n in [1, *_mistakes(count).values()])
    tables = "".join(_matrix(name, count, digits, most) for name, count in counts.items())
    return (
        f"{notes}<p>Rows are the true digits, columns the predicted ones.</p>\n"
        f'<div class="pair">\n{tables}</div>'
    )


def _mistakes(count: Counter[Any]) -> dict[Any, int]:
    return {
        (actual, predicted): n for (actual, predicted), n in count.items() if actual != predicted
    }


def _matrix(name: str, count: Counter[Any], digits: Sequence[float], most: int) -> str:
    """Return the table of how often (actual, predicted) occurs, mistakes in shades of red."""
    body = ""
    for actual in digits:
        body += f'<tr><th scope="row">{actual:g}</th>'
        for predicted in digits:
            n = count[actual, predicted]
            # The root shows rare mistakes beside common ones.
            look = f' style="background: rgb(204 0 0 / {60 * (n / most) ** 0.5:.0f}%)"'
            if actual == predicted:
                look = ' class="right"'
            elif n == 0:
                look = ' class="zero"'
            body += f"<td{look}>{n}</td>"
        body += "</tr>\n"
    wrong = sum(_mistakes(count).values())
    caption = escape(f"{name}: {wrong} of {count.total()} wrong")
    head = "".join(f'<th scope="col">{digit:g}</th>' for digit in digits)
    return (
        f'<table class="matrix"><caption>{caption}</caption>\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{body}</tbody></table>\n"
    )


def per_class(sides: Sequence[Side]) -> str:
    """Return a table of each digit's figures on both sides and their differences."""
    found, notes = _read(sides, PER_CLASS, "class", "precision", "recall", "f1")
    if not found:
        return notes
    old, new = (
        {digit: 100 * np.array(figures) for digit, *figures in found[side.name].T}
        if side.name in found
        else {}
        for side in sides
    )
    nothing = [None] * 3
    rows = []
    for digit in sorted({*old, *new}):
        pairs = zip(old.get(digit, nothing), new.get(digit, nothing), strict=True)
        rows.append([f"{digit:g}", *(cell for pair in pairs for cell in _three(*pair, 2))])
    head = ["digit", *[*(side.name for side in sides), "difference"] * 3]
    return notes + _table(head, rows, groups=["precision", "recall", "F1"])


def pictures(paths: Sequence[str], sides: Sequence[Side]) -> str:
    """Return each picture of each side, once if both have the same."""
    shown = ""
    for path in paths:
        title = Path(path).stem.replace("_", " ").capitalize()
        found: dict[str, bytes] = {}
        for side in sides:
            try:
                found[side.name] = _content(side, path)
            except NotShownError as error:
                shown += _note(str(error))
        figures = ""
        for name, content in _once(found).items():
            caption = escape(f"{title}: {name}")
            data = base64.b64encode(content).decode()
            figures += (
                f"<figure><figcaption>{caption}</figcaption>\n"
                f'<img src="data:image/png;base64,{data}" alt="{caption}"></figure>\n'
            )
        shown += f'<div class="pair">\n{figures}</div>\n'
    return shown


def _read(sides: Sequence[Side], path: str, *names: str) -> tuple[dict[str, Array], str]:
    """Read named columns of a table on both sides.

    Returns:
        The columns (names, rows) under each side's name, where they could be read; and notes
        that say where they could not.
    """
    found: dict[str, Array] = {}
    notes = ""
    for side in sides:
        try:
            text = io.StringIO(_content(side, path).decode())
            columns = np.array(
                [[float(row[name]) for name in names] for row in csv.DictReader(text)]
            )
            if not (columns.size and np.isfinite(columns).all()):
                raise ValueError
            found[side.name] = columns.T
        except NotShownError as error:
            notes += _note(str(error))
        except (csv.Error, KeyError, TypeError, ValueError):
            wanted = f"must hold finite numbers for {', '.join(names)} in each row"
            notes += _note(f"{path} in {side.name} is damaged: {wanted}.")
    return found, notes


def _content(side: Side, path: str) -> bytes:
    try:
        content: bytes = side.files.read_bytes(path)
    except OSError as error:
        raise NotShownError(_cannot(path, side.name, error)) from None
    return content


def _cannot(path: str, name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} is not in {name}."
    reason = error.strerror if isinstance(error, OSError) else _line(error)
    return f"{path} in {name} cannot be read: {reason or type(error).__name__}."


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _once(found: Mapping[str, Content]) -> dict[str, Content]:
    """Return what the sides hold, under both names at once if it is equal."""
    contents = list(found.values())
    if len(contents) == 2 and contents[0] == contents[1]:
        return {" and ".join(found): contents[0]}
    return dict(found)


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>\n'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], groups: Sequence[str] = ()) -> str:
    """Return a table whose first column names the rows; the groups share out the others."""
    span = (len(head) - 1) // max(len(groups), 1)
    above = "".join(f'<th scope="colgroup" colspan="{span}">{group}</th>' for group in groups)
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name).replace(".", ".<wbr>")}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for name, *cells in rows
    )
    return (
        '<div class="scroll"><table>\n<thead>'
        + (f"<tr><td></td>{above}</tr>\n" if groups else "")
        + f"<tr>{columns}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _value(value: Any, decimals: int | None = None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.{decimals}f}" if isinstance(value, float) and decimals else str(value)


def _three(old: Any, new: Any, decimals: int) -> list[str]:
    """Return both values and their difference as text."""
    difference = ""
    if isinstance(old, int | float) and isinstance(new, int | float):
        difference = f"{new - old:+.{decimals}f}"
        difference = difference.replace("-", "\N{MINUS SIGN}") if float(difference) else "0"
    return [_value(old, decimals), _value(new, decimals), difference]


if __name__ == "__main__":
    run(main)
