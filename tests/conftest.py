"""What several test modules share."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest

from stages.pipeline import threads  # noqa: F401  (before NumPy)

# isort: split
import numpy as np

from stages.core import Array
from stages.pipeline.sources import MNIST, fetch_mnist, verify

# The same examples in every run: a test that passed does not fail elsewhere by chance.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile("repeatable")


# In the background of a script (`make test &`) Ctrl-C is ignored, also by all that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    # OpenBLAS's kernels for AVX-512 at times raise this flag for a batch of one row although
    # all values are finite; a result that is not finite fails its test anyway.
    config.addinivalue_line(
        "filterwarnings", "ignore:invalid value encountered in matmul:RuntimeWarning"
    )


@pytest.fixture(scope="session")
def tensorflow() -> ModuleType:
    """TensorFlow, which takes seconds to import, without its greetings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    import tensorflow

    return tensorflow


@pytest.fixture(scope="session")
def mnist() -> dict[str, Array]:
    """The real MNIST: from data/raw if a pipeline has run here, else downloaded."""
    raw = Path(__file__).parents[1] / "data" / "raw"
    if all((raw / f"{name}.npy").exists() for name in MNIST):
        arrays = {name: np.load(raw / f"{name}.npy") for name in MNIST}
        verify(arrays)
        return arrays
    return fetch_mnist(["pypi"])
