"""docs/walkthrough.ipynb runs from nothing and gives the outputs that are committed with it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import nbformat
import numpy as np
import pytest

from stages.core import Array
from stages.pipeline.command import InputError
from stages.pipeline.sources import MNIST
from tests.checks.small_project import ROOT, environment
from tools import walkthrough

NOTEBOOK = walkthrough.NOTEBOOK
LIMIT = 600_000


def write_data(folder: Path, mnist: dict[str, Array]) -> None:
    (folder / "data/raw").mkdir(parents=True)
    for name, array in mnist.items():
        np.save(folder / f"data/raw/{name}.npy", array)


def users_settings(home: Path) -> dict[str, str]:
    """Write settings that would change or break the notebook, and return how shells name them."""
    startup = home / "ipython/profile_default/startup/startup.py"
    kernel = home / "jupyter/kernels/python3/kernel.json"
    style = home / "matplotlib/matplotlibrc"
    for path, text in (
        (startup, "print('hello from the startup file')"),
        (kernel, json.dumps({"argv": ["false"], "display_name": "odd", "language": "python"})),
        (style, "image.cmap: hot\nfigure.facecolor: red\n"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return {
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_PATH": str(home / "jupyter"),
        "JUPYTER_DATA_DIR": str(home / "jupyter"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "MATPLOTLIBRC": str(style),
        "MPLBACKEND": "svg",
        "PYTHONSTARTUP": str(startup),
    }


def pixels_taken_out(notebook: Any) -> list[Array]:
    """Remove the images from a notebook and return their pixels."""
    return [
        matplotlib.image.imread(io.BytesIO(base64.b64decode(output["data"].pop("image/png"))))
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def test_it_runs_and_gives_the_committed_outputs_whatever_the_users_settings(
    tmp_path: Path, mnist: dict[str, Array]
) -> None:
    project = tmp_path / "project"
    write_data(project, mnist)
    for folder in ("stages", "tools"):
        (project / folder).symlink_to(ROOT / folder)
    (project / NOTEBOOK).parent.mkdir()
    shutil.copy(ROOT / NOTEBOOK, project / NOTEBOOK)
    before = (project / NOTEBOOK).read_bytes()
    assert len(before) < LIMIT

    subprocess.run(
        [sys.executable, "-m", "tools.walkthrough"],
        cwd=project,
        env=environment(**users_settings(tmp_path / "home")),
        check=True,
        capture_output=True,
        timeout=600,
    )
    committed, now = (
        nbformat.reads(content.decode(), 4)
        for content in (before, (project / NOTEBOOK).read_bytes())
    )
    images = [pixels_taken_out(notebook) for notebook in (committed, now)]
    assert now == committed
    # Lines of a plot differ between processors by a shade in a few pixels.
    for old, new in zip(*images, strict=True):
        assert old.shape == new.shape
        assert np.abs(old - new).mean() < 0.01


def test_it_names_every_section_of_the_original_and_every_function() -> None:
    notebook = nbformat.reads((ROOT / NOTEBOOK).read_text(encoding="utf-8"), 4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for name in (
        "Import MNIST Dataset", "Preparing Dataset for Maths", "W&B initialize",
        "Forward Propagation", "ReLU", "SoftMax", "One_Hot", "Cost Function", "Error Calculation",
        "Back Propagation", "Training", "Evaluating", "init_params", "Softmax", "forward_prop",
        "one_hot", "derive_ReLU", "back_prop", "update_params", "get_predictions", "get_accuracy",
        "gradient_descent", "visualize_50_samples",
    ):  # fmt: skip
        assert name in prose, name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with files where the images should be."""
    write_data(tmp_path, dict.fromkeys(MNIST, np.zeros(1)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["walkthrough"])
    return tmp_path


def save(*cells: str) -> bytes:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NOTEBOOK.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, NOTEBOOK)
    return NOTEBOOK.read_bytes()


@pytest.mark.parametrize(
    ("cells", "refusal"),
    [
        (("1 + 1", "1 / 0"), r"^docs/walkthrough.ipynb: a cell fails: ZeroDivisionError: "),
        (
            ("import warnings", "warnings.warn('too old')"),
            r"(?s)^docs/walkthrough.ipynb: cell 2 complains: .*too old",
        ),
    ],
)
def test_a_cell_that_fails_leaves_the_file_as_it_was(
    folder: Path, cells: tuple[str, ...], refusal: str
) -> None:
    before = save(*cells)
    with pytest.raises(InputError, match=refusal):
        walkthrough.main()
    assert NOTEBOOK.read_bytes() == before


def test_missing_and_damaged_files_are_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^docs/walkthrough.ipynb: no such file"):
        walkthrough.main()
    save("1")
    NOTEBOOK.write_text("{}")
    with pytest.raises(InputError, match=r"^docs/walkthrough.ipynb: not a readable notebook"):
        walkthrough.main()
    save("1")
    Path("data/raw/y_test.npy").unlink()
    with pytest.raises(InputError, match=r"^data/raw/y_test.npy: no such file; 'dvc repro'"):
        walkthrough.main()
