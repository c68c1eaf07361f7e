"""A tiny crash test (a real one: `python -m tests.checks.crash_test 100`), and what is repaired."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checks.crash_test import KINDS, OLD, STAGES, CrashTest, Tally
from tests.checks.small_project import isolated


@pytest.fixture(scope="module")
def crash_test(tmp_path_factory: pytest.TempPathFactory) -> CrashTest:
    return CrashTest(tmp_path_factory.mktemp("crash"), seed=1)


@pytest.fixture
def project(crash_test: CrashTest) -> Path:
    """Return the project as the undisturbed run left it, its cache with it."""
    return crash_test.undisturbed


def repair(project: Path) -> str:
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
def test_kill_9_of_a_stage_of_dvc_or_of_both_needs_no_cleaning(
    crash_test: CrashTest, kind: str
) -> None:
    crash_test.tally = Tally()
    crash_test.kill(STAGES[-1], kind)
    assert crash_test.tally.good(), crash_test.tally
    assert crash_test.tally.kills.total() == 1


def test_the_crash_test_sees_a_wrong_output(crash_test: CrashTest, tmp_path: Path) -> None:
    crash_test.tally, project = Tally(), tmp_path / "project"
    crash_test._prepare(project, STAGES[0])
    crash_test._compare(project, "planted")
    assert "planted: dvc.lock" in crash_test.tally.wrong
    assert "planted: models/model.npz" in crash_test.tally.wrong
    assert (project / "models/model.npz").read_bytes() == OLD


def test_yaml_or_json_of_dvcs_own_cut_in_half_is_repaired(project: Path) -> None:
    lock, rwlock = project / "dvc.lock", project / ".dvc/tmp/rwlock"
    whole = lock.read_bytes()
    assert repair(project) == ""
    for half in (b"", whole[: whole.rindex(b"- path") + 4], whole[:-1] + b": "):
        lock.write_bytes(half)
        assert repair(project) == "dvc.lock: half-written: removed, DVC gets it anew\n"
        assert not lock.exists()
    lock.write_bytes(whole)
    assert repair(project) == ""
    for half in ("", '{"write": {'):
        rwlock.write_text(half)
        assert "rwlock: half-written" in repair(project)
        assert not rwlock.exists()
    assert repair(project) == ""


def refusal(project: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tools.repair_dvc"],
        cwd=project,
        env=isolated(project),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    return done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
def test_what_no_dvc_has_made_is_named_and_not_waited_for(
    crash_test: CrashTest, tmp_path: Path
) -> None:
    project = shutil.copytree(crash_test.undisturbed, tmp_path / "project")
    cached = next((project / ".dvc/cache/files/md5").glob("??/*"))
    for path, named in (
        (project / "dvc.lock", "dvc.lock"),
        (project / ".dvc/tmp/rwlock", ".dvc/tmp/rwlock"),
        (cached, str(cached)),
    ):
        path.unlink(missing_ok=True)
        path.mkdir()
        assert refusal(project).startswith(f"error: {named}: must be a regular file")
        path.rmdir()
    os.mkfifo(project / "dvc.lock")
    assert refusal(project).startswith("error: dvc.lock: must be a regular file")
    (project / "dvc.lock").unlink()
    os.mkfifo(cached)
    assert "changed since it was written: removed" in repair(project)
    for deep in (project / "dvc.lock", project / ".dvc/tmp/rwlock"):
        deep.write_text("[" * 100_000)
        assert "half-written: removed" in repair(project)
        assert not deep.exists()


def test_a_cache_elsewhere_is_repaired_too(crash_test: CrashTest, tmp_path: Path) -> None:
    project = shutil.copytree(crash_test.undisturbed, tmp_path / "project")
    elsewhere = tmp_path / "elsewhere"
    (project / ".dvc/cache").rename(elsewhere)
    subprocess.run(
        ["dvc", "cache", "dir", "--quiet", elsewhere],
        cwd=project,
        env=isolated(project),
        check=True,
    )
    cached = next((elsewhere / "files/md5").glob("??/*"))
    cached.chmod(0o644)
    cached.write_bytes(b"changed")
    being_written = cached.with_name(".name.tmp")
    being_written.write_bytes(b"half of what another project's DVC writes")
    assert repair(project) == (
        f"{cached}: changed since it was written: removed, DVC gets it anew\n"
    )
    assert being_written.exists()
    assert not cached.exists()


def test_a_folder_in_the_cache_is_left_alone(crash_test: CrashTest, tmp_path: Path) -> None:
    project = shutil.copytree(crash_test.undisturbed, tmp_path / "project")
    folder = project / "folder"
    folder.mkdir()
    (folder / "file").write_text("content")
    subprocess.run(
        ["dvc", "add", "--quiet", folder], cwd=project, env=isolated(project), check=True
    )
    (cached,) = (project / ".dvc/cache/files/md5").glob("??/*.dir")
    assert repair(project) == ""
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes() + b" ")
    assert "changed since it was written" in repair(project)
    assert not cached.exists()


def test_a_bit_flipped_in_the_cache_is_repaired(crash_test: CrashTest, project: Path) -> None:
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
    assert repair(project) == (
        f"{cached.relative_to(project)}: changed since it was written: removed, DVC gets it anew\n"
    )
    crash_test.tally = Tally()
    crash_test._recover(project, "flipped")
    crash_test._compare(project, "flipped")
    assert crash_test.tally.good(), crash_test.tally
    assert cached.exists()
