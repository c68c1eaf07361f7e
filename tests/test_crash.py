"""A tiny crash test (a real one: `python -m tests.checks.crash_test 100`), and what is mended."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checks.crash_test import KINDS, OLD, STAGES, Storm, Tally
from tests.checks.small_project import isolated


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Storm:
    return Storm(tmp_path_factory.mktemp("storm"), seed=1)


@pytest.fixture
def project(storm: Storm) -> Path:
    """Return the project as the undisturbed run left it, its cache with it."""
    return storm.undisturbed


def mend(project: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tools.repair_dvc"],
        cwd=project,
        env=isolated(project),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_kill_9_of_a_stage_of_dvc_or_of_both_needs_no_cleaning(storm: Storm, kind: str) -> None:
    storm.tally = Tally()
    storm.kill(STAGES[-1], kind)
    assert storm.tally.good(), storm.tally
    assert storm.tally.kills.total() == 1


def test_the_storm_sees_a_wrong_output(storm: Storm, tmp_path: Path) -> None:
    storm.tally, project = Tally(), tmp_path / "project"
    storm._prepare(project, STAGES[0])
    storm._compare(project, "planted")
    assert "planted: dvc.lock" in storm.tally.wrong
    assert "planted: models/model.npz" in storm.tally.wrong
    assert (project / "models/model.npz").read_bytes() == OLD


def test_yaml_or_json_of_dvcs_own_cut_in_half_is_mended(project: Path) -> None:
    lock, rwlock = project / "dvc.lock", project / ".dvc/tmp/rwlock"
    whole = lock.read_bytes()
    assert mend(project) == ""
    for half in (b"", whole[: whole.rindex(b"- path") + 4], whole[:-1] + b": "):
        lock.write_bytes(half)
        assert mend(project) == "dvc.lock: half-written: removed, DVC gets it anew\n"
        assert not lock.exists()
    lock.write_bytes(whole)
    assert mend(project) == ""
    for half in ("", '{"write": {'):
        rwlock.write_text(half)
        assert "rwlock: half-written" in mend(project)
        assert not rwlock.exists()
    assert mend(project) == ""


def test_a_folder_in_the_cache_is_left_alone(storm: Storm, tmp_path: Path) -> None:
    project = shutil.copytree(storm.undisturbed, tmp_path / "project")
    folder = project / "folder"
    folder.mkdir()
    (folder / "file").write_text("content")
    subprocess.run(
        ["dvc", "add", "--quiet", folder], cwd=project, env=isolated(project), check=True
    )
    (cached,) = (project / ".dvc/cache/files/md5").glob("??/*.dir")
    assert mend(project) == ""
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes() + b" ")
    assert "changed since it was written" in mend(project)
    assert not cached.exists()


def test_a_bit_flipped_in_the_cache_is_mended(storm: Storm, project: Path) -> None:
    path = project / "data/processed/x_validation.npy"
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    cached = project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    mode, damaged = cached.stat().st_mode, bytearray(cached.read_bytes())
    damaged[-1] ^= 1
    cached.chmod(0o644)
    cached.write_bytes(damaged)
    cached.chmod(mode)
    # DVC alone would restore these bytes, and say that all is up to date.
    path.unlink()
    assert mend(project) == (
        f"{cached.relative_to(project)}: changed since it was written: removed, DVC gets it anew\n"
    )
    storm.tally = Tally()
    storm._recover(project, "flipped")
    storm._compare(project, "flipped")
    assert storm.tally.good(), storm.tally
    assert cached.exists()
