"""dvc.yaml against the code: DVC knows of an import, a parameter or a file only if it is listed."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checks.small_project import ROOT, copy_project, environment, repository_files

Names = set[str]


def violations(root: Path) -> list[str]:
    """Say where the dvc.yaml under `root` and the code of its stages disagree."""
    found = []
    for name, stage in pipeline(root).items():
        script = f"stages/{name}.py"
        if stage["cmd"] != f"python -m stages.{name}":
            found.append(f"{name}: the command is {stage['cmd']}")
        listed = {path for path in stage["deps"] if path.startswith("stages/")}
        modules = imported_modules(root, script)
        needed = {covering(module, listed) for module in modules}
        found += differences(name, "imports", needed, listed)
        read = parameters_read(root, script)
        found += differences(name, "reads", read, set(stage.get("params", [])))
        # A module that reads parameters behind the script's back would escape the check above.
        found += [
            f"{name}: {module} reads params.yaml"
            for module in modules - {script, "stages/pipeline/params.py"}
            if "load_params" in (root / module).read_text()
        ]
        if "requirements.lock" not in stage["deps"]:
            found.append(f"{name}: does not list requirements.lock")
        if not stage.get("desc"):
            found.append(f"{name}: has no desc")
    return found


def pipeline(root: Path) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    return stages


def covering(path: str, listed: Names) -> str:
    """Return what covers a file in a list of files and folders: its folder or the file itself."""
    return next((str(folder) for folder in Path(path).parents if str(folder) in listed), path)


def differences(stage: str, verb: str, real: Names, listed: Names) -> list[str]:
    return [f"{stage}: {verb} {name}, not listed" for name in sorted(real - listed)] + [
        f"{stage}: lists {name}, but {verb} it not" for name in sorted(listed - real)
    ]


def imported_modules(root: Path, script: str) -> Names:
    """Return the project's files that a script imports, anywhere in it, directly or not."""
    found: Names = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        # Importing a module runs the __init__ of every package around it.
        waiting += [f"{folder}/__init__.py" for folder in Path(path).parents if folder.name]
        for module in imports(ast.parse((root / path).read_text()), path):
            for candidate in (f"{module}.py", f"{module}/__init__.py"):
                if (root / candidate).is_file():
                    waiting.append(candidate)
    return found


def imports(tree: ast.Module, path: str) -> Iterator[str]:
    """Yield all that may be a module in a file's import statements, as paths without `.py`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.replace(".", "/")
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").replace(".", "/")
            if node.level:
                module = str(Path(path).parents[node.level - 1] / module)
            yield module
            for alias in node.names:
                yield f"{module}/{alias.name}"


def parameters_read(root: Path, script: str) -> Names:
    """Return the parameters that a stage reads, as `section.key`.

    Followed are attributes of `load_params()` and of names assigned from it. A section that is
    used in any other way, handed to a function for instance, counts as read whole.
    """
    sections = yaml.safe_load((root / "params.yaml").read_text())
    tree = ast.parse((root / script).read_text())
    names: dict[str, tuple[str, ...]] = {}

    def key_of(node: ast.expr) -> tuple[str, ...] | None:
        if isinstance(node, ast.Call):
            called = isinstance(node.func, ast.Name) and node.func.id == "load_params"
            return () if called else None
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            key = key_of(node.value)
            if key is not None and node.attr in section(key):
                return (*key, node.attr)
        return None

    def section(key: tuple[str, ...]) -> dict[str, Any]:
        """Return what stands under a key, empty if that is a value."""
        found: Any = sections
        for name in key:
            found = found[name]
        return found if isinstance(found, dict) else {}

    # Neither a statement that only validates the file nor an assignment reads a value.
    passive = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            key = key_of(node.value)
            if key is not None and section(key):
                names[node.targets[0].id] = key
                passive |= {node.value, *node.targets}
    # Nor does `params.train` in `params.train.seed`.
    passive |= {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and key_of(node)
    }
    read: Names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and node not in passive:
            key = key_of(node)
            if key is not None:
                every = leaves(sections)
                read |= {leaf for leaf in every if leaf.split(".")[: len(key)] == list(key)}
    return read


def leaves(sections: dict[str, Any], prefix: str = "") -> Names:
    found: Names = set()
    for key, value in sections.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found.add(f"{prefix}{key}")
    return found


def outputs(stage: dict[str, Any]) -> Names:
    kinds = [stage.get(kind, []) for kind in ("outs", "metrics", "plots")]
    return {path for kind in kinds for out in kind for path in ([out] if str(out) == out else out)}


def test_the_pipeline_lists_just_what_the_stages_use() -> None:
    assert list(pipeline(ROOT)) == ["fetch", "preprocess", "train", "evaluate", "visualize"]
    assert violations(ROOT) == []


def test_every_parameter_belongs_to_a_stage() -> None:
    lists = [stage.get("params", []) for stage in pipeline(ROOT).values()]
    in_the_file = leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert {key for listed in lists for key in listed} == in_the_file
    assert all(len(listed) == len(set(listed)) for listed in lists)


def test_only_evaluate_opens_the_test_set() -> None:
    for path in ("data/raw/x_test.npy", "data/raw/y_test.npy"):
        readers = [name for name, stage in pipeline(ROOT).items() if path in stage["deps"]]
        assert readers == ["evaluate"]


@pytest.mark.parametrize(
    ("path", "old", "new", "complaint"),
    [
        (
            "stages/preprocess.py",
            "\ndef main",
            "\ndef later() -> None:\n    from stages.plots import png\n\n\ndef main",
            "preprocess: imports stages/plots/png.py, not listed",
        ),
        (
            "stages/core/data.py",
            "\nimport numpy",
            "\nfrom ..engine import kernels\nimport numpy",
            "preprocess: imports stages/engine/__init__.py, not listed",
        ),
        (
            "stages/evaluate.py",
            "    load_params()\n",
            "    print(load_params().train.seed)\n",
            "evaluate: reads train.seed, not listed",
        ),
        (
            "stages/preprocess.py",
            ".validation_size",
            ".seed",
            "preprocess: lists preprocess.validation_size, but reads it not",
        ),
        (
            "stages/preprocess.py",
            "load_params().preprocess\n",
            "load_params().preprocess\n    print(load_params())\n",
            "preprocess: reads visualize.rows, not listed",
        ),
        (
            "stages/core/optimizers.py",
            "\ndef ",
            "\nfrom stages.pipeline.params import load_params\n\n\ndef ",
            "train: stages/core/optimizers.py reads params.yaml",
        ),
        (
            "dvc.yaml",
            "- stages/engine\n",
            "- stages/plots\n",
            "train: imports stages/engine/__init__.py, not listed",
        ),
        ("dvc.yaml", "- train.l2\n", "- train.seed\n", "train: reads train.l2, not listed"),
        (
            "dvc.yaml",
            "- stages/fetch.py\n",
            "- stages/plots\n",
            "fetch: lists stages/plots, but imports it not",
        ),
        (
            "dvc.yaml",
            "- requirements.lock\n",
            "- requirements.txt\n",
            "fetch: does not list requirements.lock",
        ),
        ("dvc.yaml", "    desc: ", "    # ", "fetch: has no desc"),
    ],
)
def test_the_check_finds_what_is_planted(
    tmp_path: Path, path: str, old: str, new: str, complaint: str
) -> None:
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    text = (tmp_path / path).read_text()
    assert old in text
    (tmp_path / path).write_text(text.replace(old, new, 1))
    assert complaint in violations(tmp_path)


# Runs a stage and writes down every file of the project that it opens or puts in place, and every
# module that it loads. Writing the log opens nothing, and forked processes share it.
RECORDER = """
import json, os, sys

