"""The README shows what the last run measured, and names nothing that is not there."""

import json
import re
from functools import reduce
from operator import getitem

import yaml

from tests.checks.small_project import ROOT, committed

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_are_those_of_the_committed_metrics():
    metrics = json.loads(committed("reports/metrics.json"))
    for name, figures in metrics.items():
        row = (
            f"| {name} | {figures['accuracy']:.2%} | {figures['error_rate']:.2%} "
            f"| {figures['loss']:.4f} |"
        )
        assert row in README


def test_linked_files_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists() and not committed(link)] == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_params_shown_in_the_readme_are_real():
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    shown = re.findall(r"""-S '?([\w.]+)=""", README)
    assert len(shown) > 8
    for path in shown:
        reduce(getitem, path.split("."), params)
