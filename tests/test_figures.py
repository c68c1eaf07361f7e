from __future__ import annotations

import hashlib
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from stages import visualize
from stages.core.network import Layer
from stages.pipeline.datasets import MNIST, save_description
from stages.pipeline.model_file import save_model
from stages.pipeline.schemas import Scored, save_scored
from stages.plots import charts, drawing, figures, png
from tests.checks.small_project import ROOT, fresh_parameters
from tools.predict import Prediction
from tools.sheet import sheet

CLASS_NAMES = MNIST.classes
WHITE = (255, 255, 255)
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot")  # fmt: skip


def scored(samples=60, wrong=(3, 7, 20), seed=0, shape=(28, 28), classes=10):
    """Images of noise, with probabilities that are highest for the label except where wrong."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (samples, *shape), np.uint8)
    labels = (np.arange(samples) % classes).astype(np.uint8)
    predictions = labels.copy()
    predictions[list(wrong)] = (predictions[list(wrong)] + 1) % classes
    probabilities = generator.random((samples, classes), np.float32)
    probabilities[np.arange(samples), predictions] = generator.uniform(1, 9, samples)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Scored(images, labels, predictions, probabilities)


def prediction_grid(rows=5, columns=10, names=CLASS_NAMES, **kinds):
    return figures.prediction_grid(*scored(**kinds), names, rows, columns)


def confident_mistakes(most, names=CLASS_NAMES, **kinds):
    return figures.confident_mistakes(*scored(**kinds), names, most)


def counts(classes=10, images=1000, taken_for=None):
    """Each class has so many images; all are right, or all are taken for one class."""
    table = np.eye(classes, dtype=np.int64) * images
    if taken_for is not None:
        table = np.zeros_like(table)
        table[:, taken_for] = images
    return table


def curves(epochs, start=0.9, end=0.01, accuracy=0.5, kept=1, name=""):
    train, validation = np.geomspace(start, end, epochs), np.geomspace(start, 5 * end, epochs)
    return charts.Run(name, train, validation, np.broadcast_to(accuracy, epochs), kept)


def learning_curves(*arguments, **changes):
    return charts.learning_curves(curves(*arguments, **changes), "the epoch's mean")


def weights(units, pixels=784):
    return np.random.default_rng(1).standard_normal((pixels, units), np.float32)


def words(figure):
    return [text.get_text() for text in figure.texts]


def placed(figure):
    """Return each picture on the page with the page's pixels at its place."""
    page = drawing.render(figure)
    found = []
    for artist in figure.images:
        height, width = artist.get_size()
        top = len(page) - artist.oy - height
        found.append((artist.get_array(), page[top : top + height, artist.ox : artist.ox + width]))
    return found


def enlarged_images(figure, scale, shape=(28, 28)):
    """Return the page's pixels where it shows images, one pixel for each of theirs."""
    size = (shape[0] * scale, shape[1] * scale, 3)
    return [pixels[::scale, ::scale] for picture, pixels in placed(figure) if picture.shape == size]


def every_figure(shape=(28, 28), names=CLASS_NAMES):
    images = scored(shape=shape, classes=len(names)).images
    return {
        "prediction_grid": prediction_grid(2, 5, names, shape=shape, classes=len(names)),
        "confident_mistakes": confident_mistakes(3, names, shape=shape, classes=len(names)),
        "learning_curves": learning_curves(17),
        "confusion_matrix": figures.confusion_matrix(counts(len(names)), names),
        "first_layer_weights": figures.first_layer_weights(
            weights(20, pixels=shape[0] * shape[1]), shape
        ),
        "augmented_samples": figures.augmented_samples(
            images[:3], np.stack([images[3:6], images[6:9]])
        ),
        "sample_image": figures.sample_image(images[0], names[0]),
    }


def hashes():
    drawn = every_figure() | {
        "loss": charts.loss_chart([curves(17, name="old"), curves(9, name="new")]),
        "error": charts.error_chart([curves(17, name="old"), curves(9, name="new")]),
        "studies": charts.studies({"one": [0.98, 0.985], "other": [0.99]}),
    }
    return {
        name: hashlib.sha256(png.encode(drawing.render(figure))).hexdigest()
        for name, figure in drawn.items()
    }


