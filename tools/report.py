"""Write reports/report.html: two revisions side by side, on one page that needs no network.

A revision is all that DVC takes for one: a commit, a branch, a tag or an experiment. Without a
second one, the first is compared with the workspace; without any, HEAD is.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from html import escape
from operator import itemgetter
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import numpy as np
import yaml
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import resolve_rev
from matplotlib.figure import Figure

from stages.core.metrics import confusion_matrix
from stages.core.network import Layer
from stages.pipeline.command import InputError, Parser, run
from stages.pipeline.datasets import DESCRIPTION, MNIST, Description, parse_description
from stages.pipeline.files import atomic_write, check_regular
from stages.pipeline.model_file import MODEL, load_model
from stages.pipeline.params import PARAMS, validated
from stages.pipeline.schemas import (
    CONFUSION,
    CURVES,
    METRICS,
    PER_CLASS,
    Metrics,
    kept_epoch,
    parse_confusion,
    parse_curves,
    parse_metrics,
    parse_per_class,
)
from stages.plots import charts, figures, png
from stages.plots.drawing import render
from tools.study import load_studies, studied_parameters
from tools.verdict import Judged, verdict

REPORT = Path("reports/report.html")
TEMPLATE = Path(__file__).with_suffix(".html")
WORKSPACE = "workspace"
THE_WORKSPACE = "the workspace"  # as the page calls it
WEIGHTS = "reports/first_layer_weights.png"
# The page draws these anew, with both sides in one or on one scale.
REDRAWN = {"reports/learning_curves.png", "reports/confusion_matrix.png", WEIGHTS}
READ = (DESCRIPTION, METRICS, CURVES, CONFUSION, PER_CLASS, PARAMS, MODEL)

Parsed = TypeVar("Parsed")


class Side(NamedTuple):
    """One of the two that are compared.

    Attributes:
        name: on the page.
        about: which commit it is; "" for the workspace.
        revision: as DVC's diffs call it.
        files: each file's content, or why there is none.
    """

    name: str
    about: str
    revision: str
    files: dict[str, bytes | str]


class Section(NamedTuple):
    """A part of the page, and whether both sides are known to be the same in it."""

    heading: str
    content: str
    identical: bool


def main() -> None:
    """Compare the revisions that the command line names."""
    parser = Parser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("revision", nargs="*", help="one or two (default: HEAD)")
    revisions = " ".join(parser.parse_args().revision).split() or ["HEAD"]
    if len(revisions) == 1:
        revisions.append(WORKSPACE)
    if len(set(revisions)) != 2 or len(revisions) != 2:
        raise InputError(f"{' '.join(revisions)}: must be one revision, or two different ones")
    try:
        with Repo() as repo:
            text = page(repo, *revisions)
    except DvcException as error:
        raise InputError(_line(error)) from None
    with atomic_write(REPORT) as file:
        file.write(text.encode())
    print(REPORT)


def page(repo: Repo, old_revision: str, new_revision: str) -> str:
    """Return the whole page.

    Raises:
        InputError: DVC knows no such revision, or a side's dvc.yaml is damaged.
    """
    sides = old, new = read_side(repo, old_revision), read_side(repo, new_revision)
    sections = [
        parameters(repo.params.diff(a_rev=old.revision, b_rev=new.revision), sides),
        metrics(sides),
        learning_curves(sides),
        confusion_matrices(sides),
        per_class(sides),
        first_layer_weights(sides),
        *pictures(sides),
    ]
    judgement = "Identical: both sides have the same parameters, metrics, curves and pictures."
    if not all(section.identical for section in sections):
        judgement = verdict(judged(old), judged(new), load_studies())
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"From {old.name} to {new.name}"),
        about="<br>\n".join(escape(side.about) for side in sides if side.about),
        verdict=escape(judgement),
        sections="\n".join(
            f"<section>\n<h2>{section.heading}</h2>\n"
            + '<p class="identical">identical</p>\n' * section.identical
            + f"{section.content}</section>"
            for section in sections
        ),
    )


def read_side(repo: Repo, revision: str) -> Side:
    """Read what the page shows of a revision, or of the workspace.

    Raises:
        InputError: there is no such revision, or its dvc.yaml is damaged.
    """
    name, about, commit = THE_WORKSPACE, "", WORKSPACE
    if revision != WORKSPACE:
        try:
            found = repo.scm.resolve_commit(resolve_rev(repo.scm, revision))
        except (DvcException, AttributeError):  # DVC takes a folder's hash for a commit's
            raise InputError(
                f"{revision}: no such revision: must be a commit, a branch, a tag or an experiment"
            ) from None
        date = datetime.fromtimestamp(found.commit_time, UTC).date()
        subject = found.message.split("\n", 1)[0]
        name, commit = revision, found.hexsha
        about = f"{name} is commit {commit[:7]} of {date}: {subject}"
    with repo.switch(commit), closing(DVCFileSystem(repo=repo)) as files:
        try:
            outs = [out.def_path for stage in repo.index.stages for out in stage.outs]
        except DvcException as error:
            raise InputError(f"{name}: {_line(error)}") from None
        paths = [*map(str, READ), *(out for out in outs if out.endswith(".png"))]
        return Side(name, about, commit, {path: _content(files, path, name) for path in paths})


def _content(files: DVCFileSystem, path: str, name: str) -> bytes | str:
    try:
        if name == THE_WORKSPACE and Path(path).exists():
            check_regular(Path(path))
        content: bytes = files.read_bytes(path)
    except FileNotFoundError:
        return f"{path} is not in {name}."
    except (OSError, DvcException) as error:
        return f"{path} in {name} cannot be read: {_line(error)}."
    return content


def _line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join((reason or str(error) or type(error).__name__).split())


def judged(side: Side) -> Judged:
    """Return what the verdict needs of a side."""
    found, document = _parsed([side], METRICS, parse_metrics)[0], _document(side)
    try:
        studied = studied_parameters(validated(document, PARAMS))
    except InputError:
        studied = None
    on_validation = document["train"].get("include_validation") == "true"
    return Judged(found.get(side.name), studied, on_validation)


def _document(side: Side) -> dict[str, Any]:
    """Return a side's params.yaml, every scalar as text; what cannot be read of it is empty.

    Its `train` section is a mapping, whatever it holds.
    """
    content = side.files[str(PARAMS)]
    try:
        document = yaml.load(content, Loader=yaml.BaseLoader) if content[:1] else None  # noqa: S506
    except (yaml.YAMLError, ValueError):
        document = None
    document = document if isinstance(document, dict) else {}
    train = document.get("train")
    return document | {"train": train if isinstance(train, dict) else {}}


def described(side: Side) -> Description:
    """Return what a side's data set is: MNIST where it does not say, as in older commits."""
    return _parsed([side], DESCRIPTION, parse_description)[0].get(side.name, MNIST)


