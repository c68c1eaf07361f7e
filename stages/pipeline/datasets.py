"""The sets of labelled images, each in two files, x_NAME.npy and y_NAME.npy; x memory-mapped.

`data/raw/dataset.json` describes them: whatever needs the images' shape or the classes' names reads
them there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from stages.core.data import MOST_CLASSES, DataError, LabelledImages, check
from stages.pipeline.command import InputError
from stages.pipeline.files import damaged, load_array, load_bytes, save_json

RAW = Path("data/raw")
PROCESSED = Path("data/processed")
DESCRIPTION = RAW / "dataset.json"
LARGEST_SIDE = 64
LONGEST_NAME = 40


class Description(NamedTuple):
    """What a data set's images are.

    Attributes:
        name: of the data set.
        shape: (height, width) of an image in pixels.
        classes: the names of the classes, in the order of their labels 0, 1, 2, ...
    """

    name: str
    shape: tuple[int, int]
    classes: tuple[str, ...]

    @property
    def pixels(self) -> int:
        """Pixels of an image, the network's inputs."""
        return self.shape[0] * self.shape[1]


MNIST = Description("mnist", (28, 28), tuple("0123456789"))
FASHION_MNIST = Description(
    "fashion_mnist",
    (28, 28),
    ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
     "Ankle boot"),
)  # fmt: skip


def _printable(text: str) -> str:
    if not (text.isprintable() and text.strip() == text):
        raise ValueError("must be printable, without spaces around it")
    return text


def _different(names: list[str]) -> list[str]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} is given twice")
    return names


Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_printable)]
ClassNames = Annotated[
    list[Name], Field(min_length=2, max_length=MOST_CLASSES), AfterValidator(_different)
]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: Name
    shape: Annotated[list[Side], Field(min_length=2, max_length=2)]
    classes: ClassNames


def save_description(description: Description, path: Path = DESCRIPTION) -> None:
    """Write the description of the data set."""
    save_json(path, description._asdict())


def load_description(path: Path = DESCRIPTION) -> Description:
    """Read the description of the data set that was fetched.

    Raises:
        InputError: the file is missing or damaged.
    """
    return parse_description(load_bytes(path), path)


def parse_description(content: bytes, name: object) -> Description:
    """Return the description that a JSON file holds.

    Args:
        content: of the file.
        name: what a refusal calls it.

    Raises:
        InputError: a key is missing, or a value is not allowed.
    """
    try:
        document = _Document.model_validate_json(content)
    except ValidationError as error:
        raise damaged(name, error) from None
    height, width = document.shape
    return Description(document.name, (height, width), tuple(document.classes))


def load_raw(name: str) -> LabelledImages:
    """Read a set as it was fetched, images (samples, height, width) uint8 and labels (samples,).

    Raises:
        InputError: a file is missing or damaged, or the two are no set of labelled images.
    """
    description = load_description()
    return _load(RAW, name, description.shape, len(description.classes))


def load_processed(name: str) -> LabelledImages:
    """Read a set that the preprocess stage wrote, with its rows of pixels as images again.

    Raises:
        InputError: as for `load_raw`.
    """
    description = load_description()
    images, labels = _load(PROCESSED, name, (description.pixels,), len(description.classes))
    return images.reshape(-1, *description.shape), labels


def _load(folder: Path, name: str, shape: tuple[int, ...], classes: int) -> LabelledImages:
    path = folder / f"x_{name}.npy"
    images, labels = load_array(path, memory_map=True), load_array(folder / f"y_{name}.npy")
    try:
        check(images, labels, shape, classes)
    except DataError as error:
        raise InputError(f"{path}, y_{name}.npy: {error}") from None
    return images, labels
