"""Run docs/walkthrough.ipynb from top to bottom and save it with its outputs: `make walkthrough`.

Two runs save the same bytes: nothing that changes from run to run is kept, and neither the user's
settings of Jupyter, IPython and matplotlib nor the shell's take part.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.pipeline.command import InputError, Parser, run
from stages.pipeline.files import atomic_write, load_bytes
from stages.pipeline.sources import MNIST

NOTEBOOK = Path("docs/walkthrough.ipynb")
LONGEST_CELL = 600  # seconds


def main() -> None:
    """Run the notebook in this folder and save it.

    Raises:
        InputError: the notebook or the images are missing, or a cell fails; the file stays.
    """
    Parser(prog="python -m tools.walkthrough", description=__doc__).parse_args()
    content = executed(load_bytes(NOTEBOOK))
    with atomic_write(NOTEBOOK) as file:
        file.write(content)
    print(f"{NOTEBOOK}: {len(content):,} bytes")


def executed(content: bytes) -> bytes:
    """Return a notebook with the outputs that its cells have in the current folder.

    Args:
        content: the notebook file's bytes.

    Raises:
        InputError: it is no notebook, the images are missing, or a cell fails or complains.
    """
    for name in MNIST:
        if not (path := Path(f"data/raw/{name}.npy")).is_file():
            raise InputError(f"{path}: no such file; 'dvc repro' makes it")
    with settings_aside():
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError
        from traitlets.config import Config

        try:
            notebook = nbformat.reads(  # type: ignore[no-untyped-call]
                content.decode(), nbformat.current_nbformat
            )
        except Exception as error:  # nbformat raises anything for a damaged file
            reason = str(error).split("\n", 1)[0][:80]
            raise InputError(f"{NOTEBOOK}: not a readable notebook ({reason})") from None
        client = NotebookClient(
            notebook,
            timeout=LONGEST_CELL,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            config=Config(KernelManager={"transport": "ipc"}),  # not for others on this machine
            resources={"metadata": {"path": "."}},
        )
        try:
            client.execute()
        except CellExecutionError as error:
            raise InputError(f"{NOTEBOOK}: a cell fails: {error.ename}: {error.evalue}") from None
        except (RuntimeError, TimeoutError) as error:  # the kernel has died, or takes too long
            reason = str(error).split("\n", 1)[0]
            raise InputError(f"{NOTEBOOK}: a cell fails: {reason}") from None
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise InputError(f"{NOTEBOOK}: cell {number} complains: {output.text.strip()}")
    # Python's version, and what editors add.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    text: str = nbformat.writes(notebook)  # type: ignore[no-untyped-call]
    return f"{text.rstrip()}\n".encode()


@contextmanager
def settings_aside() -> Iterator[None]:
    """Give what is started meanwhile no settings but its own, and one thread."""
    before = dict(os.environ)
    foreign = ("JUPYTER", "IPYTHON", "IPYKERNEL", "MPL", "MATPLOTLIB", "PYTHON")
    with tempfile.TemporaryDirectory() as folder:
        for name in before:
            if name.startswith(foreign):
                del os.environ[name]
        os.environ |= {
            "JUPYTER_CONFIG_DIR": folder,
            "JUPYTER_DATA_DIR": folder,
            "JUPYTER_RUNTIME_DIR": folder,
            "IPYTHONDIR": folder,
            "MPLCONFIGDIR": folder,
            "OPENBLAS_NUM_THREADS": "1",
        }
        try:
            # The kernel would report that it is building the cache of fonts.
            import matplotlib.font_manager  # noqa: F401

            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


if __name__ == "__main__":
    run(main)
