from __future__ import annotations

import hashlib
import io
import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from stages.pipeline.command import InputError
from stages.plots import figures, png, visualize

ROOT = Path(__file__).parent.parent
WHITE = (255, 255, 255)


def scored(samples=60, wrong=(3, 7, 20), seed=0):
    """Images of noise, with probabilities that are highest for the label except where wrong."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (samples, 784), np.uint8)
    labels = (np.arange(samples) % 10).astype(np.uint8)
    predictions = labels.astype(np.int64)
    predictions[list(wrong)] = (predictions[list(wrong)] + 1) % 10
    probabilities = generator.random((samples, 10), np.float32)
    probabilities[np.arange(samples), predictions] = generator.uniform(1, 9, samples)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return images, labels, probabilities


def prediction_grid(rows=5, columns=10, **kinds):
    images, labels, probabilities = scored(**kinds)
    return figures.prediction_grid(images, labels, probabilities.argmax(axis=1), rows, columns)


def curves(epochs, start=0.9, end=0.01):
    return np.geomspace(start, end, epochs), np.geomspace(start, 5 * end, epochs)


def words(figure):
    return [text.get_text() for text in figure.texts]


def placed(figure):
    """Return each picture on the page with the page's pixels at its place."""
    page = figures.render(figure)
    found = []
    for artist in figure.images:
        height, width = artist.get_size()
        top = len(page) - artist.oy - height
        found.append((artist.get_array(), page[top : top + height, artist.ox : artist.ox + width]))
    return found


def enlarged_images(figure, scale):
    """Return the page's pixels where it shows 28 x 28 images, one pixel for each of theirs."""
    shape = (28 * scale, 28 * scale, 3)
    return [
        pixels[::scale, ::scale] for picture, pixels in placed(figure) if picture.shape == shape
    ]


def every_picture():
    images, labels, probabilities = scored()
    predictions = probabilities.argmax(axis=1)
    generator = np.random.default_rng(1)
    return {
        "prediction_grid": prediction_grid(rows=2, columns=5),
        "confident_mistakes": figures.confident_mistakes(images, labels, probabilities, 3),
        "learning_curves": figures.learning_curves(*curves(17), np.linspace(0.9, 0.98, 17)),
        "confusion_matrix": figures.confusion_matrix(labels, predictions),
        "first_layer_weights": figures.first_layer_weights(
            generator.standard_normal((784, 20), np.float32)
        ),
        "augmented_samples": figures.augmented_samples(
            images[:3], np.stack([images[3:6], images[6:9]])
        ),
        "sample_image": figures.sample_image(images[0].reshape(28, 28), labels[0]),
    }


def hashes():
    return {
        name: hashlib.sha256(png.encode(figures.render(figure))).hexdigest()
        for name, figure in every_picture().items()
    }


def test_bytes_do_not_depend_on_settings_home_locale_time_zone_or_place(tmp_path):
    (tmp_path / "matplotlibrc").write_text(
        "figure.dpi: 33\nfigure.facecolor: red\nsavefig.dpi: 44\nfont.family: serif\n"
        "font.size: 31\ntext.color: blue\ntext.antialiased: False\ntext.hinting: none\n"
        "lines.linewidth: 9\nlines.antialiased: False\nlines.dash_capstyle: round\n"
        "lines.solid_joinstyle: bevel\nlines.markeredgecolor: red\nlines.scale_dashes: False\n"
        "image.interpolation: bicubic\nimage.origin: lower\nimage.resample: False\n"
        "path.simplify_threshold: 1\npath.sketch: 1, 100, 2\naxes.unicode_minus: False\n"
    )
    environment = os.environ | {
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
        "import locale, matplotlib, test_pictures\n"
        "try: locale.setlocale(locale.LC_ALL, '')\n"
        "except locale.Error: pass\n"
        "print(matplotlib.rcParams['figure.dpi'], test_pictures.hashes())\n"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout.strip() == f"33.0 {hashes()}"


def test_drawing_leaves_the_users_settings_alone():
    with matplotlib.rc_context({"font.size": 31, "figure.dpi": 33}):
        before = dict(matplotlib.rcParams)
        figures.render(prediction_grid())
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("name", "scale"),
    [("prediction_grid", 5), ("confident_mistakes", 9), ("sample_image", 24)],
)
def test_every_pixel_of_an_image_becomes_a_square_of_its_grey(name, scale):
    shown = [
        pixels for picture, pixels in placed(every_picture()[name]) if len(picture) == 28 * scale
    ]
    given_images = {image.tobytes() for image in scored()[0]}
    assert shown
    for pixels in shown:
        squares = pixels.reshape(28, scale, 28, scale * 3)
        assert (squares == squares[:, :1, :, :1]).all()
        assert squares[:, 0, :, 0].tobytes() in given_images