def parameters(diff: Mapping[str, Any], sides: Sequence[Side]) -> Section:
    """Return a table of what DVC's diff of the parameters holds."""
    notes = ""
    for revision, found in diff.get("errors", {}).items():
        name = next(side.name for side in sides if side.revision == revision)
        for path, error in found.items() if isinstance(found, dict) else [("dvc.yaml", found)]:
            missing = isinstance(error, FileNotFoundError)
            problem = (
                f"is not in {name}." if missing else f"in {name} cannot be read: {_line(error)}."
            )
            notes += _note(f"{path} {problem}")
    changes = [
        [
            key,
            *(
                "\N{EN DASH}" if change[side] is None else str(change[side])
                for side in ("old", "new")
            ),
        ]
        for found in diff.get("diff", {}).values()
        for key, change in found.items()
    ]
    head = ["parameter", *(side.name for side in sides)]
    table = _table(head, sorted(changes, key=itemgetter(0))) if changes else ""
    return Section("Parameters that differ", notes + table, not (notes or changes))


def metrics(sides: Sequence[Side]) -> Section:
    """Return a table of each set's accuracy and loss on both sides."""
    found, notes = _parsed(sides, METRICS, parse_metrics)
    rows = []
    for name in Metrics.model_fields:
        for figure, factor, decimals in (("accuracy", 100, 2), ("loss", 1, 4)):
            values = [
                factor * getattr(getattr(found[side.name], name), figure)
                if side.name in found else None
                for side in sides
            ]  # fmt: skip
            unit = ", %" if factor == 100 else ""
            rows.append([f"{name} {figure}{unit}", *_compared(values, decimals)])
    identical = _identical(found)
    head, rows = _once(["metric", *_columns(sides)], rows, identical)
    return Section("Metrics", notes + (_table(head, rows) if found else ""), identical)


