"""The Makefile: what a bare `make` says, and how `make repro` ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stages.pipeline.command import InputError
from tests.checks.small_project import ROOT, committed, environment
from tools import summary

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_a_bare_make_tells_what_each_target_does_in_a_line_that_fits() -> None:
    lines = make().splitlines()
    assert lines == make("help").splitlines()
    phony = re.search(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)
    assert phony
    assert [line.split()[1] for line in lines] == phony[1].split()
    assert all(len(line.split()) > 4 and len(line) <= 80 for line in lines)


@pytest.mark.parametrize("target", ["repro", "recipe"])
def test_a_run_ends_with_its_result(target: str) -> None:
    *_, last = make("--dry-run", "--assume-old=.venv/.ready", target).splitlines()
    assert last == "python -m tools.summary"


def test_only_a_study_on_a_cluster_installs_dask() -> None:
    for arguments, expected in (([], False), (["CLUSTER=local:2"], True)):
        new = "--what-if=requirements-dask.lock"
        commands = make("--dry-run", "--assume-old=.venv/.ready", new, "study", *arguments)
        assert ("-r requirements-dask.lock" in commands) == expected


def test_the_result_is_the_test_accuracy_and_where_the_pictures_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["summary"])
    path = tmp_path / summary.METRICS
    path.parent.mkdir()
    accuracies = {"train": 0.99325, "validation": 0.9864, "test": 0.987}
    path.write_text(json.dumps({
        name: {"accuracy": accuracy, "error_rate": 1 - accuracy, "loss": 0.1}
        for name, accuracy in accuracies.items()
    }))  # fmt: skip
    summary.main()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "test accuracy 98.70% (validation 98.64%, train 99.33%)"
    named = re.findall(r"reports/\w+\.png", second)
    assert named
    assert all(committed(picture) for picture in named)

    for damaged in ("", "{}", '{"train": 1}'):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"^reports/metrics.json: damaged"):
            summary.main()


@pytest.mark.parametrize("tool", ["draw", "experiments", "repair_dvc", "summary"])
def test_arguments_of_a_tool_that_has_none_are_refused(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tools.{tool}", "--dry-run"], cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: python -m tools.{tool}: unrecognized arguments: --dry-run; --help says what is "
        "allowed\n"
    )


def test_git_ignores_what_a_running_test_writes() -> None:
    written = [".pytest_cache/x", ".hypothesis/x"]
    command = ["git", "check-ignore", *written]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout.split() == written
