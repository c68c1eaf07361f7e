"""Say which digit is written on each image: any that Pillow reads, one digit on each.

Ink is told from paper, dark on light or light on dark, and prepared as MNIST's digits were.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.pipeline import threads  # noqa: F401  (before NumPy)

# isort: split
import numpy as np

from stages.core import Array
from stages.core.exact import ExactnessError
from stages.core.prediction import classify
from stages.pipeline.command import InputError, Parser, printable, run
from stages.pipeline.datasets import Description, load_description
from stages.pipeline.model_file import MODEL, load_model
from tools.handwriting import NoInkError, prepared
from tools.images import grey_levels, load_image

UNSURE = 0.9
"""The probability below which the network is called unsure: of the default network, 3 % of the
validation images and two thirds of its mistakes."""


class Prediction(NamedTuple):
    """What the network makes of an image.

    Attributes:
        file: its name as it was given.
        seen: the prepared image, (height, width) uint8.
        probabilities: of each class, (classes,).
    """

    file: str
    seen: Array
    probabilities: Array

    @property
    def ranking(self) -> list[int]:
        """The classes, the most probable first."""
        return [int(digit) for digit in np.argsort(-self.probabilities, kind="stable")]

    @property
    def unsure(self) -> bool:
        """Whether the best probability is low."""
        return bool(self.probabilities.max() < UNSURE)


def main() -> None:
    """Print what is written on each image that the command line names.

    Raises:
        InputError: there is no image or no model.
    """
    parser = Parser(prog="python -m tools.predict", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="an image file")
    parser.add_argument("--json", action="store_true", help="print all probabilities as JSON")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE",
        help="save a PNG that shows each image, what the network saw of it, and the probabilities",
    )  # fmt: skip
    arguments = parser.parse_args()
    if not arguments.images:
        raise InputError('no image: make predict IMAGES="photo.jpg scans/*.png"')
    if arguments.picture:
        check_picture(arguments.picture, arguments.images)
    description = load_description()
    results = predict(arguments.images, description)
    predictions = [result for result in results.values() if isinstance(result, Prediction)]
    problems = [result for result in results.values() if isinstance(result, str)]
    if arguments.json:
        print(as_json(results, description.classes))
    elif predictions:
        print(as_table(predictions, description.classes))
    for problem in problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    if arguments.picture and predictions:
        from tools.sheet import save_sheet  # which imports matplotlib: half a second

        save_sheet(arguments.picture, predictions, description.classes)
    if problems:
        sys.exit(1)


def check_picture(path: Path, images: Sequence[str]) -> None:
    """Refuse to write the picture over an image.

    Raises:
        InputError: its name is no PNG's, or that of one of the images.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"--picture: {path}: must end with .png")
    if path.exists() and any(Path(file).exists() and path.samefile(file) for file in images):
        raise InputError(f"--picture: {path}: is one of the images: must be another file")


def predict(files: Sequence[str], description: Description) -> dict[str, Prediction | str]:
    """Classify the images in files.

    Returns:
        For each file its prediction, or what is wrong if it cannot be read or is blank.

    Raises:
        InputError: the model is missing or damaged.
    """
    model = load_model(MODEL, description.pixels, len(description.classes))
    seen: dict[str, Array] = {}
    results: dict[str, Prediction | str] = dict.fromkeys(files, "")
    for file in results:
        try:
            seen[file] = prepared(grey_levels(load_image(Path(file))), description.shape)
        except NoInkError:
            results[file] = f"{file}: blank: nothing is written on it"
        except InputError as error:
            results[file] = str(error)
    if seen:
        try:
            _, probabilities = classify(model, np.stack(list(seen.values())))
        except ExactnessError as error:
            raise InputError(f"{MODEL}: {error}") from None
        for (file, image), row in zip(seen.items(), probabilities, strict=True):
            results[file] = Prediction(file, image, row)
    return results


def as_table(predictions: Sequence[Prediction], classes: Sequence[str]) -> str:
    """Return a line for each prediction, under a heading."""
    rows = [("file", "digit", "probability", "runner-up", "")]
    for prediction in predictions:
        best, second = prediction.ranking[:2]
        rows.append((
            printable(prediction.file), classes[best], _percent(prediction, best),
            f"{classes[second]} ({_percent(prediction, second)})",
            "unsure" if prediction.unsure else "",
        ))  # fmt: skip
    wide = max(len(row[0]) for row in rows)
    return "\n".join(
        f"{file:{wide}}  {digit:5}  {probability:>11}  {runner_up:12} {unsure}".rstrip()
        for file, digit, probability, runner_up, unsure in rows
    )


def as_json(results: Mapping[str, Prediction | str], classes: Sequence[str]) -> str:
    """Return what became of each file as a JSON list, in the files' order."""
    entries: list[dict[str, Any]] = []
    for file, result in results.items():
        if isinstance(result, str):
            entries.append({"file": file, "error": result})
            continue
        best, second = result.ranking[:2]
        entries.append({
            "file": file,
            "digit": classes[best],
            "probability": float(result.probabilities[best]),
            "runner_up": classes[second],
            "unsure": result.unsure,
            "probabilities": dict(zip(classes, result.probabilities.tolist(), strict=True)),
        })  # fmt: skip
    return json.dumps(entries, indent=2)


def _percent(prediction: Prediction, digit: int) -> str:
    percent = 100 * float(prediction.probabilities[digit])
    if percent < 0.1:
        return "<0.1 %"
    return ">99.9 %" if 99.9 < percent < 100 else f"{percent:.1f} %"


if __name__ == "__main__":
    run(main, single=False)
