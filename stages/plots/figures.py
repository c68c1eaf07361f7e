"""The pictures of the report: functions from arrays to matplotlib figures, and their pixels.

Everything is laid out in whole pixels, counted from a page's top left corner. The same input gives
the same pixels on every machine, as far as this goes: no setting, font, locale or time zone of the
user's has a part in it, since every setting is matplotlib's default and the fonts are the files in
its package; images are copied pixel by pixel and enlarged by whole factors; colours and the curves'
smooth edges come from integers, as matplotlib's own lines differ between processors by a shade in
a few pixels. Matplotlib writes the letters, at places that are exact in binary, and FreeType draws
them in integers; but they look as the versions of the two draw them, which the lock file pins.
`stages.plots.png` turns equal pixels into equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Digits = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Colour = tuple[int, int, int]
Point = tuple[int, int]

CLASSES = 10
SIDE = 28
MOST_UNITS = 64

# Twice the width of a README's column, for sharp screens.
WIDTH = 1800
MARGIN = 50
# A point, matplotlib's unit for the size of letters, is then one pixel.
DOTS_PER_INCH = 72

INK: Colour = (34, 34, 34)
GREY: Colour = (107, 107, 107)
LIGHT_GREY: Colour = (226, 226, 226)
WHITE: Colour = (255, 255, 255)
GREEN: Colour = (0, 128, 0)
RED: Colour = (204, 0, 0)
BLUE: Colour = (0, 68, 136)
ORANGE: Colour = (190, 80, 0)

_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_default_settings = matplotlib.rc_context(matplotlib.rcParamsDefault)


@_default_settings
def prediction_grid(
    images: Pixels, labels: Digits, predictions: Digits, rows: int, columns: int
) -> Figure:
    """Draw the first images, each under "Pred" and "True".

    Both are green where they agree; where they differ they are red and bold, and the image has
    a thick red frame.

    Args:
        images: (n, 784) brightness from 0 to 255.
        labels: (n,) classes.
        predictions: (n,) classes.
        rows: of the grid; fewer are filled if there are fewer images.
        columns: of the grid.
    """
    scale, pitch, row_height, top = 5, 173, 240, 110
    count = min(rows * columns, len(images))
    grid_width = (columns - 1) * pitch + SIDE * scale
    page_height = top + -(-count // columns) * row_height + 20
    figure = _page(max(grid_width + 2 * MARGIN, 1100), page_height)
    wrong = int(np.count_nonzero(labels[:count] != predictions[:count]))
    _heading(
        figure, f"The first {_counted(count, 'test image')}: {count - wrong} right, {wrong} wrong"
    )
    for place in range(count):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * pitch, top + row * row_height
        right = labels[place] == predictions[place]
        colour = GREEN if right else RED
        _write(figure, f"Pred: {predictions[place]}", x, y + 22, 25, colour, bold=not right)
        _write(figure, f"True: {labels[place]}", x, y + 52, 25, colour, bold=not right)
        if not right:
            _frame(figure, x, y + 82, SIDE * scale, 10, RED)
        _place(figure, _enlarge(_grey(images[place]), scale), x, y + 82)
    return figure


@_default_settings
def confident_mistakes(images: Pixels, labels: Digits, probabilities: Floats, most: int) -> Figure:
    """Draw the mistakes that the network was surest of, the surest first.

    Above each image stand the predicted class and the true one, with their probabilities.

    Args:
        images: (n, 784) brightness from 0 to 255.
        labels: (n,) classes.
        probabilities: (n, 10) of each class.
        most: how many are shown if there are that many.
    """
    predictions = probabilities.argmax(axis=1)
    mistakes = np.flatnonzero(predictions != labels)
    confidence = probabilities[mistakes, predictions[mistakes]]
    shown = mistakes[np.argsort(-confidence, kind="stable")][:most]

    columns, scale, pitch, row_height, top = 5, 9, 362, 366, 110
    figure = _page(WIDTH, top + -(-len(shown) // columns) * row_height + 20)
    which = f"The {len(shown)} most confident of " if len(shown) < len(mistakes) else ""
    _heading(figure, which + _mistakes(len(mistakes), len(labels)))
    for place, index in enumerate(shown):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * pitch, top + row * row_height
        for name, digit, colour, line in (
            ("Pred", predictions[index], RED, y + 24),
            ("True", labels[index], GREEN, y + 56),
        ):
            bold = name == "Pred"
            share = _percent(probabilities[index, digit])
            _write(figure, f"{name}: {digit}", x, line, 26, colour, bold=bold)
            _write(figure, share, x + SIDE * scale, line, 26, colour, bold=bold, align="right")
        _place(figure, _enlarge(_grey(images[index]), scale), x, y + 82)
    return figure


@_default_settings
def learning_curves(
    train_loss: Floats, validation_loss: Floats, validation_accuracy: Floats
) -> Figure:
    """Draw the losses and the validation set's error rate over the epochs.

    Args:
        train_loss: (epochs,) mean cross-entropy.
        validation_loss: (epochs,) mean cross-entropy.
        validation_accuracy: (epochs,) from 0 to 1.
    """
    figure = _page(WIDTH, 840)
    _heading(figure, "Learning curves")

    # A logarithm has no zero: a loss below the table's last digit is drawn as that digit.
    losses = np.maximum([train_loss, validation_loss], 1e-6)
    ticks = _round_numbers(losses.min(), losses.max())
    curves = [_Curve(losses[0], BLUE, dashed=True), _Curve(losses[1], ORANGE)]
    _chart(figure, 150, "Loss (cross-entropy)", ticks, curves, scale=np.log10)
    for x, name, curve in ((552, "training", curves[0]), (732, "validation", curves[1])):
        key = np.full((8, 48, 3), WHITE, np.uint8)
        _paint(key, [((2, 4), (46, 4))], 2, curve.colour, dashed=curve.dashed)
        _place(figure, key, x - 58, 141)
        _write(figure, name, x, 144, 24, curve.colour)

    errors = np.round(100 * (1 - validation_accuracy), 4)  # so that 5 % is not a trace more
    step = _round_step(max(errors.max(), 0.1), 6)
    ticks = [step * place for place in range(max(int(np.ceil(errors.max() / step)), 1) + 1)]
    lowest = int(errors.argmin())
    curves = [_Curve(errors, ORANGE, marked=lowest)]
    _chart(figure, 1050, "Validation error", ticks, curves, unit=" %")
    found = f"lowest: {errors[lowest]:.2f} % after epoch {lowest + 1}"
    _write(figure, found, WIDTH - MARGIN, 144, 24, align="right")
    return figure


@_default_settings
def confusion_matrix(labels: Digits, predictions: Digits) -> Figure:
    """Draw how many images of each digit (row) were taken for each digit (column).

    A mistake's shade is its share of its row, on a scale that ends at the largest such share, so
    that a few mistakes are seen beside a thousand right answers.

    Args:
        labels: (n,) classes.
        predictions: (n,) classes.
    """
    counts = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    images = counts.sum(axis=1)
    shares = counts / np.maximum(images, 1)[:, np.newaxis]
    mistaken = shares * ~np.eye(CLASSES, dtype=bool)
    largest = mistaken.max()
    shades = np.rint(255 * (mistaken / (largest or 1))).astype(np.int64)

    width, height, left, top = 144, 84, 170, 246
    figure = _page(WIDTH, top + CLASSES * height + 40)
    _heading(figure, _mistakes(len(labels) - int(counts.trace()), len(labels)))
    if largest:
        note = f"Shade of a mistake: its share of the row. Darkest: {_percent(largest)}"
        _write(figure, note, MARGIN, 122, 26, GREY)
    _write(figure, "Predicted", left + CLASSES * width // 2, 172, 28, align="center")
    _write(figure, "True", MARGIN, 222, 28)
    _write(figure, "Right", WIDTH - MARGIN, 222, 28, align="right")
    for row in range(CLASSES):
        y = top + row * height
        middle = y + height // 2
        _write(
            figure, f"{row}", left + row * width + width // 2, 222, 30, bold=True, align="center"
        )
        _write(figure, f"{row}", left - 40, middle, 30, bold=True, align="center")
        right = _percent(shares[row, row]) if images[row] else "none"
        _write(figure, right, WIDTH - MARGIN, middle, 28, align="right")
        for column in range(CLASSES):
            x = left + column * width
            shade = int(shades[row, column])
            fill = LIGHT_GREY if row == column else _blend(BLUE, shade)
            _place(figure, _patch(width - 4, height - 4, fill), x + 2, y + 2)
            if counts[row, column]:
                ink = WHITE if shade > 127 else INK
                words = f"{counts[row, column]}"
                _write(figure, words, x + width // 2, middle, 30, ink, align="center")
    return figure


@_default_settings
def first_layer_weights(W: Floats) -> Figure:
    """Draw the weights into each unit of the first layer as an image; at most 64 units.

    Blue pixels raise the unit when they are lit, orange ones lower it. All images have one scale,
    which leaves out the largest two hundredth of the weights: they would make the others pale.

    Args:
        W: (784, units) the first layer's weights.
    """
    units = min(W.shape[1], MOST_UNITS)
    magnitudes = np.sort(np.abs(W[:, :units]), axis=None)
    end = float(magnitudes[len(magnitudes) * 199 // 200]) or 1.0
    levels = np.rint(255 * np.clip(W[:, :units] / end, -1, 1)).astype(np.int64)

    columns, scale, pitch, top = 13, 4, 132, 180
    figure = _page(WIDTH, top + -(-units // columns) * pitch + 30)
    which = f"the first {units} of " if units < W.shape[1] else ""
    _heading(figure, f"First layer: weights of {which}its {_counted(W.shape[1], 'unit')}")
    ramp = np.arange(-255, 256).repeat(26).reshape(-1, 26).T
    _write(figure, f"-{end:.2g}", MARGIN, 128, 24)
    _place(figure, _diverging(ramp), MARGIN + 100, 115)
    _write(figure, f"+{end:.2g}", MARGIN + 100 + 511 + 16, 128, 24)
    for unit in range(units):
        row, column = divmod(unit, columns)
        x, y = MARGIN + column * pitch, top + row * pitch
        _frame(figure, x, y, SIDE * scale, 2, LIGHT_GREY)
        picture = _diverging(levels[:, unit].reshape(SIDE, SIDE))
        _place(figure, _enlarge(picture, scale), x, y)
    return figure


@_default_settings
def augmented_samples(images: Pixels, deformed: Pixels) -> Figure:
    """Draw training images, and below each what augmentation makes of it.

    Args:
        images: (n, 784) brightness from 0 to 255.
        deformed: (times, n, 784) the same images, deformed so many times.
    """
    scale, pitch, top, gap = 5, 173, 110, 40
    figure = _page((len(images) - 1) * pitch + SIDE * scale + 2 * MARGIN, top + pitch
                   + gap + len(deformed) * pitch)  # fmt: skip
    _heading(figure, "Training images, deformed in another way in each row below")
    for column, image in enumerate(images):
        x = MARGIN + column * pitch
        _place(figure, _enlarge(_grey(image), scale), x, top)
        for row, version in enumerate(deformed[:, column]):
            y = top + pitch + gap + row * pitch
            _place(figure, _enlarge(_grey(version), scale), x, y)
    return figure


@_default_settings
def sample_image(image: Pixels, label: int) -> Figure:
    """Draw one training image, large, with its label and its pixels counted.

    Args:
        image: (28, 28) brightness from 0 to 255.
        label: its class.
    """
    scale, left, top = 24, 90, 110
    figure = _page(left + SIDE * scale + MARGIN, top + SIDE * scale + 60)
    _heading(figure, f"Training image, label: {label}")
    _place(figure, _enlarge(_grey(image), scale), left, top)
    for pixel in range(0, SIDE, 5):
        middle = pixel * scale + scale // 2
        _write(figure, f"{pixel}", left + middle, top + SIDE * scale + 24, 22, align="center")
        _write(figure, f"{pixel}", left - 14, top + middle, 22, align="right")
    return figure


@_default_settings
def render(figure: Figure) -> Pixels:
    """Return the figure's pixels, (height, width, 3) red, green and blue."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