def learning_curves(sides: Sequence[Side]) -> Section:
    """Return a chart of the losses and one of the errors, each with both sides' curves."""
    found, notes = _parsed(sides, CURVES, parse_curves)
    identical = _identical({name: np.array(curves).tolist() for name, curves in found.items()})
    runs = []
    for side in sides:
        if side.name in found:
            curves, keep = found[side.name], _document(side)["train"].get("keep")
            runs.append(
                charts.Run(
                    "" if identical else side.name,
                    curves.train_loss,
                    curves.validation_loss,
                    curves.validation_accuracy,
                    kept_epoch(curves, keep) if keep in ("best", "last") else None,
                )
            )
    if not runs:
        return Section("Learning curves", notes, identical=False)
    if identical:
        runs = runs[:1]
    names = " and ".join(found)
    images = _image(f"Loss over the epochs: {names}", _encoded(charts.loss_chart(runs)))
    images += _image(
        f"Validation error over the epochs: {names}", _encoded(charts.error_chart(runs))
    )
    return Section("Learning curves", notes + _pair(images), identical)


def confusion_matrices(sides: Sequence[Side]) -> Section:
    """Return each side's matrix, both with the same shades."""
    found, notes = _parsed(sides, CONFUSION, parse_confusion)
    names, counts = {}, {}
    for side in sides:
        if both := found.get(side.name):
            names[side.name] = described(side).classes
            classes = max(len(names[side.name]), int(np.max(both)) + 1)
            if classes > len(names[side.name]):
                names[side.name] = tuple(map(str, range(classes)))
            counts[side.name] = confusion_matrix(*both, classes)
    darkest = max((figures.mistaken(count).max() for count in counts.values()), default=0.0)
    identical = _identical({name: count.tolist() for name, count in counts.items()})
    images = ""
    for name, count in list(counts.items())[: 1 if identical else 2]:
        wrong = f"{count.sum() - count.trace()} of {count.sum()} wrong"
        figure = figures.confusion_matrix(count, names[name], darkest)
        images += _image(f"{name}: {wrong}", _encoded(figure), "" if identical else name)
    return Section("Confusion matrices", notes + _pair(images), identical)


def per_class(sides: Sequence[Side]) -> Section:
    """Return a table of each class's figures on both sides and their differences."""
    found, notes = _parsed(sides, PER_CLASS, parse_per_class)
    names = [described(side).classes for side in sides if side.name in found]
    titles, rows = {"precision": "precision", "recall": "recall", "f1": "F1"}, []
    for label in range(max((len(table.label) for table in found.values()), default=0)):
        row = [" / ".join(dict.fromkeys(n[label] for n in names if label < len(n))) or str(label)]
        for figure in titles:
            columns = [getattr(found.get(side.name), figure, ()) for side in sides]
            row += _compared([100 * c[label] if label < len(c) else None for c in columns], 2)
        rows.append(row)
    identical = _identical({name: np.array(table).tolist() for name, table in found.items()})
    head, rows = _once(["class", *_columns(sides) * 3], rows, identical)
    table = _table(head, rows, groups=list(titles.values())) if rows else ""
    return Section("Each class, in percent", notes + table, identical)


def first_layer_weights(sides: Sequence[Side]) -> Section:
    """Return each side's weights on one scale; the pictures as they are if a model is missing."""
    found: dict[str, Layer] = {}
    shapes: dict[str, tuple[int, int]] = {}
    notes = ""
    for side in sides:
        description = described(side)
        layers, words = _parsed([side], MODEL, partial(_first_layer, description))
        found |= layers
        notes += words
        shapes[side.name] = description.shape
    if len(found) < 2:
        section = _picture(WEIGHTS, sides)
        notes += _note("Each picture has a scale of its own.")
        return section._replace(content=notes + section.content)
    identical = all(np.array_equal(*pair) for pair in zip(*found.values(), strict=True))
    limit = max(figures.weight_limit(layer.W) for layer in found.values())
    images = ""
    for name, layer in list(found.items())[: 1 if identical else 2]:
        figure = figures.first_layer_weights(layer.W, shapes[name], limit)
        images += _image(
            f"First layer weights: {name}", _encoded(figure), "" if identical else name
        )
    return Section("First layer weights", notes + _pair(images), identical)


