"""Write reports/draw.html: a page to draw a digit on, with the network in it, for any browser."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from stages.core import Array
from stages.core.exact import ExactnessError
from stages.core.network import Parameters
from stages.core.prediction import quantise
from stages.pipeline.command import InputError, Parser, run
from stages.pipeline.datasets import load_description
from stages.pipeline.files import atomic_write
from stages.pipeline.model_file import MODEL, load_model
from stages.pipeline.schemas import Scored, load_scored

PAGE = Path("reports/draw.html")
SOURCES = Path(__file__).with_suffix("")
SCRIPTS = ("network.js", "ink.js", "page.js")
MISTAKES = 10


def main() -> None:
    """Write the page of the model in the workspace.

    Raises:
        InputError: the model or the scored test set is missing or damaged, or has weights that
            exact arithmetic does not take.
    """
    Parser(prog="python -m tools.draw", description=__doc__).parse_args()
    _, shape, classes = description = load_description()
    parameters = load_model(MODEL, description.pixels, len(classes))
    try:
        content = page(parameters, load_scored(), shape, classes)
    except ExactnessError as error:
        raise InputError(f"{MODEL}: {error}") from None
    with atomic_write(PAGE) as file:
        file.write(content.encode())
    print(f"{PAGE}: {PAGE.stat().st_size / 1000:.0f} kB; open it in any browser")


def page(
    parameters: Parameters, scored: Scored, shape: tuple[int, int], classes: tuple[str, ...]
) -> str:
    """Return the page.

    Raises:
        ExactnessError: a weight is not finite or too large.
    """
    typical, mistakes = examples(scored)
    data = {
        **network(parameters),
        "shape": shape,
        "classes": classes,
        "typical": [example(scored, index) for index in typical],
        "mistakes": [example(scored, index) for index in mistakes],
    }
    units = [shape[0] * shape[1], *(b.size for _, b in parameters)]
    return Template(source("page.html")).substitute(
        style=source("page.css").rstrip(),
        script="\n".join(map(source, SCRIPTS)).rstrip(),
        data=json.dumps(data, separators=(",", ":")).replace("<", r"\u003c"),
        height=shape[0],
        width=shape[1],
        accuracy=f"{(scored.predictions == scored.labels).mean():.2%}",
        architecture="-".join(map(str, units)),
    )


def source(name: str) -> str:
    """Return one of the files that make the page."""
    return (SOURCES / name).read_text(encoding="utf-8")


def network(parameters: Parameters) -> dict[str, Any]:
    """Return the network as network.js takes it, its arrays in base64.

    Raises:
        ExactnessError: a weight is not finite or too large.
    """
    layers, arithmetic = quantise(parameters)
    outputs = [*arithmetic.inputs[1 : len(layers)], None]
    return {
        "quantum": arithmetic.inputs[0].quantum,
        "layers": [
            {"W": encoded(W.astype("<f4")), "b": encoded(b.astype("<f4"))}
            | ({"quantum": form.quantum, "saturation": form.saturation} if form else {})
            for (W, b), form in zip(layers, outputs, strict=True)
        ],
    }


def examples(scored: Scored) -> tuple[list[int], list[int]]:
    """Return the first image of each class that was recognised and the most confident mistakes."""
    right = scored.predictions == scored.labels
    _, first = np.unique(scored.labels[right], return_index=True)
    wrong = np.flatnonzero(~right)
    order = np.argsort(-scored.probabilities[wrong].max(axis=1), kind="stable")
    return np.flatnonzero(right)[first].tolist(), wrong[order][:MISTAKES].tolist()


def example(scored: Scored, index: int) -> dict[str, Any]:
    """Return one image of the test set as page.js takes it."""
    return {
        "pixels": encoded(scored.images[index]),
        "label": int(scored.labels[index]),
        "prediction": int(scored.predictions[index]),
    }


def encoded(array: Array) -> str:
    """Return an array's bytes in base64."""
    return base64.b64encode(array.tobytes()).decode()


if __name__ == "__main__":
    run(main)
