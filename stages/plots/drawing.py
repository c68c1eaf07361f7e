"""Drawing on pages of whole pixels, counted from the top left corner: text, pixels, strokes.

The same input gives the same pixels on every machine, as far as this goes: no setting, font, locale
or time zone of the user's takes part, since every setting is matplotlib's default and the fonts are
the files in its package; images are copied pixel by pixel and enlarged by whole factors; colours
and smooth edges come from integers, as matplotlib's own lines differ between processors by a shade
in a few pixels. Matplotlib writes the text, at places that are exact in binary, and FreeType draws
it in integers; but its look depends on the versions of the two, which the lock file pins.
`stages.plots.png` turns equal pixels into equal bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]
Colour = tuple[int, int, int]
Point = tuple[int, int]

WIDTH = 1800
"""Of a wide page: twice the width of a README's column, for sharp screens."""
MARGIN = 50
DOTS_PER_INCH = 72
"""A point, matplotlib's unit for the size of letters, is then one pixel."""

INK: Colour = (34, 34, 34)
GREY: Colour = (107, 107, 107)
LIGHT_GREY: Colour = (226, 226, 226)
WHITE: Colour = (255, 255, 255)
GREEN: Colour = (0, 128, 0)
RED: Colour = (204, 0, 0)
BLUE: Colour = (0, 68, 136)
ORANGE: Colour = (190, 80, 0)

_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
default_settings = matplotlib.rc_context(matplotlib.rcParamsDefault)


def page(width: int, height: int) -> Figure:
    """Return an empty page."""
    size = width / DOTS_PER_INCH, height / DOTS_PER_INCH
    return Figure(figsize=size, dpi=DOTS_PER_INCH, facecolor="white")


@default_settings
def render(figure: Figure) -> Pixels:
    """Return the page's pixels, (height, width, 3) red, green and blue."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def write(
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
        fontproperties=_font(size, bold),
        horizontalalignment=align,
        verticalalignment="center_baseline",
        transform=IdentityTransform(),
        parse_math=False,
    )


def heading(figure: Figure, words: str) -> None:
    """Write a page's first line."""
    write(figure, words, MARGIN, 60, 38, bold=True)


def note(figure: Figure, words: str, y: int) -> None:
    """Write an explanation, in as many lines as it needs, from y down."""
    characters = int((figure.bbox.width - 2 * MARGIN) / 14)
    for line, text in enumerate(textwrap.wrap(words, characters)):
        write(figure, text, MARGIN, y + 34 * line, 24, GREY)


def text_width(words: str, size: int, *, bold: bool = False) -> int:
    """Return how many pixels wide words are."""
    width, _, _ = text_to_path.get_text_width_height_descent(words, _font(size, bold), False)
    return int(np.ceil(width))


def fitting(lines: Sequence[str], size: int, width: int) -> int:
    """Return the largest size of bold letters, at most `size`, at which lines fit a width."""
    widest = max(text_width(line, size, bold=True) for line in lines)
    return max(min(size, size * width // widest), 8)


def shortened(words: str, size: int, width: int) -> str:
    """Return words, or as much of them as fits a width in bold letters."""
    if text_width(words, size, bold=True) <= width:
        return words
    while words and text_width(f"{words}\N{HORIZONTAL ELLIPSIS}", size, bold=True) > width:
        words = words[:-1]
    return f"{words}\N{HORIZONTAL ELLIPSIS}"


def _font(size: int, bold: bool) -> FontProperties:
    file = _FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return FontProperties(fname=file, size=size)


def place(figure: Figure, picture: Pixels, left: int, top: int) -> None:
    """Copy a picture (height, width, 3) onto the page, pixel by pixel."""
    figure.figimage(picture, left, _from_top(figure, top + len(picture)), origin="upper")


def frame(
    figure: Figure, left: int, top: int, size: tuple[int, int], thickness: int, colour: Colour
) -> None:
    """Place a patch that frames a picture of this size (height, width), to be placed on it."""
    height, width = size
    outer = patch(width + 2 * thickness, height + 2 * thickness, colour)
    place(figure, outer, left - thickness, top - thickness)


def _from_top(figure: Figure, y: Any) -> Any:
    """Return a height in pixels from the bottom, as matplotlib counts."""
    return round(figure.bbox.height) - y


def patch(width: int, height: int, colour: Colour) -> Pixels:
    """Return a picture of one colour."""
    return np.full((height, width, 3), colour, np.uint8)


def enlarge(picture: Pixels, scale: int) -> Pixels:
    """Return a picture whose pixels have become squares."""
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def grey(image: Pixels) -> Pixels:
    """Return an image (height, width) as red, green and blue."""
    return image[..., np.newaxis].repeat(3, axis=2)


def blend(colour: Colour, level: int) -> Colour:
    """Return the colour that is `level` 255ths of the way from white to `colour`."""
    red, green, blue = (
        start + (end - start) * level // 255 for start, end in zip(WHITE, colour, strict=True)
    )
    return red, green, blue


def diverging(levels: NDArray[np.int64]) -> Pixels:
    """Return colours for levels from -255 (orange) through 0 (white) to 255 (blue)."""
    return _diverging_colours()[levels + 255]


@cache
def _diverging_colours() -> Pixels:
    table = [blend(ORANGE, -level) for level in range(-255, 0)]
    table += [blend(BLUE, level) for level in range(256)]
    return np.array(table, np.uint8)


def paint(
    picture: Pixels,
    strokes: Sequence[tuple[Point, Point]],
    radius: float,
    colour: Colour,
    *,
    dashed: bool = False,
) -> None:
    """Draw strokes of a round pen, with smooth edges, into a picture.

    Each pixel is sampled at 4 x 4 places and takes the colour in the fraction of these that the pen
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
    fraction = covered.reshape(height, 4, width, 4).sum(axis=(1, 3))[..., np.newaxis]
    picture[:] = picture + (np.array(colour) - picture) * fraction // 16


def counted(count: int, thing: str) -> str:
    """Return a number of things in words."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def percent(fraction: float) -> str:
    """Return a fraction of 1 as a percentage that is not rounded to none or all."""
    if 0 < fraction < 0.001:
        return "<0.1 %"
    if 0.999 < fraction < 1:
        return ">99.9 %"
    return f"{100 * float(fraction):.1f} %"


def round_step(span: float, most: int) -> float:
    """Return the smallest of ..., 1, 2, 5, 10, 20, ... that takes at most `most` steps."""
    return next(step for step in _round_numbers((1, 2, 5)) if step * most >= span)


def round_numbers(low: float, high: float, *, limit: float = np.inf, most: int = 10) -> list[float]:
    """Return round numbers to rule a logarithmic axis with, about `most` steps at most.

    They go from one at or below `low` to one above `high`, but not beyond the round number `limit`.
    """
    low, high = min(low, 0.999 * limit), min(high, 0.999 * limit)
    for digits in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        numbers = _round_numbers(digits)
        first = max(place for place, number in enumerate(numbers) if number <= low)
        last = min(place for place, number in enumerate(numbers) if number > high)
        if last - first <= most:
            break
    return numbers[first : last + 1]


def _round_numbers(digits: Sequence[float]) -> list[float]:
    return [float(f"{digit}e{power}") for power in range(-7, 12) for digit in digits]
