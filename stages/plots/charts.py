"""Charts: learning curves of one or more runs, and the accuracies of studies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from stages.plots.drawing import (
    BLUE,
    GREY,
    INK,
    LIGHT_GREY,
    MARGIN,
    ORANGE,
    WHITE,
    WIDTH,
    Colour,
    Floats,
    blend,
    counted,
    default_settings,
    heading,
    note,
    page,
    paint,
    patch,
    place,
    round_numbers,
    round_step,
    shortened,
    text_width,
    write,
)

CHART_WIDTH, CHART_HEIGHT, BORDER = 700, 560, 10
PANEL_WIDTH = WIDTH // 2
LEAST_LOSS = 1e-6
"""The last digit of the table of curves: a logarithm has no zero."""
LEAST_ERROR = 0.01
"""Percent, one image of ten thousand."""


class Run(NamedTuple):
    """One training's curves, (epochs,) each; accuracies from 0 to 1.

    Attributes:
        name: what the legend calls it, "" if it is alone.
        train_loss: mean cross-entropy.
        validation_loss: mean cross-entropy.
        validation_accuracy: of each epoch.
        kept: the epoch, counted from 1, whose weights are kept; None if that is not known.
    """

    name: str
    train_loss: Floats
    validation_loss: Floats
    validation_accuracy: Floats
    kept: int | None


class _Curve(NamedTuple):
    """One value for each epoch, and how they look; one epoch can have a large mark."""

    values: Floats
    colour: Colour
    dashed: bool = False
    marked: int | None = None


class _Key(NamedTuple):
    """An entry of the legend; the sample is a line, a dashed line, a dot or nothing."""

    words: str
    colour: Colour
    sample: str = ""


@default_settings
def learning_curves(run: Run, train_loss: str) -> Figure:
    """Draw the losses and the validation set's error rate over the epochs, side by side.

    Args:
        run: the curves.
        train_loss: how the training loss is measured, which is why it may lie above the other.
    """
    figure = page(WIDTH, 990)
    heading(figure, "Learning curves")
    _draw_losses(figure, 0, 110, [run])
    _draw_errors(figure, PANEL_WIDTH, 110, [run])
    if run.train_loss[-1] > run.validation_loss[-1]:
        note(figure, f"Training lies above validation, since its loss is {train_loss}.", 940)
    return figure


@default_settings
def loss_chart(runs: Sequence[Run]) -> Figure:
    """Draw the losses of runs, on one scale; the last run is in full colour."""
    figure = page(PANEL_WIDTH, 780 + 40 * len(runs))
    _draw_losses(figure, 0, 10, runs)
    return figure


@default_settings
def error_chart(runs: Sequence[Run]) -> Figure:
    """Draw the validation errors of runs, on one scale; the last run is in full colour."""
    figure = page(PANEL_WIDTH, 780 + 40 * len(runs))
    _draw_errors(figure, 0, 10, runs)
    return figure


def _draw_losses(figure: Figure, left: int, top: int, runs: Sequence[Run]) -> None:
    curves, keys = [], []
    for run, level in _with_levels(runs):
        colours = blend(BLUE, level), blend(ORANGE, level)
        curves += [
            _Curve(np.maximum(run.train_loss, LEAST_LOSS), colours[0], dashed=True),
            _Curve(np.maximum(run.validation_loss, LEAST_LOSS), colours[1], marked=run.kept),
        ]
        keys.append([
            *_name_key(run), _Key("training", colours[0], "dashed"),
            _Key("validation", colours[1], "line"), _Key("kept", INK, "dot"),
        ][: None if run.kept else -1])  # fmt: skip
    _chart(figure, left, top, "Loss (cross-entropy)", curves, keys, "")


def _draw_errors(figure: Figure, left: int, top: int, runs: Sequence[Run]) -> None:
    curves, keys = [], []
    for run, level in _with_levels(runs):
        errors = np.round(100 * (1 - run.validation_accuracy), 4)  # so that 5 % is not a trace more
        colour = blend(ORANGE, level)
        curves.append(_Curve(np.maximum(errors, LEAST_ERROR), colour, marked=run.kept))
        key = [name._replace(colour=colour, sample="line") for name in _name_key(run)]
        if run.kept:
            key.append(_Key(f"kept: epoch {run.kept}, {errors[run.kept - 1]:.2f} %", INK, "dot"))
        keys.append(key)
    _chart(figure, left, top, "Validation error", curves, keys, " %")


def _with_levels(runs: Sequence[Run]) -> list[tuple[Run, int]]:
    """Return each run with how much of the colour it has, of 255."""
    return [(run, 255 if run is runs[-1] else 110) for run in runs]


def _name_key(run: Run) -> list[_Key]:
    return [_Key(shortened(run.name, 24, 260), INK)] if run.name else []


def _chart(
    figure: Figure,
    left: int,
    top: int,
    title: str,
    curves: Sequence[_Curve],
    keys: Sequence[Sequence[_Key]],
    unit: str,
) -> None:
    """Draw curves over the epochs, on a logarithmic axis, in a panel of the page."""
    left, epochs = left + 150, max(len(curve.values) for curve in curves)
    write(figure, title, left, top + 34, 28)
    for number, line in enumerate(keys):
        _write_keys(figure, left - 100 * (len(keys) > 1), top + 82 + 40 * number, line)
    top += 82 + 40 * len(keys)

    values = np.concatenate([curve.values for curve in curves])
    ticks = round_numbers(values.min(), values.max(), limit=100 if unit else np.inf)
    low, high = np.log10(ticks[0]), np.log10(ticks[-1])

    def across(epoch: Any) -> Any:
        return np.rint(CHART_WIDTH * (epoch - 1) / max(epochs - 1, 1)).astype(int)

    def down(value: Any) -> Any:
        return _pixels((high - np.log10(value)) / (high - low), CHART_HEIGHT)

    plot = patch(CHART_WIDTH + 2 * BORDER, CHART_HEIGHT + 2 * BORDER, WHITE)
    for tick in ticks:
        y = down(tick)
        plot[BORDER + y - 1 : BORDER + y + 1, BORDER:-BORDER] = LIGHT_GREY
        write(figure, f"{tick:g}{unit}", left - 20, top + y, 26, align="right")
    step = max(int(round_step(epochs, 8)), 1)
    for epoch in range(step, epochs + 1, step):
        x = across(epoch)
        plot[BORDER:-BORDER, BORDER + x - 1 : BORDER + x + 1] = LIGHT_GREY
        write(figure, f"{epoch}", left + x, top + CHART_HEIGHT + 32, 24, align="center")
    write(figure, "Epoch", left + CHART_WIDTH // 2, top + CHART_HEIGHT + 78, 28, align="center")

    marks = []
    for curve in curves:
        x, y = across(np.arange(1, len(curve.values) + 1)), down(curve.values)
        points = list(zip((BORDER + x).tolist(), (BORDER + y).tolist(), strict=True))
        dots = [(point, point) for point in points]
        paint(plot, [*pairwise(points), dots[-1]], 2, curve.colour, dashed=curve.dashed)
        if epochs <= 30:
            paint(plot, dots, 4.5, curve.colour)
        if curve.marked:
            marks.append(dots[curve.marked - 1])
    paint(plot, marks, 8, INK)
    place(figure, plot, left - BORDER, top - BORDER)


def _write_keys(figure: Figure, x: int, y: int, keys: Sequence[_Key]) -> None:
    for key in keys:
        if key.sample:
            sample = patch(48, 20, WHITE)
            stroke = ((24, 10), (24, 10)) if key.sample == "dot" else ((2, 10), (46, 10))
            radius = 8 if key.sample == "dot" else 2
            paint(sample, [stroke], radius, key.colour, dashed=key.sample == "dashed")
            place(figure, sample, x, y - 10)
            x += 56
        write(figure, key.words, x, y, 24, INK if key.sample == "dot" else key.colour)
        x += text_width(key.words, 24) + 28


def _pixels(fraction: Any, length: int) -> Any:
    """Return a fraction of a length in whole pixels."""
    # The thousandth of a pixel: halves are rounded alike whatever the last bits.
    return np.rint(length * fraction + 0.001).astype(int)


@default_settings
def studies(accuracies: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the test accuracies of recipes, the best first: a ring for each seed.

    A bar below reaches a standard deviation to either side of the mean. The axis is the logarithm
    of the error rate, so that halving it is as wide everywhere.

    Args:
        accuracies: of each recipe, one for each seed, from 0 to 1. Under the name of a grid's
            combination, such as `simard train.epochs=30`, its settings stand in lines of their own.
    """
    best_first = sorted(accuracies, key=lambda name: -mean(accuracies[name]))
    spreads = {name: stdev(found) if len(found) > 1 else 0.0 for name, found in accuracies.items()}

    def errors(name: str) -> list[float]:
        """Return the mean's percentage, both ends of the bar, and each seed's."""
        middle, spread = mean(accuracies[name]), spreads[name]
        shown = [middle, middle - spread, middle + spread, *accuracies[name]]
        return [min(max(100 * (1 - accuracy), LEAST_ERROR), 100) for accuracy in shown]

    shown = [error for name in best_first for error in errors(name)]
    ticks = round_numbers(min(shown), max(shown), limit=100, most=7)
    low, high = np.log10(ticks[0]), np.log10(ticks[-1])

    settings = {name: re.findall(r" train\.(\S+=\S+)", name) for name in best_first}
    lines_of_all = [line for lines in settings.values() for line in lines]
    widest = max((text_width(line, 22, bold=True) for line in lines_of_all), default=0)
    left, top = min(max(300, MARGIN + widest + 40), 700), 190
    width = 1340 - left
    pitch = max(100, *(68 + 28 * len(lines) for lines in settings.values()))
    height = pitch * len(best_first)
    figure = page(WIDTH, top + height + 170)
    heading(figure, "Test accuracy of each recipe, the best first")
    words = (
        "A ring is one seed's network; the bar is the mean and a standard deviation either side."
    )
    note(figure, words, 116)
    plot = patch(width + 40, height + 2 * BORDER, WHITE)

    def across(error: float) -> int:
        return int(_pixels((high - np.log10(error)) / (high - low), width)) + 20

    for tick in ticks:
        x = across(tick)
        plot[BORDER:-BORDER, x - 1 : x + 1] = LIGHT_GREY
        words = f"{100 - tick:g} %"
        write(figure, words, left - 20 + x, top + height + 34, 26, align="center")
    for row, name in enumerate(best_first):
        y = pitch * row + pitch // 2
        strip = plot[pitch * row : pitch * (row + 1) + 2 * BORDER]  # the row's, and around it
        middle, start, end, *seeds = map(across, errors(name))
        bar, rings = BORDER + pitch // 2 + 24, BORDER + pitch // 2 - 4
        paint(strip, [((start, bar), (end, bar)), ((end, bar), (end, bar))], 3, ORANGE)
        paint(strip, [((middle, bar), (middle, bar))], 8, ORANGE)
        for x in seeds:
            paint(strip, [((x, rings), (x, rings))], 10, BLUE)
            paint(strip, [((x, rings), (x, rings))], 7, WHITE)
        words = f"{100 * mean(accuracies[name]):.2f} %"
        if len(seeds) > 1:
            words += f" \N{PLUS-MINUS SIGN} {100 * spreads[name]:.2f} %"
        right, count = WIDTH - MARGIN, counted(len(seeds), "seed")
        lines, room = settings[name], left - 40 - MARGIN
        label = shortened(re.sub(r" train\.\S+=\S+", "", name), 28, room)
        first = top + y - 14 * len(lines)
        write(figure, label, left - 40, first, 28, bold=True, align="right")
        for number, line in enumerate(lines, start=1):
            words_below = shortened(line, 22, room)
            write(figure, words_below, left - 40, first + 4 + 28 * number, 22, GREY, align="right")
        write(figure, words, right, top + y - 16, 28, align="right")
        write(figure, count, right, top + y + 22, 24, GREY, align="right")
    place(figure, plot, left - 20, top - BORDER)
    axis = "Accuracy on the test set; logarithmic: halving the errors is as wide everywhere"
    write(figure, axis, left + width // 2, top + height + 90, 26, align="center")
    return figure