class _Curve(NamedTuple):
    """One value for each epoch, and how they look; one epoch can have a large mark."""

    values: Floats
    colour: Colour
    dashed: bool = False
    marked: int | None = None


def _chart(
    figure: Figure,
    left: int,
    title: str,
    ticks: Sequence[float],
    curves: Sequence[_Curve],
    *,
    scale: Callable[[Any], Any] = np.positive,
    unit: str = "",
) -> None:
    """Place a plot of curves over the epochs, ruled at its ticks, and write its labels."""
    width, height, top, border = 700, 540, 186, 10
    epochs = len(curves[0].values)
    low, high = scale(ticks[0]), scale(ticks[-1])

    def across(epoch: Any) -> Any:
        return np.rint(width * (epoch - 1) / max(epochs - 1, 1)).astype(int)

    def down(value: Any) -> Any:
        # The thousandth of a pixel: halves are rounded alike whatever the last bits.
        share = (scale(value) - low) / (high - low)
        return np.rint(height * (1 - share) + 0.001).astype(int)

    plot = np.full((height + 2 * border, width + 2 * border, 3), WHITE, np.uint8)
    _write(figure, title, left, 144, 28)
    for tick in ticks:
        y = down(tick)
        plot[border + y - 1 : border + y + 1, border:-border] = LIGHT_GREY
        _write(figure, f"{tick:g}{unit}", left - 20, top + y, 24, align="right")
    step = max(int(_round_step(epochs, 8)), 1)
    for epoch in range(step, epochs + 1, step):
        x = across(epoch)
        plot[border:-border, border + x - 1 : border + x + 1] = LIGHT_GREY
        _write(figure, f"{epoch}", left + x, top + height + 30, 24, align="center")
    _write(figure, "Epoch", left + width // 2, top + height + 74, 26, align="center")

    for curve in curves:
        x, y = across(np.arange(1, epochs + 1)), down(curve.values)
        points = list(zip((border + x).tolist(), (border + y).tolist(), strict=True))
        dots = [(point, point) for point in points]
        _paint(plot, [*pairwise(points), dots[-1]], 2, curve.colour, dashed=curve.dashed)
        if epochs <= 30:
            _paint(plot, dots, 4.5, curve.colour)
        if curve.marked is not None:
            _paint(plot, [dots[curve.marked]], 8, INK)
    _place(figure, plot, left - border, top - border)


def _paint(
    picture: Pixels,
    strokes: Sequence[tuple[Point, Point]],
    radius: float,
    colour: Colour,
    *,
    dashed: bool = False,
) -> None:
    """Draw strokes of a round pen, with smooth edges, into a picture.

    Each pixel is sampled at 4 x 4 places and takes the colour in the share of these that the pen
    covers. All is done in integers: with the eighth of a pixel as unit, samples lie at odd places.

    Args:
        picture: (height, width, 3), changed in place.
        strokes: from where to where, (x, y) in pixels; equal ends make a dot.
        radius: of the pen, in pixels.
        colour: of the pen.
        dashed: whether a third of the way, measured along x and y, is left out.
    """
    height, width, _ = picture.shape
    covered = np.zeros((4 * height, 4 * width), bool)
    reach = round(8 * radius)
    travelled = 0
    for (x, y), (end_x, end_y) in strokes:
        left, right = sorted((8 * x, 8 * end_x))
        top, bottom = sorted((8 * y, 8 * end_y))
        columns = slice(max(left - reach, 0) // 2, (right + reach) // 2 + 1)
        rows = slice(max(top - reach, 0) // 2, (bottom + reach) // 2 + 1)
        window = covered[rows, columns]
        sample_y, sample_x = np.ogrid[: window.shape[0], : window.shape[1]]
        from_x = 2 * (columns.start + sample_x) + 1 - 8 * x
        from_y = 2 * (rows.start + sample_y) + 1 - 8 * y

        # How far along the stroke and how far aside of it, both times its length.
        run, rise = 8 * (end_x - x), 8 * (end_y - y)
        along, aside = from_x * run + from_y * rise, from_x * rise - from_y * run
        square = run**2 + rise**2
        inked = from_x**2 + from_y**2 <= reach**2
        inked |= (along > 0) & (along < square) & (aside**2 <= reach**2 * square)
        if dashed:
            way = abs(run) + abs(rise)
            inked &= (travelled + way * along // max(square, 1)) % 144 < 96
            travelled += way
        window |= inked
    share = covered.reshape(height, 4, width, 4).sum(axis=(1, 3))[..., np.newaxis]
    picture[:] = picture + (np.array(colour) - picture) * share // 16


def _page(width: int, height: int) -> Figure:
    size = width / DOTS_PER_INCH, height / DOTS_PER_INCH
    return Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor="white")


def _from_top(figure: Figure, y: Any) -> Any:
    """Return a height in pixels from the bottom, as matplotlib counts."""
    return round(figure.bbox.height) - y


def _heading(figure: Figure, words: str) -> None:
    _write(figure, words, MARGIN, 60, 38, bold=True)


def _write(
    figure: Figure,
    words: str,
    x: int,
    y: int,
    size: int,
    colour: Colour = INK,
    *,
    bold: bool = False,
    align: Literal["left", "center", "right"] = "left",
) -> None:
    """Write at x; y is the middle of the letters above their baseline."""
    figure.text(
        x,
        _from_top(figure, y),
        words,
        color="#{:02x}{:02x}{:02x}".format(*colour),
        fontproperties=FontProperties(
            fname=_FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size=size
        ),
        horizontalalignment=align,
        verticalalignment="center_baseline",
        transform=IdentityTransform(),
    )


def _place(figure: Figure, picture: Pixels, left: int, top: int) -> None:
    """Copy a picture (height, width, 3) onto the page, pixel by pixel."""
    figure.figimage(picture, left, _from_top(figure, top + len(picture)), origin="upper")


def _frame(figure: Figure, left: int, top: int, side: int, thickness: int, colour: Colour) -> None:
    """Place the square on which a picture of this side will look framed."""
    outer = side + 2 * thickness
    _place(figure, _patch(outer, outer, colour), left - thickness, top - thickness)


def _patch(width: int, height: int, colour: Colour) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def _enlarge(picture: Pixels, scale: int) -> Pixels:
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def _grey(image: Pixels) -> Pixels:
    """Return an image's brightness as red, green and blue, (28, 28, 3)."""
    return image.reshape(SIDE, SIDE, 1).repeat(3, axis=2)


def _blend(colour: Colour, level: int) -> Colour:
    """Return the colour that is `level` 255ths of the way from white to `colour`."""
    red, green, blue = (
        start + (end - start) * level // 255 for start, end in zip(WHITE, colour, strict=True)
    )
    return red, green, blue


def _diverging(levels: NDArray[np.int64]) -> Pixels:
    """Return colours for levels from -255 (orange) through 0 (white) to 255 (blue)."""
    table = [_blend(ORANGE, -level) for level in range(-255, 0)]
    table += [_blend(BLUE, level) for level in range(256)]
    return np.array(table, np.uint8)[levels + 255]


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def _mistakes(count: int, images: int) -> str:
    return f"{_counted(count, 'mistake')} on {_counted(images, 'test image')}"


def _percent(share: float) -> str:
    """Return a share of 1 as a percentage that is not rounded to none or all."""
    if 0 < share < 0.001:
        return "<0.1 %"
    if 0.999 < share < 1:
        return ">99.9 %"
    return f"{100 * float(share):.1f} %"


_ROUND = [float(f"{digit}e{power}") for power in range(-7, 40) for digit in (1, 2, 5)]


def _round_step(span: float, most: int) -> float:
    """Return the smallest of ..., 1, 2, 5, 10, 20, ... that takes at most `most` steps."""
    return next(number for number in _ROUND if number * most >= span)


def _round_numbers(low: float, high: float) -> list[float]:
    """Return round numbers from one at or below `low` to one above `high`, ten at most or so."""
    for numbers in (_ROUND, _ROUND[::3]):
        first = max(place for place, number in enumerate(numbers) if number <= low)
        last = min(place for place, number in enumerate(numbers) if number > high)
        if last - first < 10:
            break
    return numbers[first : last + 1]
