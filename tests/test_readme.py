"""The README shows what the last run measured, and names nothing that is not there."""

import json
import re
from functools import reduce
from operator import getitem
from statistics import mean, median, stdev

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


def test_the_recipes_are_those_of_the_committed_studies():
    studies, times = (
        json.loads(committed(f"reports/{n}.json")) for n in ("studies", "study_times")
    )
    for name, study in studies.items():
        accuracies = [result["test_accuracy"] for result in study["results"]]
        spread = f" ± {stdev(accuracies):.2%}" if len(accuracies) > 1 else ""
        seconds = median(times[name].values())
        time = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
        row = f"{mean(accuracies):.2%}{spread} ({len(accuracies)}) | {time} |"
        assert re.search(rf"^\| {name} \| .* \| {re.escape(row)}$", README, re.MULTILINE), row


def test_the_speed_is_that_of_the_committed_benchmark():
    report = json.loads(committed("reports/benchmark.json"))
    with_zeros = []
    for cell in report["throughput"]["cells"]:
        ratios = {row["contender"]: row["ratio_to_ours"]["median"] for row in cell["rows"]}
        with_zeros.append(ratios.pop("ours_dense"))
        plain, jax, _ = ratios.pop("ours_plain"), ratios.pop("jax"), ratios.pop("ours_exact")
        figures = " | ".join(f"{1 / ratio:.2f}" for ratio in (jax, max(ratios.values()), plain))
        assert f"| {cell['network']}, {cell['batch_size']} | {figures} |" in README
    assert f"it has {min(with_zeros):.2f} to {max(with_zeros):.2f} of its speed" in README
    goals = report["time_to_accuracy"]["goals"]
    ((ours, *_),) = (goal["rows"] for goal in goals if goal["target"] == 0.9625)
    notebook = report["time_to_accuracy"]["notebook"]
    text = " ".join(README.split())
    seconds = f"takes {ours['seconds']['median']:.2f} s, its own algorithm"
    assert f"{seconds} {notebook['seconds']['median']:.0f} s." in text


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