here, stage, log = os.getcwd(), sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
del sys.argv[1:]


def record(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path, mode, flags = arguments
        verb = "write" if flags & (os.O_WRONLY | os.O_RDWR) else "read"
    elif event == "os.rename":
        path, verb = arguments[1], "write"
    else:
        return
    path = os.path.abspath(os.fsdecode(path))
    if path.startswith(here + os.sep):
        line = json.dumps([verb, os.path.relpath(path, here)]) + "\\n"
        os.write(log, line.encode())


sys.addaudithook(record)
sys.path.insert(0, here)
if stage == "fetch":  # the rest of it needs the network and the real images
    import numpy
    import stages.pipeline.sources

    names = [f"{kind}_{part}" for part in ("train", "test") for kind in "xy"]
    arrays = {name: numpy.load(f"../raw/{name}.npy") for name in names}
    stages.pipeline.sources.fetch_mnist = lambda names: arrays
import runpy

runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
"""


def test_running_stages_open_only_files_that_are_listed(tmp_path: Path) -> None:
    project = tmp_path / "project"
    copy_project(project)
    shutil.move(project / "data" / "raw", tmp_path / "raw")
    (tmp_path / "recorder.py").write_text(RECORDER)
    for name, stage in pipeline(project).items():
        log = tmp_path / f"{name}.log"
        log.touch()
        subprocess.run(
            [sys.executable, str(tmp_path / "recorder.py"), name, str(log)],
            cwd=project,
            env=environment(WORKERS="2"),
            check=True,
            capture_output=True,
            timeout=300,
        )
        read, written = set(), set()
        for verb, path in map(json.loads, log.read_text().splitlines()):
            # A temporary file's name starts with a dot; what counts is where it is moved to. The
            # lock lies in a folder that is DVC's own.
            if not Path(path).name.startswith(".") and not set(Path(path).parts) & {
                ".dvc",
                "__pycache__",
            }:
                (written if verb == "write" else read).add(path)
        assert written == outputs(stage), name
        used = {covering(path, set(stage["deps"])) for path in read - written}
        # Nor does it open data/own while the data set is MNIST.
        assert used == {"params.yaml", *stage["deps"]} - {"requirements.lock", "data/own"}, name


def test_no_file_in_git_is_large() -> None:
    sizes = {path: (ROOT / path).stat().st_size for path in repository_files(untracked=False)}
    assert {path: size for path, size in sizes.items() if size > 2**20} == {}


def test_no_file_in_git_names_a_registrys_host() -> None:
    # Mirrors and closed networks set pip's index. Put together here, so that this file passes.
    hosts = ["pypi" + r"\.org", "python" + "hosted", "registry.npm" + "js", "npmjs" + r"\.com"]
    forbidden = re.compile("|".join(hosts), re.IGNORECASE)
    named = {
        path: forbidden.findall((ROOT / path).read_bytes().decode("latin-1"))
        for path in repository_files(untracked=False)
    }
    assert {path: names for path, names in named.items() if names} == {}
