"""`make report` under real DVC and Git: what stands on the page, and the page in a browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder

import numpy as np
import pytest
from dvc.api import DVCFileSystem
from matplotlib.figure import Figure
from pydantic import TypeAdapter
from test_pipeline import dvc, git, new_project, run

from stages.pipeline.schemas import Metrics, SetMetrics
from stages.plots import charts, drawing, figures, png
from tools.report import READ, Side
from tools.report import judged as judged_side
from tools.study import Studies
from tools.verdict import Judged, verdict

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PAGE = "reports/report.html"
HOSTILE = "v<b>&amp;$1\"'"  # a tag may be named so


class Page(HTMLParser):
    """A page as a tree. Unlike a browser it takes only elements that are closed in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self._builder = TreeBuilder()
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.root = self._builder.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._builder.start(tag, {name: value or "" for name, value in attrs})
        self._open.append(tag)
        if tag in {"meta", "img", "wbr", "br"}:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            self._builder.data(data)

    def section(self, heading: str) -> Element:
        return next(s for s in self.root.iter("section") if text(s.find("h2")) == heading)


def text(element: Element | None) -> str:
    assert element is not None
    return "".join(element.itertext())


def cells(table: Element) -> list[list[str]]:
    return [[text(cell) for cell in row] for row in table.iter("tr")]


def notes(element: Element) -> list[str]:
    return [text(p) for p in element.iter("p") if p.get("class") == "note"]


def images(page: Page) -> dict[str, bytes]:
    """Return each picture under its alternative text."""
    start = "data:image/png;base64,"
    found = {img.attrib["alt"]: img.attrib["src"] for img in page.root.iter("img")}
    assert all(source.startswith(start) for source in found.values())
    return {alt: base64.b64decode(source.removeprefix(start)) for alt, source in found.items()}


def committed(project: Path, path: str, revision: str = "HEAD") -> bytes:
    """Return a file of a revision, from Git itself."""
    return subprocess.run(
        ["git", "show", f"{revision}:{path}"], cwd=project, capture_output=True, check=True
    ).stdout


