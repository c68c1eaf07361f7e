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
from test_pipeline import dvc, git, new_project, run

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
        if tag in {"meta", "img", "wbr"}:
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


def test_the_page_says_what_is_compared(project: Path, page: Page) -> None:
    assert text(page.root.find("head/title")) == "From HEAD to the workspace"
    assert text(page.root.find("body/h1")) == "From HEAD to the workspace"
    commit = git(project, "rev-parse", "--short=7", "HEAD").strip()
    about = text(page.root.find("body/p"))
    assert about.startswith(f"HEAD is commit {commit} of 20")
    assert about.endswith(": Two epochs, <em>first</em> & fast")
    assert notes(page.root) == []
    assert git(project, "status", "--short", PAGE) == ""  # Git ignores it


def test_parameters_and_metrics_show_both_sides(project: Path, page: Page) -> None:
    assert cells(page.section("Parameters that differ")) == [
        ["parameter", "HEAD", "the workspace"],
        ["train.epochs", "2", "3"],
    ]
    old = json.loads(committed(project, "reports/metrics.json"))
    new = json.loads((project / "reports/metrics.json").read_text())
    head, *rows = cells(page.section("Metrics"))
    assert head == ["metric", "HEAD", "the workspace", "difference"]
    assert len(rows) == 9
    for key, before, after, difference in rows:
        group, name = key.split(".")
        assert float(before) == old[group][name]
        assert float(after) == new[group][name]
        moved = float(difference.replace("\N{MINUS SIGN}", "-"))
        assert moved == pytest.approx(new[group][name] - old[group][name], abs=1e-9)


def test_curves_of_both_lie_in_one_drawing(page: Page) -> None:
    accuracy, loss = page.section("Learning curves").iter("svg")
    for drawing, kinds in ((accuracy, ["validation"]), (loss, ["training", "validation"])):
        labels = [f"{side}, {kind}" for side in ("HEAD", "the workspace") for kind in kinds]
        assert all(label in drawing.attrib["aria-label"] for label in labels)
        assert set(labels) <= {text(element) for element in drawing.iter("text")}
        # A curve of two epochs is one line, of three epochs two; the legend's are not clipped.
        curves = [path for path in drawing.iter("path") if "clip-path" in path.attrib]
        lines = [
            path.attrib["d"].count("L") for path in curves if "#ddd" not in path.attrib["style"]
        ]
        assert sorted(lines) == sorted([1] * len(kinds) + [2] * len(kinds))


def test_confusion_matrices_count_each_sides_predictions(project: Path, page: Page) -> None:
    tables = list(page.section("Confusion matrices").iter("table"))
    content = (committed(project, "reports/confusion.csv").decode(),
               (project / "reports/confusion.csv").read_text())  # fmt: skip
    for table, side, lines in zip(tables, ("HEAD", "the workspace"), content, strict=True):
        actual, predicted = np.loadtxt(io.StringIO(lines), int, delimiter=",", skiprows=1).T
        expected = np.zeros((10, 10), int)
        np.add.at(expected, (actual, predicted), 1)
        wrong = (actual != predicted).sum()
        assert text(table.find("caption")) == f"{side}: {wrong} of {len(actual)} wrong"
        head, *rows = cells(table)
        assert head == ["", *map(str, range(10))]
        assert [row[0] for row in rows] == head[1:]
        np.testing.assert_array_equal(np.array(rows, int)[:, 1:], expected)


def test_each_digits_figures_stand_side_by_side(project: Path, page: Page) -> None:
    _, _, *rows = cells(page.section("Each digit, in percent"))
    old = csv.DictReader(io.StringIO(committed(project, "reports/per_class.csv").decode()))
    new = csv.DictReader(io.StringIO((project / "reports/per_class.csv").read_text()))
    for row, before, after in zip(rows, old, new, strict=True):
        assert row[0] == before["class"] == after["class"]
        for place, figure in ((1, "precision"), (4, "recall"), (7, "f1")):
            shown = [float(cell.replace("\N{MINUS SIGN}", "-")) for cell in row[place : place + 3]]
            values = [100 * float(before[figure]), 100 * float(after[figure])]
            assert shown == pytest.approx([*values, values[1] - values[0]], abs=0.0051)


def test_a_picture_stands_twice_if_it_differs_and_else_once(project: Path, page: Page) -> None:
    expected = {}
    for path in sorted((project / "reports").glob("*.png")):
        if path.stem not in {"learning_curves", "confusion_matrix"}:
            title = path.stem.replace("_", " ").capitalize()
            old, new = committed(project, f"reports/{path.name}"), path.read_bytes()
            if old == new:
                expected[f"{title}: HEAD and the workspace"] = old
            else:
                expected |= {f"{title}: HEAD": old, f"{title}: the workspace": new}
    assert images(page) == expected
    assert "Sample image: HEAD and the workspace" in expected
    assert "First layer weights: HEAD" in expected


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


def test_an_experiments_name_is_a_revision(project: Path) -> None:
    page = report(project, "longer")  # the workspace holds its results
    assert text(page.section("Parameters that differ").find("p")) == "None."
    assert {row[3] for row in cells(page.section("Metrics"))[1:]} == {"0"}
    (table,) = page.section("Confusion matrices").iter("table")
    assert text(table.find("caption")).startswith("longer and the workspace: ")
    assert all(alt.endswith(": longer and the workspace") for alt in images(page))


def test_what_a_side_lacks_is_said_and_names_are_escaped(project: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(project, tmp_path / "project", symlinks=True)
    (copy / "reports/sample_image.png").unlink()
    (copy / "reports/per_class.csv").write_text("class,precision\n0,a\n")
    page = report(copy, HOSTILE)  # a commit before the first run
    assert text(page.root.find("body/h1")) == f"From {HOSTILE} to the workspace"
    missing = [f"reports/{name} is not in {HOSTILE}." for name in (
        "metrics.json", "learning_curves.csv", "confusion.csv", "per_class.csv",
        "augmented_samples.png", "confident_mistakes.png", "first_layer_weights.png",
        "prediction_grid.png")]  # fmt: skip
    damaged = (
        "reports/per_class.csv in the workspace is damaged: "
        "must hold finite numbers for class, precision, recall, f1 in each row."
    )
    assert notes(page.root) == [*missing[:4], damaged, *missing[4:]]
    assert cells(page.section("Metrics"))[1][1] == "\N{EN DASH}"
    assert len(list(page.section("Confusion matrices").iter("table"))) == 1
    assert len(list(page.section("Learning curves").iter("svg"))) == 2


def test_bad_input_is_one_line_and_keeps_the_last_page(project: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(project, tmp_path / "project", symlinks=True)
    (copy / PAGE).write_text("the last page")
    folder = git(copy, "rev-parse", "HEAD:reports").strip()
    unknown = "no such revision: must be a commit, a branch, a tag or an experiment"
    for revision, damage, complaint in (
        ("no-such-branch", "", f"no-such-branch: {unknown}"),
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