def _first_layer(description: Description, content: bytes, name: object) -> Layer:
    with TemporaryDirectory() as folder:
        path = Path(folder) / MODEL.name
        path.write_bytes(content)
        try:
            return load_model(path, description.pixels, len(description.classes))[0]
        except InputError as error:
            raise InputError(str(error).replace(str(path), str(name))) from None


def pictures(sides: Sequence[Side]) -> list[Section]:
    """Return a section for each picture that the pipeline draws and the page does not."""
    paths = {path for side in sides for path in side.files if path.endswith(".png")}
    return [_picture(path, sides) for path in sorted(paths - REDRAWN)]


def _picture(path: str, sides: Sequence[Side]) -> Section:
    title = Path(path).stem.replace("_", " ").capitalize()
    found, notes = _parsed(sides, path, lambda content, _: content)
    identical = _identical(found)
    images = "".join(
        _image(f"{title}: {name}", content, "" if identical else name)
        for name, content in list(found.items())[: 1 if identical else 2]
    )
    return Section(title, notes + _pair(images), identical)


def _parsed(
    sides: Sequence[Side], path: Path | str, parse: Callable[[bytes, object], Parsed]
) -> tuple[dict[str, Parsed], str]:
    """Parse a file of each side.

    Returns:
        What it holds under each side's name, where it could be read; and notes that say where not.
    """
    found, notes = {}, ""
    for side in sides:
        content = side.files.get(str(path), f"{path} is not in {side.name}.")
        try:
            if isinstance(content, str):
                raise InputError(content)
            found[side.name] = parse(content, f"{path} in {side.name}")
        except InputError as error:
            notes += _note(str(error))
    return found, notes


def _identical(found: Mapping[str, object]) -> bool:
    """Return whether both sides are there and equal."""
    contents = list(found.values())
    return len(contents) == 2 and contents[0] == contents[1]


def _encoded(figure: Figure) -> bytes:
    return png.encode(render(figure))


def _image(description: str, content: bytes, caption: str = "") -> str:
    """Return a PNG file's picture; on narrow screens a wide one is scrolled sideways."""
    data, words = base64.b64encode(content).decode(), escape(description)
    width = int.from_bytes(content[16:20])  # as the format has it
    kind = ' class="wide"' if width > 1400 else ""
    title = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    return f'<figure{kind}>{title}<img src="data:image/png;base64,{data}" alt="{words}"></figure>\n'


def _pair(images: str) -> str:
    return f'<div class="pair">\n{images}</div>\n' if images else ""


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>\n'


def _columns(sides: Sequence[Side]) -> list[str]:
    return [*(side.name for side in sides), "difference"]


def _compared(values: Sequence[float | None], decimals: int) -> list[str]:
    """Return both values and their difference as text."""
    cells = ["\N{EN DASH}" if value is None else f"{value:.{decimals}f}" for value in values]
    old, new = values
    if old is None or new is None:
        return [*cells, ""]
    difference = f"{new - old:+.{decimals}f}"
    return [*cells, difference.replace("-", "\N{MINUS SIGN}") if float(difference) else "0"]


def _once(
    head: list[str], rows: list[list[str]], identical: bool
) -> tuple[list[str], list[list[str]]]:
    """Return a table's head and rows, with one column of three if both sides are identical."""
    if not identical:
        return head, rows
    short = [[row[0], *row[1::3]] for row in [head, *rows]]
    return [short[0][0], *["both"] * (len(short[0]) - 1)], short[1:]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], groups: Sequence[str] = ()) -> str:
    """Return a table whose first column names the rows; the groups divide the others."""
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
        + f"<tr>{columns}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


if __name__ == "__main__":
    run(main)