def report(project: Path, *arguments: str) -> Page:
    done = run(project, sys.executable, "-m", "tools.report", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{PAGE}\n"
    return Page((project / PAGE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a committed run, and an experiment whose results are in place."""
    project = new_project(tmp_path_factory.mktemp("report") / "project")
    git(project, "tag", HOSTILE)
    dvc(project, "repro")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message=Two epochs, <em>first</em> & fast")
    dvc(project, "exp", "run", "--name=longer", "-S", "train.epochs=3")
    return project


@pytest.fixture(scope="module")
def page(project: Path) -> Page:
    """Return the page that compares the committed run with the experiment's results."""
    return report(project)


def body(section: Element) -> list[str]:
    """Return a section's paragraphs."""
    return [text(p) for p in section.iter("p")]


def identical(page: Page) -> set[str]:
    """Return the headings of the sections that say so."""
    return {
        text(section.find("h2"))
        for section in page.root.iter("section")
        if "identical" in body(section)
    }


def png_of(figure: Figure) -> bytes:
    return png.encode(drawing.render(figure))


def both_contents(project: Path, path: str) -> dict[str, bytes]:
    return {"HEAD": committed(project, path), "the workspace": (project / path).read_bytes()}


def test_the_page_says_what_is_compared(project: Path, page: Page) -> None:
    assert text(page.root.find("head/title")) == "From HEAD to the workspace"
    assert text(page.root.find("body/h1")) == "From HEAD to the workspace"
    commit = git(project, "rev-parse", "--short=7", "HEAD").strip()
    about = text(page.root.findall("body/p")[1])
    assert about.startswith(f"HEAD is commit {commit} of 20")
    assert about.endswith(": Two epochs, <em>first</em> & fast")
    assert notes(page.root) == []
    assert git(project, "status", "--short", PAGE) == ""  # Git ignores it


def test_parameters_and_metrics_show_both_sides(project: Path, page: Page) -> None:
    assert cells(page.section("Parameters that differ")) == [
        ["parameter", "HEAD", "the workspace"],
        ["train.epochs", "2", "3"],
    ]
    old, new = (json.loads(content) for content in
                both_contents(project, "reports/metrics.json").values())  # fmt: skip
    head, *rows = cells(page.section("Metrics"))
    assert head == ["metric", "HEAD", "the workspace", "difference"]
    assert len(rows) == 6
    for title, before, after, difference in rows:
        group, name = title.split(",")[0].split()
        factor, error = (100, 0.0051) if name == "accuracy" else (1, 0.000051)
        values = [factor * side[group][name] for side in (old, new)]
        shown = [float(cell.replace("\N{MINUS SIGN}", "-")) for cell in (before, after, difference)]
        assert shown == pytest.approx([*values, values[1] - values[0]], abs=error)


def test_the_first_line_is_a_verdict(project: Path, page: Page) -> None:
    first = page.root.find("body/p")
    assert first is not None
    assert first.attrib["class"] == "verdict"
    before, after = (json.loads(content)["validation"]["accuracy"] for content in
                     both_contents(project, "reports/metrics.json").values())  # fmt: skip
    expected = "Better" if after > before else "Worse" if after < before else "No difference"
    assert text(first).startswith(f"{expected}")
    assert f"validation accuracy {before:.2%}".replace("%", " %") in text(first)


def test_curves_of_both_lie_in_one_chart_on_one_scale(project: Path, page: Page) -> None:
    runs = []
    for name, content in both_contents(project, "reports/learning_curves.csv").items():
        table = np.loadtxt(io.StringIO(content.decode()), delimiter=",", skiprows=1)
        runs.append(charts.Run(name, *table.T[1:], kept=len(table)))
    shown = images(page)
    sides = "HEAD and the workspace"
    assert shown[f"Loss over the epochs: {sides}"] == png_of(charts.loss_chart(runs))
    assert shown[f"Validation error over the epochs: {sides}"] == png_of(charts.error_chart(runs))


def test_confusion_matrices_and_weights_of_both_sides_have_one_scale(
    project: Path, page: Page
) -> None:
    counts = {}
    for name, content in both_contents(project, "reports/confusion.csv").items():
        actual, predicted = np.loadtxt(io.StringIO(content.decode()), int, delimiter=",",
                                       skiprows=1).T  # fmt: skip
        counts[name] = np.zeros((10, 10), int)
        np.add.at(counts[name], (actual, predicted), 1)
    darkest = max(figures.mistaken(count).max() for count in counts.values())
    assert figures.mistaken(counts["HEAD"]).max() != figures.mistaken(counts["the workspace"]).max()
    shown = images(page)
    for name, count in counts.items():
        alt = f"{name}: {count.sum() - count.trace()} of {count.sum()} wrong"
        assert shown[alt] == png_of(figures.confusion_matrix(count, list("0123456789"), darkest))

    path = "models/model.npz"
    old = DVCFileSystem(str(project), rev="HEAD").read_bytes(path)
    weights = {}
    for name, content in (("HEAD", old), ("the workspace", (project / path).read_bytes())):
        with np.load(io.BytesIO(content)) as arrays:
            weights[name] = arrays["W1"]
    limit = max(figures.weight_limit(W) for W in weights.values())
    for name, W in weights.items():
        expected = png_of(figures.first_layer_weights(W, (28, 28), limit))
        assert shown[f"First layer weights: {name}"] == expected


def test_each_classs_figures_stand_side_by_side(project: Path, page: Page) -> None:
    _, _, *rows = cells(page.section("Each class, in percent"))
    old, new = (csv.DictReader(io.StringIO(content.decode())) for content in
                both_contents(project, "reports/per_class.csv").values())  # fmt: skip
    for row, before, after in zip(rows, old, new, strict=True):
        assert row[0] == before["class"] == after["class"]
        for place, figure in ((1, "precision"), (4, "recall"), (7, "f1")):
            shown = [float(cell.replace("\N{MINUS SIGN}", "-")) for cell in row[place : place + 3]]
            values = [100 * float(before[figure]), 100 * float(after[figure])]
            assert shown == pytest.approx([*values, values[1] - values[0]], abs=0.0051)


def test_only_the_runs_own_pictures_are_shown_once_if_identical(project: Path, page: Page) -> None:
    expected = {}
    for name in ("augmented_samples", "confident_mistakes", "prediction_grid", "sample_image"):
        title = name.replace("_", " ").capitalize()
        contents = both_contents(project, f"reports/{name}.png")
        if contents["HEAD"] == contents["the workspace"]:
            expected[f"{title}: HEAD"] = contents["HEAD"]
            assert title in identical(page)
        else:
            expected |= {f"{title}: {side}": content for side, content in contents.items()}
            assert title not in identical(page)
    drawn = {"Loss over", "Validation", "First layer", "HEAD", "the workspace"}
    shown = {alt: content for alt, content in images(page).items()
             if not alt.startswith(tuple(drawn))}  # fmt: skip
    assert shown == expected
    assert {"Augmented samples", "Sample image"} <= identical(page)


def test_the_page_is_accessible_and_needs_no_other_file(page: Page) -> None:
    elements = list(page.root.iter())
    assert page.root.attrib["lang"] == "en"
    (policy,) = [e.get("content", "") for e in elements if "http-equiv" in e.attrib]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert all(cell.get("scope") for cell in elements if cell.tag == "th")
    identifiers = [element.attrib["id"] for element in elements if "id" in element.attrib]
    assert len(identifiers) == len(set(identifiers))
    assert {element.tag for element in elements}.isdisjoint({"script", "link", "iframe", "object"})
    for element in elements:
        for name in ("src", "href", "xlink:href"):
            if name in element.attrib:
                kind, _, target = element.attrib[name].partition("#")
                assert kind.startswith("data:") or (kind == "" and target in identifiers)
        assert re.findall(r"url\((?!#)|@import", element.get("style", "")) == []


def test_what_is_identical_is_said_and_shown_once(project: Path) -> None:
    page = report(project, "longer")  # an experiment, whose results the workspace holds
    assert text(page.root.find("body/p")).startswith("Identical: ")
    assert identical(page) == {text(heading) for heading in page.root.iter("h2")}
    assert {"Parameters that differ", "Metrics", "Learning curves"} < identical(page)
    assert all(row[1:] == ["both"] or len(row) == 2 for row in cells(page.section("Metrics")))
    assert {len(row) for row in cells(page.section("Each class, in percent"))[1:]} == {4}
    assert not any(alt.endswith(": the workspace") for alt in images(page))
    assert len(images(page)) == 8


def test_two_revisions_can_be_named(project: Path) -> None:
    page = report(project, "HEAD longer")  # as from REV="HEAD longer"
    assert text(page.root.find("body/h1")) == "From HEAD to longer"
    assert cells(page.section("Parameters that differ"))[1] == ["train.epochs", "2", "3"]
    commits = [line.strip() for line in text(page.root.findall("body/p")[1]).splitlines()]
    assert [commit.split(" is commit ")[0] for commit in commits] == ["HEAD", "longer"]


def test_a_folder_of_a_larger_repository_has_both_sides_too(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "larger/project", symlinks=True)
    larger, copy = tmp_path / "larger", tmp_path / "larger/project"
    shutil.rmtree(copy / ".git")
    shutil.rmtree(copy / ".dvc")
    git(larger, "init", "--quiet", "--initial-branch=main")
    dvc(copy, "init", "--quiet", "--subdir")
    git(larger, "add", ".")
    git(larger, "commit", "--quiet", "--message=All in one")
    page = report(copy)
    assert {"Metrics", "Learning curves", "Confusion matrices"} < identical(page)
    assert images(page)["Sample image: HEAD"] == (copy / "reports/sample_image.png").read_bytes()


def test_what_a_side_lacks_is_said_and_names_are_escaped(project: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(project, tmp_path / "project", symlinks=True)
    (copy / "reports/sample_image.png").unlink()
    (copy / "reports/per_class.csv").write_text("class,precision\n0,a\n")
    (copy / "reports/learning_curves.csv").write_text(
        "epoch,train_loss,validation_loss,validation_accuracy\n1,1e300,0.2,0.9\n"
    )
    page = report(copy, HOSTILE)  # a commit before the first run
    assert text(page.root.find("body/h1")) == f"From {HOSTILE} to the workspace"
    assert text(page.root.find("body/p")).startswith("No verdict: ")

    def missing(name: str, side: str = HOSTILE) -> str:
        return f"{name} is not in {side}."

    assert notes(page.root) == [
        missing("reports/metrics.json"),
        missing("reports/learning_curves.csv"),
        "reports/learning_curves.csv in the workspace: row 1: train_loss: 1e300: "
        "must be a number from 0 to 10000000000",
        missing("reports/confusion.csv"),
        missing("reports/per_class.csv"),
        "reports/per_class.csv in the workspace: the first line must be "
        "class,precision,recall,f1,support",
        missing("models/model.npz"),
        "Each picture has a scale of its own.",
        missing("reports/first_layer_weights.png"),
        missing("reports/augmented_samples.png"),
        missing("reports/confident_mistakes.png"),
        missing("reports/prediction_grid.png"),
        missing("reports/sample_image.png"),
        missing("reports/sample_image.png", "the workspace"),
    ]
    assert cells(page.section("Metrics"))[1][1] == "\N{EN DASH}"
    assert identical(page) == set()


@pytest.mark.parametrize("content", [b"", b"[", b"- 1", b"train:", b"train: 3", "is missing"])
def test_parameters_of_any_shape_can_be_judged(content: bytes | str) -> None:
    files = dict.fromkeys(map(str, READ), "is missing") | {"params.yaml": content}
    assert judged_side(Side("HEAD", "", "HEAD", files)) == Judged(None, None, False)


def test_bad_input_is_one_line_and_keeps_the_last_page(project: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(project, tmp_path / "project", symlinks=True)
    (copy / PAGE).write_text("the last page")
    folder = git(copy, "rev-parse", "HEAD:reports").strip()
    unknown = "no such revision: must be a commit, a branch, a tag or an experiment"
    for revision, damage, complaint in (
        ("no-such-branch", "", f"no-such-branch: {unknown}"),
        ("HEAD HEAD", "", "HEAD HEAD: must be one revision, or two different ones"),
        ("HEAD main HEAD~1", "", "HEAD main HEAD~1: must be one revision, or two different ones"),
        (folder, "", f"{folder}: {unknown}"),
        (
            "HEAD",
            "[",
            "the workspace: unable to read: 'dvc.yaml', YAML file structure is corrupted",
        ),
    ):
        with (copy / "dvc.yaml").open("a") as file:
            file.write(damage)
        done = run(copy, sys.executable, "-m", "tools.report", revision)
        assert (done.returncode, done.stderr) == (1, f"error: {complaint}\n")
        assert (copy / PAGE).read_text() == "the last page"


def judged(accuracy: float, *, on_validation: bool = False, recipe: object = None) -> Judged:
    of_set = SetMetrics(accuracy=accuracy, error_rate=1 - accuracy, loss=0.1)
    test = SetMetrics(accuracy=accuracy - 0.5, error_rate=1.5 - accuracy, loss=0.1)
    parameters = {"train": {"hidden_sizes": [64], "recipe": recipe}}
    return Judged(Metrics(train=of_set, validation=of_set, test=test), parameters, on_validation)


def test_the_verdict_compares_the_change_with_the_seeds_spread() -> None:
    # Accuracies of 98 and 99 % have a standard deviation of sqrt(1/2) points: a spread of 2 points.
    results = [
        {"seed": seed, "validation_accuracy": accuracy, "test_accuracy": accuracy - 0.5,
         "test_loss": 0.1}
        for seed, accuracy in ((1, 0.98), (2, 0.99))
    ]  # fmt: skip
    parameters = judged(0.5, recipe="known").parameters
    studies = TypeAdapter(Studies).validate_python(
        {"known": {"parameters": parameters, "results": results}}
    )
    old = judged(0.95, recipe="known")
    for accuracy, expected in (
        (0.955, "Within the seeds' spread: validation accuracy 95.00 % to 95.50 %, +0.50 points; "),
        (0.932, "Within the seeds' spread: validation accuracy 95.00 % to 93.20 %, "),
        (0.9725, "Better: validation accuracy 95.00 % to 97.25 %, +2.25 points; another seed alone "
                 "makes up to 2.00 (2 seeds of known)."),
        (0.9275, "Worse: validation accuracy 95.00 % to 92.75 %, \N{MINUS SIGN}2.25 points; "),
        (0.95, "No difference: validation accuracy 95.00 % on both sides."),
    ):  # fmt: skip
        assert verdict(old, judged(accuracy), studies).startswith(expected)
    assert verdict(judged(0.95), judged(0.96), studies) == (
        "Better: validation accuracy 95.00 % to 96.00 %, +1.00 points; "
        "how far seeds spread is not known without a study of them."
    )
    # Who has trained on the validation set is judged by the test set.
    line = verdict(old, judged(0.96, on_validation=True), studies)
    assert line.startswith("Within the seeds' spread: test accuracy 45.00 % to 46.00 %")
    assert verdict(old, old._replace(metrics=None), studies).startswith("No verdict: ")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_without_a_network_shows_the_page_and_complains_of_nothing(
    page: Page, tmp_path: Path
) -> None:
    def browse(name: str, html: str) -> tuple[str, list[str]]:
        """Return the page as the browser understood it, and its console."""
        (tmp_path / name).write_text(html, encoding="utf-8")
        done = subprocess.run(
            [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update",
             "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
             "--enable-logging=stderr", "--v=0", "--dump-dom", str(tmp_path / name)],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    shown, console = browse("page.html", page.html)
    # The page's own policy forbids every request, and the console names each one that is tried.
    assert console == []
    understood = Page(shown)
    assert [(e.tag, text(e)) for e in understood.root.iter("td")] == [
        (e.tag, text(e)) for e in page.root.iter("td")
    ]
    assert images(understood) == images(page)

    planted = page.html.replace("<h1>", '<img src="http://example.invalid/a.png"><h1>')
    _, console = browse("planted.html", planted)
    assert "example.invalid" in "".join(console)
