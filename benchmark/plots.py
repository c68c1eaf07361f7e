"""The report as two figures, drawn from nothing but the report."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter

from stages.pipeline.datasets import MNIST
from stages.pipeline.files import atomic_write

Report = dict[str, Any]

# Of Paul Tol's colours, told apart by everyone and in grey.
OURS = "#004488"
OURS_PLAIN = "#88aadd"
OTHERS = "#c8ccd1"
NOTEBOOK = "#ddaa33"
INK = "#222222"
GREY = "#6b6b6b"
COLOURS = {
    "ours_exact": OURS, "ours_plain": OURS_PLAIN, "ours_dense": OURS_PLAIN, "notebook": NOTEBOOK,
}  # fmt: skip
SETTINGS: dict[Any, Any] = {
    "font.size": 15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 16,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
WIDTH = 12.0  # inches of 150 pixels: twice the width of a README's column
RATE = "training samples per second"
LIMIT = (
    "Dashed line: the rate if training were its matrix products alone, at the speed of sgemm, "
    "BLAS's product of dense float32 matrices, measured in the same run. A bar may cross it: "
    "products with zeros count for the line, but can be left out; and both rates vary."
)


def draw(report: Report, folder: Path) -> None:
    """Write `benchmark.png` and `scaling.png`, each if the report has what it shows."""
    with matplotlib.rc_context(matplotlib.rcParamsDefault), matplotlib.rc_context(SETTINGS):
        if "throughput" in report or "time_to_accuracy" in report:
            _save(benchmark_figure(report), folder / "benchmark.png")
        if "scaling" in report:
            _save(scaling_figure(report), folder / "scaling.png")


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})


def _figure(height: float, title: str, report: Report, notes: Sequence[str] = ()) -> Figure:
    figure = Figure(
        figsize=(WIDTH, height), dpi=150, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    )
    FigureCanvasAgg(figure)
    machine = report["machine"]
    figure.suptitle(title, x=0.01, ha="left", fontsize=22, weight="bold")
    about = (
        f"{machine['processor']}, cores: {machine['cores']}; {report['date'][:10]}. "
        "Medians; thin lines: least to most."
    )
    words = "\n".join(textwrap.fill(line, 108) for line in (about, *notes))
    figure.supxlabel(words, x=0.01, ha="left", fontsize=14)
    return figure


def benchmark_figure(report: Report) -> Figure:
    """Draw a panel of bars for each network and batch size, and one for each accuracy."""
    cells = report.get("throughput", {}).get("cells", [])
    accuracy = report.get("time_to_accuracy", {"goals": []})
    goals = accuracy["goals"]
    rows = -(-len(cells) // 2) + -(-len(goals) // 2)
    notes = (LIMIT, report["note"]) if cells else (report["note"],)
    figure = _figure(1.8 + 4.3 * rows, "Training on the CPU", report, notes)
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    names = {key: contender["name"] for key, contender in report["contenders"].items()}
    for cell, axis in zip(cells, axes, strict=False):
        _throughput_panel(axis, cell, names)
    below = len(cells) + len(cells) % 2
    for goal, axis in zip(goals, axes[below:], strict=False):
        _goal_panel(axis, goal, accuracy, names)
    for axis in axes:
        axis.set_visible(axis.has_data())
    return figure


def _throughput_panel(axis: Axes, cell: Report, names: dict[str, str]) -> None:
    bars = [
        _Bar(
            row["contender"],
            row["samples_per_second"],
            (_short(row["samples_per_second"]["median"]), f"{row['ratio_to_ours']['median']:.2f}"),
        )
        for row in cell["rows"]
    ]
    limit = cell["sgemm_operations_per_second"]["median"] / cell["operations_per_sample"]
    _draw_bars(axis, sorted(bars, key=lambda bar: bar.spread["median"]), names)
    _write_beside(axis, len(bars) - 0.3, ("rate", "\N{MULTIPLICATION SIGN} ours"), GREY)
    axis.set_xlim(0, 1.04 * max(limit, *(bar.spread["max"] for bar in bars)))
    axis.axvline(limit, color=INK, linewidth=1, linestyle="--")
    axis.set_title(f"{cell['network']}, batch {cell['batch_size']}")
    axis.set_xlabel("training samples per second")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _goal_panel(axis: Axes, goal: Report, accuracy: Report, names: dict[str, str]) -> None:
    bars = [
        _Bar(row["contender"], row["seconds"], (f"{row['seconds']['median']:.2f} s",))
        for row in goal["rows"]
        if row["seconds"]
    ]
    with_notebook = goal["target"] == accuracy["notebook"]["accuracy"]
    if with_notebook:
        seconds = accuracy["notebook"]["seconds"]
        bars.append(_Bar("notebook", seconds, (f"{seconds['median']:,.0f} s",)))
    _draw_bars(axis, sorted(bars, key=lambda bar: -bar.spread["median"]), names)
    if with_notebook:
        axis.set_xscale("log")
        axis.set_xlim(left=0.5 * min(bar.spread["min"] for bar in bars))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title(f"{accuracy['network']}, to {100 * goal['target']:g} %")
    label = "seconds of training to that test accuracy" + (
        ",\nlogarithmic" if with_notebook else ""
    )
    if missed := [names[row["contender"]] for row in goal["rows"] if not row["seconds"]]:
        label += f"\nnot from every seed: {', '.join(missed)}"
    axis.set_xlabel(label)


class _Bar(NamedTuple):
    contender: str
    spread: dict[str, float]
    figures: tuple[str, ...]


def _draw_bars(axis: Axes, bars: Sequence[_Bar], names: dict[str, str]) -> None:
    places = range(len(bars))
    axis.barh(
        places,
        [bar.spread["median"] for bar in bars],
        color=[COLOURS.get(bar.contender, OTHERS) for bar in bars],
        height=0.8,
    )
    least, most = ([bar.spread[end] for bar in bars] for end in ("min", "max"))
    axis.hlines(places, least, most, color=INK, linewidth=1.2)
    axis.set_yticks(places, [names[bar.contender] for bar in bars], fontsize=13)
    axis.tick_params(axis="y", length=0)
    for place, bar in zip(places, bars, strict=True):
        ours = COLOURS.get(bar.contender) == OURS
        _write_beside(axis, place, bar.figures, OURS if ours else INK, bold=ours)


def _write_beside(
    axis: Axes, place: float, figures: Sequence[str], colour: str, *, bold: bool = False
) -> None:
    """Write figures in columns on the right of the bars."""
    for column, figure in enumerate(figures):
        axis.annotate(
            figure,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(64 * (column + 1), 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=13,
            weight="bold" if bold else "normal",
            color=colour,
        )


def scaling_figure(report: Report) -> Figure:
    """Draw what our throughput depends on, a panel for each thing."""
    scaling = report["scaling"]
    elsewhere = scaling["batch_size_elsewhere"]
    small = scaling["workers"][0]["network"]
    notes = (
        f"Batches of {elsewhere} and the network {small}, unless an axis says otherwise. The limit "
        "is the rate of the matrix products alone (sgemm). Training sets are memory-mapped files.",
    )
    figure = _figure(15.5, "How our training scales", report, notes)
    (workers, batch), (hidden, fraction), (images, memory) = figure.subplots(3, 2)

    networks = list(dict.fromkeys(point["network"] for point in scaling["workers"]))
    styles = zip(networks, (OURS, "#bb5566", NOTEBOOK), ("o-", "s--", "^:"), strict=False)
    for network, colour, style in styles:
        points = [point for point in scaling["workers"] if point["network"] == network]
        one = points[0]["samples_per_second"]["median"]
        rates = [_scaled(point["samples_per_second"], 1 / one) for point in points]
        _curve(workers, [point["workers"] for point in points], rates, style, colour, network)
    _axes(workers, "Workers", "number of workers", "rate, times that of one worker")
    counts = sorted({point["workers"] for point in scaling["workers"]})
    workers.set_xticks(counts, [str(count) for count in counts])
    workers.set_xlim(counts[0] - 0.2, counts[-1] + 0.2)
    workers.set_ylim(0, counts[-1] + 0.2)
    workers.legend(frameon=False, fontsize=13, loc="lower right")

    points = scaling["batch_size"]
    sizes = [point["batch_size"] for point in points]
    _curve(batch, sizes, [point["samples_per_second"] for point in points])
    _powers_of_two(batch, sizes)
    _axes(batch, "Batch size", "images in a batch, logarithmic", RATE)
    batch.set_ylim(bottom=0)

    points = scaling["hidden_size"]
    sizes = [point["hidden_size"] for point in points]
    units = "units in the hidden layer, logarithmic"
    _curve(hidden, sizes, [point["samples_per_second"] for point in points])
    _powers_of_two(hidden, sizes)
    hidden.set_yscale("log")
    hidden.yaxis.set_minor_formatter(NullFormatter())
    _axes(hidden, "Hidden units: rate", units, f"{RATE}, logarithmic")
    _curve(fraction, sizes, [_scaled(point["share_of_sgemm"], 100) for point in points])
    _powers_of_two(fraction, sizes)
    fraction.set_ylim(bottom=0)
    _axes(fraction, "Hidden units: part of the limit", units, "percent of the limit")

    points = scaling["training_set"]
    counts = [point["images"] for point in points]
    _curve(images, counts, [point["samples_per_second"] for point in points])
    images.set_ylim(bottom=0)
    _axes(images, "Training set: rate", "images in the training set", RATE)
    images.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    if all(point["memory_bytes"] for point in points):
        megabytes = [point["memory_bytes"]["own"] / 1e6 for point in points]
        memory.plot(counts, megabytes, "o-", color=OURS, label="memory of the training")
        megabytes = [count * MNIST.pixels / 1e6 for count in counts]
        memory.plot(counts, megabytes, "s--", color=NOTEBOOK, label="file of the images")
        memory.legend(frameon=False, fontsize=13, loc="upper left")
        memory.set_ylim(bottom=0)
        memory.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    _axes(memory, "Training set: memory", "images in the training set", "megabytes")
    return figure


def _curve(
    axis: Axes,
    x: Sequence[float],
    spreads: Sequence[dict[str, float]],
    style: str = "o-",
    colour: str = OURS,
    label: str | None = None,
) -> None:
    axis.plot(x, [spread["median"] for spread in spreads], style, color=colour, label=label)
    least, most = ([spread[end] for spread in spreads] for end in ("min", "max"))
    axis.vlines(x, least, most, color=colour, linewidth=1)


def _axes(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(color="#e4e4e4", linewidth=0.8)
    axis.set_axisbelow(True)
    if y.startswith(RATE):
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _powers_of_two(axis: Axes, values: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    shown = values if len(values) < 6 else values[::2]
    axis.set_xticks(shown, [str(value) for value in shown])


def _scaled(spread: dict[str, float], factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in spread.items()}


def _short(value: float) -> str:
    """Return a number of samples as people say it: 512k, 6.5k, 1.2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"
