"""The pictures of images, predictions and weights: functions from arrays to pages.

Images are of any shape (height, width); names are those of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from stages.plots.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LIGHT_GREY,
    MARGIN,
    RED,
    WHITE,
    WIDTH,
    Floats,
    Labels,
    Pixels,
    blend,
    counted,
    default_settings,
    diverging,
    enlarge,
    fitting,
    frame,
    grey,
    heading,
    note,
    page,
    patch,
    percent,
    place,
    shortened,
    text_width,
    write,
)

MOST_UNITS = 64
MANY_CLASSES = 20  # beyond which a confusion matrix has smaller cells
BRIGHT_ORANGE = (255, 120, 0)  # to be seen on black


@default_settings
def prediction_grid(
    images: Pixels,
    labels: Labels,
    predictions: Labels,
    probabilities: Floats,
    names: Sequence[str],
    rows: int,
    columns: int,
) -> Figure:
    """Draw the first images, each under its predicted and its true class.

    Right predictions are green; wrong ones are red and bold, and the image has a thick red frame.

    Args:
        images: (n, height, width) brightness from 0 to 255.
        labels: (n,) classes.
        predictions: (n,) classes.
        probabilities: (n, classes), of each class.
        names: of the classes.
        rows: of the grid; fewer are filled if there are fewer images.
        columns: of the grid.
    """
    scale, (height, width) = _scaled(images, 140)
    count, top = min(rows * columns, len(images)), 160
    wide, row_height = max(width, min(_longest("Pred: ", names, 25), 300)), height + 130
    room = wide - text_width("Pred: ", 25, bold=True)
    names = [shortened(name, 25, room) for name in names]
    grid_width = columns * (wide + 33) - 33
    figure = page(max(grid_width + 2 * MARGIN, 1100), top + -(-count // columns) * row_height + 10)
    wrong = int(np.count_nonzero(labels[:count] != predictions[:count]))
    heading(
        figure, f"The first {counted(count, 'test image')}: {count - wrong} right, {wrong} wrong"
    )
    note(figure, "Below both classes: the probability of the predicted one.", 116)
    for index in range(count):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (wide + 33), top + row * row_height
        prediction = predictions[index]
        right = labels[index] == prediction
        colour = GREEN if right else RED
        probability = percent(probabilities[index, prediction])
        lines = (f"Pred: {names[prediction]}", f"True: {names[labels[index]]}", probability)
        for line, words in enumerate(lines):
            write(figure, words, x, y + 22 + 30 * line, 25, colour, bold=not right)
        if not right:
            frame(figure, x, y + 108, (height, width), 10, RED)
        place(figure, enlarge(grey(images[index]), scale), x, y + 108)
    return figure


@default_settings
def confident_mistakes(
    images: Pixels,
    labels: Labels,
    predictions: Labels,
    probabilities: Floats,
    names: Sequence[str],
    most: int,
) -> Figure:
    """Draw the mistakes that the network was surest of, the surest first.

    Above each image are the predicted class and the true one, with their probabilities.

    Args:
        images: (n, height, width) brightness from 0 to 255.
        labels: (n,) classes.
        predictions: (n,) classes.
        probabilities: (n, classes), of each class.
        names: of the classes.
        most: how many are shown if there are that many.
    """
    mistakes = np.flatnonzero(predictions != labels)
    confidence = probabilities[mistakes, predictions[mistakes]]
    shown = mistakes[np.argsort(-confidence, kind="stable")][:most]

    scale, (height, width) = _scaled(images, 252)
    columns, row_height, top = 5, height + 114, 110
    lines = [f"Pred: {name} >99.9 %" for name in names]
    wide = width if fitting(lines, 26, width) > 22 else 320
    size = max(fitting(lines, 26, wide), 18)
    room = wide - text_width("Pred:   >99.9 %", size, bold=True)
    names = [shortened(name, size, room) for name in names]
    figure = page(WIDTH, top + -(-len(shown) // columns) * row_height + 20)
    which = f"The {len(shown)} most confident of " if len(shown) < len(mistakes) else ""
    heading(figure, which + _mistakes(len(mistakes), len(labels)))
    for number, index in enumerate(shown):
        row, column = divmod(number, columns)
        x, y = MARGIN + column * 350, top + row * row_height
        for title, label, colour, line in (
            ("Pred", predictions[index], RED, y + 24),
            ("True", labels[index], GREEN, y + 56),
        ):
            bold = title == "Pred"
            write(figure, f"{title}: {names[label]}", x, line, size, colour, bold=bold)
            words = percent(probabilities[index, label])
            write(figure, words, x + wide, line, size, colour, bold=bold, align="right")
        place(figure, enlarge(grey(images[index]), scale), x, y + 82)
    return figure


def mistaken(counts: Labels) -> Floats:
    """Return which fraction of each class was taken for each other class.

    Args:
        counts: (classes, classes) images, rows true, columns predicted.
    """
    fractions: Floats = counts / np.maximum(counts.sum(axis=1), 1)[:, np.newaxis]
    return fractions * ~np.eye(len(counts), dtype=bool)


@default_settings
def confusion_matrix(counts: Labels, names: Sequence[str], darkest: float | None = None) -> Figure:
    """Draw how many images of each class (row) were taken for each class (column).

    A mistake's shade is its fraction of its row, on a scale that ends at the largest such fraction,
    so that a few mistakes are seen beside a thousand right answers.

    Args:
        counts: (classes, classes) images, rows true, columns predicted.
        names: of the classes.
        darkest: the fraction that has the darkest shade, if not the largest.
    """
    classes, images = len(counts), counts.sum(axis=1)
    fractions = mistaken(counts)
    darkest = darkest or fractions.max()
    shades = np.rint(255 * np.minimum(fractions / (darkest or 1), 1)).astype(np.int64)

    letters, height, least = (32, 74, 96) if classes <= MANY_CLASSES else (20, 46, 60)
    most = max(160, 1000 // classes) if classes <= MANY_CLASSES else 100
    width, top = max(least, min(_longest("", names, letters * 3 // 4) + 12, most)), 250
    left = MARGIN + max(_longest("", names, letters) + 30, 110)
    right = left + classes * width + 150
    figure = page(max(right + MARGIN, 1000), top + classes * height + 40)
    heading(figure, _mistakes(int(counts.sum() - counts.trace()), int(counts.sum())))
    if darkest:
        words = f"Shade of a mistake: its fraction of the row; darkest: {percent(darkest)}"
        write(figure, words, MARGIN, 120, 26, GREY)
    write(figure, "Predicted", left + classes * width // 2, 172, 30, align="center")
    write(figure, "True", MARGIN, 222, 30)
    write(figure, "Right", right, 222, 30, align="right")
    size = max(fitting(names, letters, width - 8), letters // 2)
    for row, name in enumerate(names):
        y = top + row * height
        middle = y + height // 2
        head = left + row * width + width // 2
        short = shortened(name, size, width - 4)
        write(figure, short, head, 222, size, bold=True, align="center")
        write(figure, name, left - 30, middle, letters, bold=True, align="right")
        hits = percent(counts[row, row] / images[row]) if images[row] else "none"
        write(figure, hits, right, middle, letters - 2, align="right")
        for column in range(classes):
            x = left + column * width
            shade = int(shades[row, column])
            fill = LIGHT_GREY if row == column else blend(BLUE, shade)
            place(figure, patch(width - 4, height - 4, fill), x + 2, y + 2)
            if counts[row, column]:
                ink, words = WHITE if shade > 127 else INK, f"{counts[row, column]}"
                fitted = fitting([words], letters, width - 4)
                write(figure, words, x + width // 2, middle, fitted, ink, align="center")
    return figure


def weight_limit(W: Floats) -> float:
    """Return where the colours of the first layer's weights (pixels, units) end.

    The largest two hundredth of the weights are left out: they would make the others pale.
    """
    magnitudes = np.sort(np.abs(W[:, :MOST_UNITS]), axis=None)
    return float(magnitudes[len(magnitudes) * 199 // 200]) or 1.0


@default_settings
def first_layer_weights(W: Floats, shape: tuple[int, int], limit: float | None = None) -> Figure:
    """Draw the weights into each unit of the first layer as an image; at most 64 units.

    Args:
        W: (pixels, units) the first layer's weights.
        shape: (height, width) of an image.
        limit: the weight that has the full colour, if not `weight_limit`.
    """
    units = min(W.shape[1], MOST_UNITS)
    limit = limit or weight_limit(W)
    levels = np.rint(255 * np.clip(W[:, :units] / limit, -1, 1)).astype(np.int64)
    images = levels.T.reshape(units, *shape)

    scale, (height, width) = _scaled(images, 140)
    columns, gap, top = 8, 16, 220
    figure = page(
        max(columns * (width + gap) - gap + 2 * MARGIN, 1332),
        top + -(-units // columns) * (height + gap) + 30,
    )
    which = f"the first {units} of " if units < W.shape[1] else ""
    heading(figure, f"First-layer weights of {which}{counted(W.shape[1], 'unit')}")
    words = f"Drawn as {shape[0]} x {shape[1]}. Ink on blue raises a unit, ink on orange lowers it."
    note(figure, words, 116)
    ramp = np.arange(-255, 256).repeat(26).reshape(-1, 26).T
    write(figure, f"-{limit:.2g}", MARGIN, 174, 26)
    place(figure, diverging(ramp), MARGIN + 130, 161)
    write(figure, f"+{limit:.2g}", MARGIN + 130 + 511 + 16, 174, 26)
    for unit, image in enumerate(images):
        row, column = divmod(unit, columns)
        x, y = MARGIN + column * (width + gap), top + row * (height + gap)
        frame(figure, x, y, (height, width), 2, LIGHT_GREY)
        place(figure, enlarge(diverging(image), scale), x, y)
    return figure


@default_settings
def augmented_samples(images: Pixels, deformed: Pixels) -> Figure:
    """Draw training images, and below each what augmentation makes of it.

    What a deformed image has lost of the original's ink is drawn in orange.

    Args:
        images: (n, height, width) brightness from 0 to 255.
        deformed: (times, n, height, width) the same images, deformed so many times.
    """
    scale, (height, width) = _scaled(images, 140)
    left, top, gap = 220, 160, 15
    figure = page(
        max(left + len(images) * (width + gap) - gap + MARGIN, 1300),
        top + (1 + len(deformed)) * (height + 30) + 40,
    )
    heading(figure, "Training images and random deformations of them")
    words = "Each row shares one deformation. Orange: where only the original has ink."
    note(figure, words, 116)
    for row, versions in enumerate([images, *deformed]):
        y = top + row * (height + 30) + (20 if row else 0)
        words = "Deformed" if row else "Original"
        write(figure, words, MARGIN, y + height // 2, 28, bold=not row)
        for column, (image, original) in enumerate(zip(versions, images, strict=True)):
            lost = np.maximum(original.astype(np.int64) - image, 0)[..., np.newaxis]
            ghost = lost * np.array(BRIGHT_ORANGE) // 255
            picture = (grey(image) + ghost).astype(np.uint8)
            place(figure, enlarge(picture, scale), left + column * (width + gap), y)
    return figure


@default_settings
def sample_image(image: Pixels, name: str) -> Figure:
    """Draw one training image, large, with its label and its pixels counted.

    Args:
        image: (height, width) brightness from 0 to 255.
        name: of its class.
    """
    scale, (height, width) = _scaled(image[np.newaxis], 672)
    left, top = 90, 190
    title = f"Training image, label: {name}"
    across = max(left + width, left + 672, MARGIN + text_width(title, 38, bold=True))
    figure = page(across + MARGIN, top + height + 60)
    heading(figure, title)
    words = (
        f"{image.shape[0]} x {image.shape[1]} pixels from 0 (black) to 255 (white); each enters "
        "the network as its value / 256."
    )
    note(figure, words, 112)
    place(figure, enlarge(grey(image), scale), left, top)
    for pixel in range(0, image.shape[1], 5):
        middle = left + pixel * scale + scale // 2
        write(figure, f"{pixel}", middle, top + height + 24, 22, align="center")
    for pixel in range(0, image.shape[0], 5):
        write(figure, f"{pixel}", left - 14, top + pixel * scale + scale // 2, 22, align="right")
    return figure


def _scaled(images: Labels, size: int) -> tuple[int, tuple[int, int]]:
    """Return the factor that enlarges images to about a size, and their height and width then."""
    _, height, width = images.shape
    scale = max(size // max(height, width), 1)
    return scale, (height * scale, width * scale)


def _longest(prefix: str, names: Sequence[str], size: int) -> int:
    return max(text_width(prefix + name, size, bold=True) for name in names)


def _mistakes(count: int, images: int) -> str:
    return f"{counted(count, 'mistake')} on {counted(images, 'test image')}"