@pytest.mark.parametrize(
    "figure",
    [
        prediction_grid(1, 1),
        prediction_grid(1, 1, wrong=[0]),
        prediction_grid(20, 2),
        prediction_grid(2, 20, wrong=range(60)),
        prediction_grid(20, 20, samples=400, wrong=range(399)),
        figures.confident_mistakes(*scored(), 50),
        figures.confident_mistakes(*scored(wrong=range(60)), 50),
        figures.confident_mistakes(*scored(wrong=[]), 50),
        figures.learning_curves(*curves(1), np.array([0.5])),
        figures.learning_curves(*curves(2), np.array([0.5, 1])),
        figures.learning_curves(*curves(3), np.array([1, 1, 1.0])),
        figures.learning_curves(*curves(9, 2.31, 2.3), np.full(9, 0.1)),
        figures.learning_curves(*curves(60, 700, 1e-9), np.linspace(0, 0.9991, 60)),
        figures.learning_curves(*curves(10000), np.linspace(0.1, 0.98, 10000)),
        figures.confusion_matrix(*[np.arange(10).repeat(1000)] * 2),
        figures.confusion_matrix(np.arange(10).repeat(1135), np.zeros(11350, np.int64)),
        figures.first_layer_weights(np.full((784, 1), -1e-5, np.float32)),
        figures.first_layer_weights(np.full((784, 8192), 1234.5, np.float32)),
        figures.sample_image(np.zeros((28, 28), np.uint8), 5),
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
    expected = scored()[0][: rows * columns].reshape(-1, 28, 28)
    shown = [image[..., 0] for image in enlarged_images(figure, 5)]
    np.testing.assert_array_equal(shown, expected)


def test_the_prediction_grid_is_filled_as_far_as_there_are_images():
    assert words(prediction_grid(samples=12, wrong=[])).count("Pred: 1") == 2
    assert words(prediction_grid(samples=12, wrong=[2]))[0] == (
        "The first 12 test images: 11 right, 1 wrong"
    )


def test_right_is_green_and_wrong_is_red_bold_and_framed():
    images, labels, probabilities = scored(samples=2, wrong=[1])
    figure = figures.prediction_grid(images, labels, probabilities.argmax(axis=1), 1, 2)
    looks = {
        text.get_text(): (to_hex(text.get_color()), Path(text.get_fontproperties().get_file()).stem)
        for text in figure.texts[1:]
    }
    assert looks["Pred: 0"] == looks["True: 0"] == ("#008000", "DejaVuSans")
    assert looks["Pred: 2"] == looks["True: 1"] == ("#cc0000", "DejaVuSans-Bold")
    page = figures.render(figure)
    right, wrong = (text.get_position()[0] for text in figure.texts[1::2])
    red = (page == (204, 0, 0)).all(axis=2)
    assert not red[:, : wrong - 20].any()
    frame_rows, frame_columns = np.nonzero(red)
    middle = (frame_rows.min() + frame_rows.max()) // 2
    assert red[:, wrong - 5].sum() > 140, "a vertical red bar left of the wrong image"
    assert (page[middle, right - 5] == WHITE).all(), "and none left of the right one"
    assert frame_columns.max() > wrong + 140


def test_the_most_confident_mistakes_come_first_with_their_probabilities():
    images, labels, probabilities = scored(wrong=range(0, 60, 3))
    figure = figures.confident_mistakes(images, labels, probabilities, 4)
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
    images = np.zeros((3, 784), np.uint8)
    images[:, 0] = 10, 20, 30
    probabilities = np.tile(np.float32([0, 1]), (3, 5)).reshape(3, 10)
    figure = figures.confident_mistakes(images, np.array([0, 2, 4]), probabilities, 3)
    assert [image[0, 0, 0] for image in enlarged_images(figure, 9)] == [10, 20, 30]


def test_a_probability_is_not_rounded_to_none_or_all():
    labels = np.array([1])
    probabilities = np.zeros((1, 10), np.float32)
    probabilities[0, :2] = 0.99996, 0.00004
    figure = figures.confident_mistakes(np.zeros((1, 784), np.uint8), labels, probabilities, 1)
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
    images, labels, probabilities = scored(wrong=wrong)
    figure = figures.confident_mistakes(images, labels, probabilities, 20)
    assert words(figure)[0] == heading
    assert len(figure.images) == len(wrong)
    png.encode(figures.render(figure))
    matrix = figures.confusion_matrix(labels, probabilities.argmax(axis=1))
    assert words(matrix)[0] == heading


def test_the_confusion_matrix_shows_each_count_and_shades_the_mistakes():
    # Of the images of digit 1, half are taken for 2; of those of digit 5, a quarter for 6.
    labels = np.repeat(np.arange(10), 20).astype(np.uint8)
    predictions = labels.astype(np.int64)
    predictions[20:30] = 2
    predictions[100:105] = 6
    figure = figures.confusion_matrix(labels, predictions)
    shown = words(figure)
    assert shown[0] == "15 mistakes on 200 test images"
    assert {"50.0 %", "75.0 %"} < set(shown)
    assert shown.count("20") == 8
    cells = [tuple(picture[0, 0].tolist()) for picture, _ in placed(figure)]
    grid = [cells[10 * row : 10 * row + 10] for row in range(10)]
    assert grid[1][2] == figures.BLUE, "the darkest"
    assert grid[5][6] == (127, 161, 195), "half as dark"
    assert {grid[digit][digit] for digit in range(10)} == {figures.LIGHT_GREY}
    others = {grid[i][j] for i in range(10) for j in range(10) if i != j} - {grid[1][2], grid[5][6]}
    assert others == {WHITE}


def test_weights_have_one_symmetric_scale_and_zero_is_white():
    W = np.zeros((784, 3), np.float32)
    W[:, 0] = np.linspace(-1, 1, 784)
    W[:, 1] = -W[:, 0]
    W[5, 2] = 1000
    figure = figures.first_layer_weights(W)
    rising, falling, flat = (image.reshape(784, 3) for image in enlarged_images(figure, 4))
    np.testing.assert_array_equal(rising, falling[::-1])
    assert tuple(flat[0]) == WHITE
    assert tuple(rising[0]) == figures.ORANGE
    assert tuple(rising[-1]) == tuple(flat[5]) == figures.BLUE
    assert words(figure)[1].startswith("-0.9"), "one huge weight doesn't make the others pale"


@pytest.mark.parametrize(
    ("units", "shown", "heading"),
    [
        (1, 1, "First layer: weights of its 1 unit"),
        (64, 64, "First layer: weights of its 64 units"),
        (1024, 64, "First layer: weights of the first 64 of its 1,024 units"),
    ],
)
def test_at_most_64_units_are_shown(units, shown, heading):
    W = np.random.default_rng(0).standard_normal((784, units), np.float32)
    figure = figures.first_layer_weights(W)
    assert words(figure)[0] == heading
    assert len(enlarged_images(figure, 4)) == shown


def test_learning_curves_name_the_lowest_error_and_their_axes_enclose_the_values():
    figure = figures.learning_curves(
        np.array([0.3, 0.04]), np.array([0.2, 0.07]), np.array([0.95, 0.9812])
    )
    shown = words(figure)
    assert "lowest: 1.88 % after epoch 2" in shown
    assert [word for word in shown if word.startswith("0.")] == [
        "0.02",
        "0.05",
        "0.1",
        "0.2",
        "0.5",
    ]
    assert [word for word in shown if len(word) == 3 and word.endswith(" %")] == [
        f"{percent} %" for percent in range(6)
    ]


def test_curves_run_through_their_values_four_pixels_thick_and_training_is_dashed():
    # Over 40 epochs the error is 5 %, the topmost tick, and both losses lie on ticks as well.
    figure = figures.learning_curves(np.full(40, 0.2), np.full(40, 0.1), np.full(40, 0.95))
    losses, errors = (pixels for picture, pixels in placed(figure) if picture.shape[1] == 720)
    orange = (errors == figures.ORANGE).all(axis=2)
    assert orange[8:12, 30:700].all(), "two pixels above and two below the value"
    assert orange.sum() < 4 * 720
    assert (errors[10, 10] == figures.INK).all(), "the first of the lowest errors is marked"
    validation = (losses == figures.ORANGE).all(axis=2).any(axis=0)
    training = (losses == figures.BLUE).all(axis=2).any(axis=0)
    assert validation[10:-10].mean() == 1
    assert 0.6 < training[10:-10].mean() < 0.7


def test_a_sloping_curve_covers_what_lies_within_two_pixels_of_it():
    figure = figures.learning_curves(*curves(2), np.array([0.95, 1.0]))
    _, errors = (pixels for picture, pixels in placed(figure) if picture.shape[1] == 720)
    # From 5 % to 0 %: from the top left to the bottom right corner of 700 x 540 pixels.
    y, x = np.mgrid[0:560, 0:720] + 0.5 - 10
    distance = np.abs(540 * x - 700 * y) / np.hypot(540, 700)
    away_from_dots = (x > 20) & (x < 680)
    orange = (errors == figures.ORANGE).all(axis=2)
    assert orange[away_from_dots & (distance < 1.2)].all()
    assert not orange[away_from_dots & (distance > 2)].any()
    touched = (errors[..., 0] != errors[..., 2]) & away_from_dots
    assert touched[away_from_dots & (distance < 2)].all()
    assert not touched[distance > 2.8].any()


def test_a_loss_of_zero_and_an_error_of_zero_can_be_drawn():
    figure = figures.learning_curves(np.zeros(2), np.zeros(2), np.ones(2))
    assert "lowest: 0.00 % after epoch 1" in words(figure)
    figures.render(figure)


def test_the_sample_image_has_its_label_as_title():
    image = np.arange(784, dtype=np.uint64).astype(np.uint8).reshape(28, 28)
    figure = figures.sample_image(image, 5)
    assert words(figure)[0] == "Training image, label: 5"
    np.testing.assert_array_equal(enlarged_images(figure, 24)[0][..., 2], image)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/raw", "models", "reports"):
        Path(folder).mkdir(parents=True)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    images, labels, probabilities = scored()
    np.save("data/raw/x_train.npy", images.reshape(-1, 28, 28))
    np.save("data/raw/y_train.npy", labels)
    np.savez("data/scored.npz", images=images, labels=labels, probabilities=probabilities)
    np.savez("models/model.npz", W1=np.ones((784, 4), np.float32), b1=np.ones(4, np.float32))
    Path("reports/learning_curves.csv").write_text(
        "epoch,train_loss,validation_loss,validation_accuracy\n1,0.3,0.2,0.94\n2,0.2,0.1,0.96\n"
    )
    return tmp_path


def test_the_stage_writes_each_picture_as_its_function_draws_it(project):
    visualize.main()
    written = {path.stem: path.read_bytes() for path in Path("reports").glob("*.png")}
    assert set(written) == set(every_picture())
    sample = every_picture()["sample_image"]
    assert written["sample_image"] == png.encode(figures.render(sample))
    with Image.open(io.BytesIO(written["prediction_grid"])) as picture:
        np.testing.assert_array_equal(picture, figures.render(prediction_grid()))


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("epoch,train_loss,validation_loss,validation_accuracy\n", "no epochs"),
        ("epoch,train_loss\n1,0.3\n", "must hold a finite number for train_loss"),
        ("epoch,train_loss,validation_loss,validation_accuracy\n1,nan,0.2,0.9\n", "finite number"),
        ("epoch,train_loss,validation_loss,validation_accuracy\n1,a,0.2,0.9\n", "finite number"),
        ("epoch,train_loss,validation_loss,validation_accuracy\n1,0.2\n", "finite number"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_named(project, table, problem):
    Path("reports/learning_curves.csv").write_text(table)
    with pytest.raises(InputError, match=rf"^reports/learning_curves\.csv: .*{problem}"):
        visualize.main()
    assert not list(Path("reports").glob("*.png"))


def test_a_missing_array_is_named(project):
    np.savez("models/model.npz", W2=np.ones((4, 10), np.float32))
    with pytest.raises(InputError, match=r"^models/model\.npz: no array W1"):
        visualize.main()
