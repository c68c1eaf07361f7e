"""A page that shows images, what the network saw of each, and the probabilities it gave."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from stages.pipeline.files import atomic_write
from stages.plots import png
from stages.plots.drawing import (
    BLUE,
    GREY,
    INK,
    LIGHT_GREY,
    MARGIN,
    ORANGE,
    WIDTH,
    Pixels,
    default_settings,
    enlarge,
    grey,
    heading,
    note,
    page,
    patch,
    percent,
    place,
    render,
    shortened,
    write,
)
from tools.images import grey_levels, load_image
from tools.predict import Prediction

MOST = 40
"""Images on a page."""
COLUMNS, COLUMN, ROW, TOP, SIZE = 2, (WIDTH - 2 * MARGIN) // 2, 340, 150, 224
BARS_LEFT, BARS, MOST_BARS = 2 * (SIZE + 20), 340, 10
NAMES, PITCH = 130, SIZE // MOST_BARS  # width of the classes' names, height of a bar's line


def save_sheet(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Write the page as PNG, with the first `MOST` images.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as file:
        file.write(png.encode(render(sheet(predictions[:MOST], classes))))
    if len(predictions) > MOST:
        print(f"{path}: shows the first {MOST} of {len(predictions)} images")


@default_settings
def sheet(predictions: Sequence[Prediction], classes: Sequence[str]) -> Figure:
    """Draw the page."""
    rows = -(-len(predictions) // COLUMNS)
    figure = page(WIDTH, TOP + ROW * rows)
    heading(figure, "What the network saw")
    words = "Each image, as it was prepared for the network, and the most probable classes."
    note(figure, words, 110)
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, COLUMNS)
        _draw(figure, prediction, classes, MARGIN + COLUMN * column, TOP + ROW * row)
    return figure


def _draw(
    figure: Figure, prediction: Prediction, classes: Sequence[str], left: int, top: int
) -> None:
    best = prediction.ranking[0]
    colour = ORANGE if prediction.unsure else INK
    verdict = f"{classes[best]}, {percent(prediction.probabilities[best])}"
    verdict += ", unsure" if prediction.unsure else ""
    name = shortened(Path(prediction.file).name, 24, BARS_LEFT - 40)
    write(figure, name, left, top + 20, 24)
    verdict = shortened(verdict, 24, BARS)
    write(figure, verdict, left + BARS_LEFT, top + 20, 24, colour, bold=True)
    top += 50
    _place_within(figure, _thumbnail(prediction.file), left, top)
    seen = enlarge(grey(prediction.seen), SIZE // max(prediction.seen.shape))
    _place_within(figure, seen, left + SIZE + 20, top)

    for number, digit in enumerate(sorted(prediction.ranking[:MOST_BARS])):
        y, start = top + PITCH * number, left + BARS_LEFT + NAMES
        bar = patch(BARS - NAMES, PITCH - 4, LIGHT_GREY)
        filled = round(bar.shape[1] * float(prediction.probabilities[digit]))
        bar[:, :filled] = colour if digit == best else BLUE
        place(figure, bar, start, y)
        words, shade = shortened(classes[digit], 18, NAMES - 16), colour if digit == best else GREY
        write(figure, words, start - 10, y + PITCH // 2 - 2, 18, shade, align="right")


def _thumbnail(file: str) -> Pixels:
    """Return an image (height, width, 3) that fits into a square of `SIZE`."""
    image = load_image(Path(file))
    if image.mode[0] in "IF" or image.has_transparency_data:
        image = Image.fromarray(grey_levels(image).clip(0, 255).astype(np.uint8))
    image = image.convert("RGB")
    scale = SIZE / max(image.size)
    return np.asarray(image.resize([max(1, round(side * scale)) for side in image.size]))


def _place_within(figure: Figure, picture: Pixels, left: int, top: int) -> None:
    height, width = picture.shape[:2]
    place(figure, picture, left + (SIZE - width) // 2, top + (SIZE - height) // 2)