HOSTILE_SETTINGS = (
    b"figure.dpi: 33\nfigure.facecolor: red\nsavefig.dpi: 44\nfont.family: serif\n"
    b"font.size: 31\ntext.color: blue\ntext.antialiased: False\ntext.hinting: none\n"
    b"lines.linewidth: 9\nlines.antialiased: False\nimage.interpolation: bicubic\n"
    b"image.origin: lower\nimage.resample: False\naxes.unicode_minus: False\n"
)


@pytest.mark.parametrize(
    ("settings", "backend"),
    [
        (HOSTILE_SETTINGS, "module://matplotlib_inline.backend_inline"),  # as in Jupyter
        (b"\xff\xfe damaged", "no such backend"),
    ],
)
def test_bytes_do_not_depend_on_settings_home_locale_time_zone_or_place(
    tmp_path, settings, backend
):
    (tmp_path / "matplotlibrc").write_bytes(settings)
    environment = os.environ | {
        "MPLBACKEND": backend,
        "MPLCONFIGDIR": str(tmp_path),
        "HOME": str(tmp_path),
        "LC_ALL": "de_DE.UTF-8",
        "LANG": "de_DE.UTF-8",
        "TZ": "Asia/Kathmandu",
        "PYTHONHASHSEED": "5",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    environment.pop("MATPLOTLIBRC", None)
    program = (
        "import locale\n"
        "try: locale.setlocale(locale.LC_ALL, '')\n"
        "except locale.Error: pass\n"
        "import stages.plots, test_figures\n"
        "print(test_figures.hashes())\n"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.strip() == str(hashes())


def test_drawing_neither_minds_nor_changes_settings_made_later():
    expected = png.encode(drawing.render(prediction_grid()))
    with matplotlib.rc_context({"font.size": 31, "figure.dpi": 33, "text.color": "blue"}):
        before = dict(matplotlib.rcParams)
        assert png.encode(drawing.render(prediction_grid())) == expected
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("name", "scale"),
    [("prediction_grid", 5), ("confident_mistakes", 9), ("sample_image", 24)],
)
def test_every_pixel_of_an_image_becomes_a_square_of_its_grey(name, scale):
    shown = [
        pixels for picture, pixels in placed(every_figure()[name]) if len(picture) == 28 * scale
    ]
    given_images = {image.tobytes() for image in scored().images}
    assert shown
    for pixels in shown:
        squares = pixels.reshape(28, scale, 28, scale * 3)
        assert (squares == squares[:, :1, :, :1]).all()
        assert squares[:, 0, :, 0].tobytes() in given_images


def a_sheet(names: Sequence[str]) -> Figure:
    """Draw what `make predict` makes of a wide, a high and a small image."""
    probabilities = np.random.default_rng(1).dirichlet([0.1] * len(names), 3)
    seen = np.eye(28, dtype=np.uint8)
    predictions = [
        Prediction(str(ROOT / f"reports/{name}.png"), seen, row)
        for name, row in zip(
            ("prediction_grid", "sample_image", "studies"), probabilities, strict=True
        )
    ]
    return sheet(predictions, names)


@pytest.mark.parametrize(
    "figure",
    [
        prediction_grid(1, 1),
        prediction_grid(1, 1, wrong=[0]),
        prediction_grid(20, 2),
        prediction_grid(2, 20, wrong=range(60)),
        prediction_grid(20, 20, samples=400, wrong=range(399)),
        confident_mistakes(50),
        confident_mistakes(50, wrong=range(60)),
        confident_mistakes(50, wrong=[]),
        learning_curves(1),
        learning_curves(2, accuracy=[0.5, 1]),
        learning_curves(3, accuracy=1.0, kept=3),
        learning_curves(9, 2.31, 2.3, accuracy=0.0),
        learning_curves(60, 700, 1e-9, accuracy=np.linspace(0, 0.9991, 60)),
        learning_curves(60, 8.5e9, 1e-9),
        learning_curves(10000, accuracy=np.linspace(0.1, 0.98, 10000), kept=10000),
        charts.loss_chart([curves(60, name="a" * 50), curves(3, name="W" * 50)]),
        charts.error_chart([curves(10000, kept=10000, name="W" * 50), curves(3, name="$1 & $2")]),
        charts.studies({"default": [0.9868, 0.9871], "notebook": [0.9622]}),
        charts.studies({"a": [1.0], "W" * 30: [0.0, 0.1]}),
        charts.studies({"a": [0.99311, 0.99312, 0.99321]}),
        charts.studies({"a": [0.0]}),
        figures.confusion_matrix(counts(), CLASS_NAMES),
        figures.confusion_matrix(counts(images=113500, taken_for=0), CLASS_NAMES),
        figures.confusion_matrix(counts(images=0), CLASS_NAMES),
        figures.first_layer_weights(np.full((784, 1), -1e-5, np.float32), (28, 28)),
        figures.first_layer_weights(np.full((784, 8192), 1234.5, np.float32), (28, 28)),
        figures.first_layer_weights(np.full((784, 8192), 3.4e38, np.float32), (28, 28)),
        *every_figure().values(),
        *every_figure((8, 8)).values(),
        *every_figure((20, 32), ("cat", "dog", "horse")).values(),
        *every_figure((64, 64), FASHION).values(),
        *every_figure((1, 64), [chr(ord("0") + number) for number in range(47)]).values(),
        a_sheet([str(digit) for digit in range(10)]),
        a_sheet(FASHION),
        a_sheet([f"class {number}" for number in range(64)]),
        a_sheet(["W" * 40, "M" * 40]),
    ],
)
def test_no_text_touches_another_or_leaves_the_page(figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts]
    for text, box in boxes:
        inside = figure.bbox.padded(-10)
        assert inside.contains(box.x0, box.y0), text
        assert inside.contains(box.x1, box.y1), text
    for (one, box), (other, another) in itertools.combinations(boxes, 2):
        assert not box.overlaps(another), (one, other)


@pytest.mark.parametrize(("rows", "columns"), [(5, 10), (3, 4), (1, 1)])
def test_the_prediction_grid_has_the_rows_and_columns_asked_for(rows, columns):
    figure = prediction_grid(rows, columns)
    titles = [text for text in figure.texts if text.get_text().startswith("Pred: ")]
    assert len(titles) == rows * columns
    assert len({text.get_position()[0] for text in titles}) == columns
    assert len({text.get_position()[1] for text in titles}) == rows
    images, _, predictions, probabilities = scored()
    shown = [image[..., 0] for image in enlarged_images(figure, 5)]
    np.testing.assert_array_equal(shown, images[: rows * columns])
    chances = [float(row[label]) for row, label in zip(probabilities, predictions, strict=True)]
    assert words(figure)[4::3] == [f"{100 * p:.1f} %" for p in chances[: rows * columns]]


def test_the_prediction_grid_is_filled_as_far_as_there_are_images():
    assert words(prediction_grid(samples=12, wrong=[])).count("Pred: 1") == 2
    assert words(prediction_grid(samples=12, wrong=[2]))[0] == (
        "The first 12 test images: 11 right, 1 wrong"
    )


def test_right_is_green_and_wrong_is_red_bold_and_framed():
    figure = prediction_grid(1, 2, samples=2, wrong=[1])
    looks = {
        text.get_text(): (to_hex(text.get_color()), Path(text.get_fontproperties().get_file()).stem)
        for text in figure.texts[2:]
    }
    assert looks["Pred: 0"] == looks["True: 0"] == ("#008000", "DejaVuSans")
    assert looks["Pred: 2"] == looks["True: 1"] == ("#cc0000", "DejaVuSans-Bold")
    page = drawing.render(figure)
    right, wrong = (text.get_position()[0] for text in figure.texts[2::3])
    red = (page == (204, 0, 0)).all(axis=2)
    assert not red[:, : wrong - 20].any()
    frame_rows, frame_columns = np.nonzero(red)
    middle = (frame_rows.min() + frame_rows.max()) // 2
    assert red[:, wrong - 5].sum() > 140, "a vertical red bar left of the wrong image"
    assert (page[middle, right - 5] == WHITE).all(), "and none left of the right one"
    assert frame_columns.max() > wrong + 140


def test_classes_have_the_names_given():
    shown = words(prediction_grid(1, 2, FASHION, samples=2, wrong=[1]))
    assert shown[2:4] == ["Pred: T-shirt/top", "True: T-shirt/top"]
    assert shown[5:7] == ["Pred: Pullover", "True: Trouser"]
    matrix = words(figures.confusion_matrix(counts(), FASHION))
    assert all(matrix.count(name) == 2 for name in FASHION)


@pytest.mark.parametrize(("shape", "scale"), [((8, 8), 17), ((32, 32), 4), ((20, 32), 4)])
def test_images_of_any_shape_are_enlarged_to_about_the_same_size(shape, scale):
    figure = prediction_grid(1, 3, shape=shape)
    shown = [image[..., 0] for image in enlarged_images(figure, scale, shape)]
    np.testing.assert_array_equal(shown, scored(shape=shape).images[:3])
    W = np.zeros((shape[0] * shape[1], 1), np.float32)
    W[1] = 1  # the second pixel of the first row
    (image,) = enlarged_images(figures.first_layer_weights(W, shape), scale, shape)
    assert tuple(image[0, 1]) == drawing.BLUE
    assert (image == WHITE).all(axis=2).sum() == len(W) - 1


def test_the_most_confident_mistakes_come_first_with_their_probabilities():
    _, labels, _, probabilities = scored(wrong=range(0, 60, 3))
    figure = confident_mistakes(4, wrong=range(0, 60, 3))
    mistakes = [
        (max(row), index)
        for index, row in enumerate(probabilities.tolist())
        if row.index(max(row)) != labels[index]
    ]
    expected = ["The 4 most confident of 20 mistakes on 60 test images"]
    for confidence, index in sorted(mistakes, reverse=True)[:4]:
        true = labels[index]
        expected += [f"Pred: {(true + 1) % 10}", f"{confidence:.1%}".replace("%", " %")]
        expected += [f"True: {true}", f"{probabilities[index, true]:.1%}".replace("%", " %")]
    assert words(figure) == expected


def test_equally_confident_mistakes_keep_the_order_of_the_test_set():
    images = np.zeros((3, 28, 28), np.uint8)
    images[:, 0, 0] = 10, 20, 30
    probabilities, predictions = np.full((3, 10), 0.1, np.float32), np.full(3, 1)
    found = images, np.array([0, 2, 4]), predictions, probabilities
    figure = figures.confident_mistakes(*found, CLASS_NAMES, 3)
    assert [image[0, 0, 0] for image in enlarged_images(figure, 9)] == [10, 20, 30]


def test_a_probability_is_not_rounded_to_none_or_all():
    probabilities = np.zeros((1, 10), np.float32)
    probabilities[0, :2] = 0.99996, 0.00004
    found = np.zeros((1, 28, 28), np.uint8), np.array([1]), np.array([0]), probabilities
    figure = figures.confident_mistakes(*found, CLASS_NAMES, 1)
    assert words(figure)[1:] == ["Pred: 0", ">99.9 %", "True: 1", "<0.1 %"]


@pytest.mark.parametrize(
    ("wrong", "heading"),
    [
        ([], "0 mistakes on 60 test images"),
        ([4], "1 mistake on 60 test images"),
        ([4, 5], "2 mistakes on 60 test images"),
    ],
)
def test_fewer_mistakes_than_asked_for_are_all_shown(wrong, heading):
    figure = confident_mistakes(20, wrong=wrong)
    assert words(figure)[0] == heading
    assert len(figure.images) == len(wrong)
    png.encode(drawing.render(figure))
    table = np.diag(np.full(10, 6))
    for label in wrong:
        table[label, label] -= 1
        table[label, label + 1] += 1
    assert words(figures.confusion_matrix(table, CLASS_NAMES))[0] == heading


def test_the_confusion_matrix_shows_each_count_and_shades_the_mistakes():
    # Of the images of digit 1, half are taken for 2; of those of digit 5, a quarter for 6.
    table = counts(images=20)
    table[1, 1:3] = 10
    table[5, 5:7] = 15, 5
    figure = figures.confusion_matrix(table, CLASS_NAMES)
    shown = words(figure)
    assert shown[0] == "15 mistakes on 200 test images"
    assert {"50.0 %", "75.0 %"} < set(shown)
    assert shown.count("20") == 8
    cells = [tuple(picture[0, 0].tolist()) for picture, _ in placed(figure)]
    grid = [cells[10 * row : 10 * row + 10] for row in range(10)]
    assert grid[1][2] == drawing.BLUE, "the darkest"
    assert grid[5][6] == (127, 161, 195), "half as dark"
    assert {grid[digit][digit] for digit in range(10)} == {drawing.LIGHT_GREY}
    others = {grid[i][j] for i in range(10) for j in range(10) if i != j} - {grid[1][2], grid[5][6]}
    assert others == {WHITE}
    # On the scale of a matrix whose largest such share is 1, both are paler.
    shared = figures.confusion_matrix(table, CLASS_NAMES, darkest=1.0)
    assert [tuple(picture[0, 0].tolist()) for picture, _ in placed(shared)][12] == (127, 161, 195)
    assert figures.mistaken(table).max() == 0.5


def test_weights_have_one_symmetric_scale_and_zero_is_white():
    W = np.zeros((784, 3), np.float32)
    W[:, 0] = np.linspace(-1, 1, 784)
    W[:, 1] = -W[:, 0]
    W[5, 2] = 1000
    figure = figures.first_layer_weights(W, (28, 28))
    rising, falling, flat = (image.reshape(784, 3) for image in enlarged_images(figure, 5))
    np.testing.assert_array_equal(rising, falling[::-1])
    assert tuple(flat[0]) == WHITE
    assert tuple(rising[0]) == drawing.ORANGE
    assert tuple(rising[-1]) == tuple(flat[5]) == drawing.BLUE
    assert words(figure)[2].startswith("-0.9"), "one huge weight doesn't make the others pale"
    halved, *_ = enlarged_images(figures.first_layer_weights(W, (28, 28), limit=2), 5)
    assert tuple(halved.reshape(784, 3)[-1]) == (127, 161, 195)


@pytest.mark.parametrize(
    ("units", "shown", "heading"),
    [
        (1, 1, "First-layer weights of 1 unit"),
        (64, 64, "First-layer weights of 64 units"),
        (1024, 64, "First-layer weights of the first 64 of 1,024 units"),
    ],
)
def test_at_most_64_units_are_shown_in_rows_of_8(units, shown, heading):
    figure = figures.first_layer_weights(weights(units), (28, 28))
    assert words(figure)[0] == heading
    assert len(enlarged_images(figure, 5)) == shown
    places = {artist.ox for artist in figure.images if artist.get_size() == (140, 140)}
    assert len(places) == min(shown, 8)


def test_learning_curves_mark_the_epoch_kept_and_their_axes_enclose_the_values():
    run = charts.Run(
        "", np.array([0.3, 0.04]), np.array([0.2, 0.07]), np.array([0.95, 0.9812]), kept=2
    )
    shown = words(charts.learning_curves(run, "the epoch's mean"))
    assert "kept: epoch 2, 1.88 %" in shown
    numbers = [float(word) for word in shown if word.startswith("0.")]
    assert numbers == sorted(numbers)
    assert 0.03 <= numbers[0] <= 0.04
    assert 0.3 < numbers[-1] <= 0.4
    errors = [float(word[:-2]) for word in shown if word.endswith(" %") and len(word) < 6]
    assert 1.5 <= errors[0] <= 1.88
    assert 5 < errors[-1] <= 6


def test_learning_curves_say_why_training_lies_above_if_it_does():
    run = charts.Run("", np.array([0.3, 0.2]), np.array([0.2, 0.1]), np.array([0.5, 0.6]), 2)
    shown = words(charts.learning_curves(run, "the epoch's mean, on deformed images"))
    assert shown[-1] == (
        "Training lies above validation, since its loss is the epoch's mean, on deformed images."
    )
    below = run._replace(train_loss=np.array([0.3, 0.05]))
    shown = words(charts.learning_curves(below, "the epoch's mean, on deformed images"))
    assert not any("above" in line for line in shown)


def plots(figure):
    return [pixels for picture, pixels in placed(figure) if picture.shape[1] == 720]


def test_epochs_10_to_60_can_be_read_off_the_axis_of_errors():
    # The shape of a real run: 9 % after the first epoch, 2.2 after the tenth, 1.36 at the end.
    accuracy = 1 - np.concatenate([np.geomspace(0.09, 0.022, 10), np.geomspace(0.0217, 0.0136, 50)])
    _, errors = plots(learning_curves(60, accuracy=accuracy, kept=60))
    rows = [np.flatnonzero((errors[:, x] == drawing.ORANGE).all(axis=1)).mean() for x in (117, 690)]
    assert rows[1] - rows[0] > 100, "a sixth of a percent is over 15 pixels"


def test_curves_run_through_their_values_four_pixels_thick_and_training_is_dashed():
    # Over 40 epochs the error is 5 %, the lowest tick, and both losses lie on ticks as well.
    run = charts.Run("", np.full(40, 0.2), np.full(40, 0.1), np.full(40, 0.95), kept=1)
    losses, errors = plots(charts.learning_curves(run, ""))
    orange = (errors == drawing.ORANGE).all(axis=2)
    assert orange[568:572, 30:700].all(), "two pixels above and two below the value"
    assert orange.sum() < 4 * 720
    assert (errors[570, 10] == drawing.INK).all(), "the epoch kept is marked"
    validation = (losses == drawing.ORANGE).all(axis=2).any(axis=0)
    training = (losses == drawing.BLUE).all(axis=2).any(axis=0)
    assert validation[20:-10].mean() == 1
    assert 0.6 < training[20:-10].mean() < 0.7


def test_a_sloping_curve_covers_what_lies_within_two_pixels_of_it():
    _, errors = plots(learning_curves(2, accuracy=[0, 0.9], kept=None))
    # From 100 % to 10 %: from the top left to the bottom right corner of 700 x 560 pixels.
    y, x = np.mgrid[0:580, 0:720] + 0.5 - 10
    distance = np.abs(560 * x - 700 * y) / np.hypot(560, 700)
    away_from_dots = (x > 20) & (x < 680)
    orange = (errors == drawing.ORANGE).all(axis=2)
    assert orange[away_from_dots & (distance < 1.2)].all()
    assert not orange[away_from_dots & (distance > 2)].any()
    touched = (errors[..., 0] != errors[..., 2]) & away_from_dots
    assert touched[away_from_dots & (distance < 2)].all()
    assert not touched[distance > 2.8].any()


def test_a_loss_of_zero_and_an_error_of_zero_can_be_drawn():
    run = charts.Run("", np.zeros(2), np.zeros(2), np.ones(2), kept=2)
    figure = charts.learning_curves(run, "")
    assert "kept: epoch 2, 0.00 %" in words(figure)
    drawing.render(figure)


def test_two_runs_share_one_scale_and_the_older_one_is_paler():
    old = curves(4, accuracy=0.9, kept=4, name="HEAD")
    new = curves(2, accuracy=0.99, kept=None, name="the workspace")
    (errors,) = plots(charts.error_chart([old, new]))
    pale = drawing.blend(drawing.ORANGE, 110)
    old_rows, _ = np.nonzero((errors == pale).all(axis=2))
    new_rows, new_columns = np.nonzero((errors == drawing.ORANGE).all(axis=2))
    assert old_rows.mean() < new_rows.mean(), "10 % stands above 1 %"
    assert new_columns.max() < 260, "two of four epochs"
    shown = words(charts.error_chart([old, new]))
    assert {"HEAD", "the workspace", "kept: epoch 4, 10.00 %"} < set(shown)
    losses = words(charts.loss_chart([old, new]))
    assert losses.count("training") == losses.count("validation") == 2
    assert losses.count("kept") == 1


def rings(figure):
    """Return the middles of the white insides of a study's rings, from top to bottom."""
    ((_, plot),) = placed(figure)
    blue = (plot == drawing.BLUE).all(axis=2)
    rows = sorted({int(row) for row in np.flatnonzero(blue.any(axis=1))})
    return [row for row in rows if row - 1 not in rows]


def test_studies_are_sorted_with_a_ring_for_each_seed():
    accuracies = {"worse": [0.95], "best": [0.9931, 0.9961], "middle": [0.98, 0.982, 0.97]}
    figure = charts.studies(accuracies)
    shown = words(figure)
    assert [word for word in shown if word in accuracies] == ["best", "middle", "worse"]
    assert {"99.46 % \N{PLUS-MINUS SIGN} 0.21 %", "95.00 %", "2 seeds", "1 seed"} < set(shown)
    assert "logarithmic" in "".join(shown)
    ((_, plot),) = placed(figure)
    blue = (plot == drawing.BLUE).all(axis=2)
    for row, seeds in enumerate([2, 3, 1]):
        line = blue[100 * row + 56].astype(int)  # through the middles of the rings
        assert (np.diff(line) == 1).sum() == 2 * seeds


def test_combinations_of_a_grid_show_their_settings_whole():
    names = [f"deep train.augmentation.smoothness=4.0 train.epochs={epochs}" for epochs in (30, 60)]
    shown = words(charts.studies({names[0]: [0.98], names[1]: [0.99], "plain": [0.97]}))
    assert [word for word in shown if word in ("deep", "plain") or "=" in word] == [
        *("deep", "augmentation.smoothness=4.0", "epochs=60"),
        *("deep", "augmentation.smoothness=4.0", "epochs=30"),
        "plain",
    ]


def test_an_augmented_sample_shows_in_orange_what_only_the_original_has():
    original = np.zeros((1, 28, 28), np.uint8)
    original[0, 3, 4], original[0, 5, 6] = 255, 200
    deformed = np.zeros((1, 1, 28, 28), np.uint8)
    deformed[0, 0, 5, 6], deformed[0, 0, 7, 8] = 250, 100
    figure = figures.augmented_samples(original, deformed)
    assert {"Original", "Deformed"} < set(words(figure))
    first, second = enlarged_images(figure, 5)
    np.testing.assert_array_equal(first[..., 0], original[0])
    assert tuple(second[3, 4]) == figures.BRIGHT_ORANGE
    assert tuple(second[5, 6]) == (250, 250, 250)
    assert tuple(second[7, 8]) == (100, 100, 100)


def test_the_sample_image_has_its_label_as_title():
    image = np.arange(784, dtype=np.uint64).astype(np.uint8).reshape(28, 28)
    figure = figures.sample_image(image, "5")
    assert words(figure)[0] == "Training image, label: 5"
    assert "value / 256" in " ".join(words(figure))
    np.testing.assert_array_equal(enlarged_images(figure, 24)[0][..., 2], image)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/raw", "models", "reports"):
        Path(folder).mkdir(parents=True)
    Path("params.yaml").write_text(fresh_parameters())
    found = scored()
    np.save("data/raw/x_train.npy", found.images)
    np.save("data/raw/y_train.npy", found.labels)
    save_description(MNIST)
    save_scored(found)
    layers = (weights(4), np.ones(4, np.float32)), (weights(10, 4), np.ones(10, np.float32))
    save_model(Path("models/model.npz"), [Layer(*layer) for layer in layers])
    Path("reports/learning_curves.csv").write_text(
        "epoch,train_loss,validation_loss,validation_accuracy\n1,0.3,0.2,0.96\n2,0.2,0.1,0.94\n"
    )
    return tmp_path


def test_the_stage_writes_each_figure_as_its_function_draws_it(project):
    visualize.main()
    written = {path.stem: path.read_bytes() for path in Path("reports").glob("*.png")}
    assert set(written) == set(every_figure())
    sample = every_figure()["sample_image"]
    assert written["sample_image"] == png.encode(drawing.render(sample))
    with Image.open(io.BytesIO(written["prediction_grid"])) as picture:
        np.testing.assert_array_equal(picture, drawing.render(prediction_grid()))


@pytest.mark.parametrize(("keep", "kept"), [("last", 2), ("best", 1)])
def test_the_stage_marks_the_epoch_that_is_kept_and_names_what_deforms(
    project, monkeypatch, keep, kept
):
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("keep: last", f"keep: {keep}"))
    drawn = []
    monkeypatch.setattr(charts, "learning_curves", lambda *given: drawn.append(given) or curves(1))
    monkeypatch.setattr(drawing, "render", lambda figure: np.zeros((1, 1, 3), np.uint8))
    visualize.main()
    ((run, measured),) = drawn
    assert run.kept == kept
    assert measured == "the epoch's mean, on deformed images, before the weights are averaged"
