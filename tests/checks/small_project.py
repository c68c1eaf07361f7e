"""A copy of the project with a small data set in it, for the tests that run whole stages."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import numpy as np
from dvc.utils.collections import merge_dicts
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update
from numpy.typing import NDArray

from stages.pipeline.datasets import DESCRIPTION, MNIST, save_description

ROOT = Path(__file__).resolve().parents[2]
TRAINING_IMAGES = 1500
TEST_IMAGES = 300

# What params.yaml says in a fresh clone: tests count on it whatever the user has put there since.
FRESH: dict[str, Any] = {
    "fetch": {
        "sources": ["keras", "pypi"],
    },
    "preprocess": {
        "validation_size": 5000,
        "seed": 1,
    },
    "train": {
        "initialisation": "he",
        "optimizer": "sgd",
        "learning_rate": 0.4,
        "schedule": "one_cycle",
        "momentum": 0.9,
        "batch_size": 256,
        "epochs": 60,
        "l2": 0.0,
        "weight_decay": 0.0,
        "dropout": 0.0,
        "label_smoothing": 0.0,
        "ema_decay": 0.999,
        "augmentation": {
            "rotation": 5.0,
            "scale": 0.05,
            "shear": 0.0,
            "shift": 1.0,
            "elastic": 12.0,
            "smoothness": 4.0,
            "thickness": 1.0,
        },
        "seed": 1,
        "keep": "last",
        "include_validation": False,
        "hidden_sizes": [64],
    },
    "visualize": {
        "rows": 5,
        "columns": 10,
        "mistakes": 20,
    },
}
SMALL = {
    "preprocess": {"validation_size": 1000},
    "train": {"epochs": 2, "batch_size": 50, "learning_rate": 0.01},
    "visualize": {"rows": 2, "columns": 3, "mistakes": 4},
}


def repository_files(*, untracked: bool = True) -> list[str]:
    """Return the paths of the files that are in Git and, if asked, of those to be added to it."""
    others = ["--others", "--exclude-standard"] if untracked else []
    listed = subprocess.run(
        ["git", "ls-files", "--cached", *others, "-z"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    paths = sorted(set(listed.stdout.rstrip("\0").split("\0")))
    return [path for path in paths if (ROOT / path).is_file()]


def committed(path: str) -> bytes:
    """Return a file as it is in the last commit, empty if it is not there."""
    return subprocess.run(
        ["git", "show", f"HEAD:./{path}"], cwd=ROOT, env=environment(), capture_output=True
    ).stdout


def environment(**variables: str) -> dict[str, str]:
    """Return the environment for a stage or DVC: this Python first, the user's settings out."""
    inherited = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    return inherited | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        **variables,
    }


def isolated(project: Path) -> dict[str, str]:
    """Return the environment for Git and DVC in `project`, far from the user's own settings."""
    settings = {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(project.parent / "dvc-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(project.parent / "dvc-system"),
        "DVC_SITE_CACHE_DIR": str(project.parent / "dvc-site"),
    }
    for who in ("AUTHOR", "COMMITTER"):
        settings |= {f"GIT_{who}_NAME": "Tester", f"GIT_{who}_EMAIL": "tester@example.invalid"}
    return environment(**settings)


def copy_project(target: Path) -> None:
    """Copy the repository's files, without the results, and put the small data set in."""
    for path in repository_files():
        if path != "dvc.lock" and not path.startswith("reports/"):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, target / path)
    config = target / ".dvc/config"
    config.write_text(without_places(config.read_text(encoding="utf-8")), encoding="utf-8")
    (target / "params.yaml").write_text(fresh_parameters(), encoding="utf-8", newline="\n")
    set_parameters(target, SMALL)
    write_raw_data(target)


def fresh_parameters() -> str:
    """Return the text of params.yaml with the values of a fresh clone."""
    path = ROOT / "params.yaml"
    document = parse_yaml_for_update(path.read_text(encoding="utf-8"), str(path))
    merge_dicts(document, FRESH)
    return dumps_yaml(document)


def without_places(config: str) -> str:
    """Return a DVC configuration without the remotes and the cache that its user may have set."""
    parser = ConfigParser(interpolation=None)
    parser.read_string(config)
    for name in parser.sections():
        if name != "core":
            parser.remove_section(name)
    parser.remove_option("core", "remote")
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


def set_parameters(project: Path, changes: Mapping[str, Mapping[str, object]]) -> None:
    """Change values in params.yaml as a user does in an editor: the rest of the file stays."""
    path = project / "params.yaml"
    section, lines = "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        key = line.split(":")[0]
        if key == key.strip():
            section = key
        new = changes.get(section, {}).get(key.strip())
        lines.append(line if new is None else f"{key}: {new}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def write_raw_data(project: Path) -> None:
    """Write what the fetch stage would, but small."""
    raw = project / "data" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    save_description(MNIST, raw / DESCRIPTION.name)
    for name, count, seed in (("train", TRAINING_IMAGES, 1), ("test", TEST_IMAGES, 2)):
        images, labels = images_and_labels(count, seed)
        np.save(raw / f"x_{name}.npy", images)
        np.save(raw / f"y_{name}.npy", labels)


def images_and_labels(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (count, 28, 28) of ten blurred patterns under noise, and which each one is."""
    patterns = np.random.default_rng(0).integers(0, 256, (10, 7, 7)).repeat(4, 1).repeat(4, 2)
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % 10)
    images = patterns[labels] + generator.normal(0, 100, (count, 28, 28))
    return images.clip(0, 255).astype(np.uint8), labels.astype(np.uint8)
