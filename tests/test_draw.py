"""`make draw`: the page's arithmetic against Python's bits, and the page in real browsers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core import Array, elementary, exact
from stages.core.augmentation import Augmentation
from stages.core.config import TrainConfig
from stages.core.network import Layer, Parameters
from stages.core.prediction import classify
from stages.core.training import train
from stages.pipeline.command import InputError
from stages.pipeline.datasets import DESCRIPTION, MNIST, save_description
from stages.pipeline.model_file import MODEL, save_model
from stages.pipeline.schemas import Scored, save_scored
from tests.checks.browsers import Browser, Chromium, Firefox, Point
from tools import draw, handwriting

# As people write them, in a square of side 1.
DIGITS: dict[str, list[list[tuple[float, float]]]] = {
    "0": [[(0.5 - 0.2 * np.sin(t), 0.5 - 0.32 * np.cos(t)) for t in np.linspace(0, 6.3, 25)]],
    "1": [[(0.53, 0.15), (0.5, 0.5), (0.47, 0.85)]],
    "2": [[
        (0.30, 0.30), (0.35, 0.20), (0.50, 0.15), (0.65, 0.20), (0.68, 0.33), (0.60, 0.48),
        (0.45, 0.65), (0.30, 0.82), (0.50, 0.82), (0.72, 0.82),
    ]],
    "3": [[
        (0.32, 0.20), (0.50, 0.15), (0.65, 0.22), (0.65, 0.36), (0.50, 0.46), (0.45, 0.47),
        (0.60, 0.50), (0.70, 0.62), (0.65, 0.77), (0.50, 0.84), (0.32, 0.78),
    ]],
    "4": [
        [(0.40, 0.15), (0.35, 0.35), (0.30, 0.52), (0.50, 0.52), (0.72, 0.50)],
        [(0.60, 0.30), (0.60, 0.55), (0.58, 0.88)],
    ],
    "5": [
        [
            (0.40, 0.18), (0.36, 0.45), (0.50, 0.42), (0.64, 0.50), (0.67, 0.65), (0.60, 0.80),
            (0.45, 0.85), (0.32, 0.80),
        ],
        [(0.40, 0.18), (0.68, 0.17)],
    ],
    "6": [[
        (0.60, 0.15), (0.45, 0.30), (0.36, 0.50), (0.35, 0.68), (0.42, 0.82), (0.55, 0.84),
        (0.65, 0.74), (0.63, 0.60), (0.52, 0.54), (0.40, 0.60), (0.36, 0.68),
    ]],
    "7": [[(0.30, 0.20), (0.50, 0.20), (0.70, 0.20), (0.60, 0.45), (0.50, 0.65), (0.45, 0.85)]],
    "8": [[
        (0.62, 0.25), (0.50, 0.17), (0.38, 0.25), (0.42, 0.40), (0.55, 0.50), (0.65, 0.65),
        (0.60, 0.80), (0.48, 0.84), (0.37, 0.77), (0.38, 0.63), (0.50, 0.50), (0.60, 0.38),
        (0.62, 0.25),
    ]],
    "9": [[
        (0.65, 0.30), (0.52, 0.20), (0.38, 0.27), (0.37, 0.42), (0.50, 0.48), (0.63, 0.40),
        (0.65, 0.30), (0.63, 0.50), (0.60, 0.70), (0.55, 0.87),
    ]],
}  # fmt: skip

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")


@pytest.fixture(scope="module")
def trained(mnist: dict[str, Array]) -> Parameters:
    """A network that knows digits: the default one after three epochs."""
    images, labels = mnist["x_train"], mnist["y_train"]
    config = TrainConfig(
        hidden_sizes=[64], initialisation="he", optimizer="sgd", learning_rate=0.1,
        schedule="one_cycle", momentum=0.9, batch_size=128, epochs=3, l2=0.0, weight_decay=0.0,
        dropout=0.0, label_smoothing=0.0, ema_decay=0.0, seed=1, keep="last",
        augmentation=Augmentation(
            rotation=0.0, scale=0.0, shear=0.0, shift=0.0, elastic=0.0, smoothness=4.0,
            thickness=0.0,
        ),
    )  # fmt: skip
    return train((images, labels), (images[:1000], labels[:1000]), config)


@pytest.fixture(scope="module")
def scored(trained: Parameters, mnist: dict[str, Array]) -> Scored:
    digits, probabilities = classify(trained, mnist["x_test"])
    return Scored(
        mnist["x_test"],
        mnist["y_test"],
        digits.astype(np.uint8),
        probabilities.astype(np.float32),
    )


@pytest.fixture(scope="module")
def page(trained: Parameters, scored: Scored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("draw") / "draw.html"
    path.write_text(draw.page(trained, scored, MNIST.shape, MNIST.classes), encoding="utf-8")
    return path


# ---- The arithmetic, in Node: fast, and of networks of any depth.


def node(script: str, **data: Any) -> Any:
    """Run the page's pure functions and return what the script returns."""
    program = f"""
        {draw.source("network.js")}
        {draw.source("ink.js")}
        const bytes = (base64) => Uint8Array.from(Buffer.from(base64, "base64"));
        const floats = (base64) => new Float32Array(bytes(base64).buffer);
        const data = {json.dumps(data)};
        console.log(JSON.stringify((() => {{ {script} }})()));
    """
    ran = subprocess.run(
        ["node", "-"], input=program, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def assert_same_bits(parameters: Parameters, images: Array, answers: Sequence[Any]) -> None:
    """Check [digit, probabilities] of each image; JSON keeps every bit of a float64."""
    expected = classify(parameters, images)
    assert [digit for digit, _ in answers] == expected.classes.tolist()
    found = np.array([probabilities for _, probabilities in answers])
    assert found.tobytes() == expected.probabilities.tobytes()


def classified_by_node(parameters: Parameters, images: Array) -> list[Any]:
    script = """
        const network = { ...data.network, layers: data.network.layers.map((layer) =>
            ({ ...layer, W: floats(layer.W), b: floats(layer.b) })) };
        const all = bytes(data.images);
        return Array.from({ length: all.length / data.pixels }, (_, i) => {
            const pixels = all.subarray(i * data.pixels, (i + 1) * data.pixels);
            const { prediction, probabilities } = classify(network, pixels);
            return [prediction, Array.from(probabilities)];
        });
    """
    answers: list[Any] = node(
        script,
        network=draw.network(parameters),
        images=draw.encoded(images),
        pixels=images[0].size,
    )
    return answers


@needs_node
def test_probabilities_have_pythons_bits(trained: Parameters, mnist: dict[str, Array]) -> None:
    assert_same_bits(trained, mnist["x_test"], classified_by_node(trained, mnist["x_test"]))


@needs_node
def test_deep_networks_at_their_formats_ends_have_pythons_bits() -> None:
    """Coarsened weights, activations that saturate, biases of any bits, ties of all classes."""
    generator = np.random.default_rng(3)
    sizes = [30, 20, 17, 12, 5]
    parameters = []
    for inputs, outputs in pairwise(sizes):
        W = generator.normal(0, 6 if outputs == 20 else 1.5, (inputs, outputs))
        b = generator.normal(0, 1, outputs)
        parameters.append(Layer(W.astype(np.float32), b.astype(np.float32)))
    images = generator.integers(0, 256, (300, 5, 6), dtype=np.uint8)
    images[0], images[1] = 0, 255
    assert_same_bits(parameters, images, classified_by_node(parameters, images))

    silent = [Layer(np.zeros_like(W), np.zeros_like(b)) for W, b in parameters]
    assert_same_bits(silent, images[:3], classified_by_node(silent, images[:3]))


@needs_node
def test_exponentials_have_pythons_bits() -> None:
    ties = -(np.arange(100) + 0.5) / elementary.STEPS_PER_UNIT
    x = np.concatenate([[0.0, -0.0, -32.0, -31.999, -1e9], ties, -np.geomspace(1e-18, 40, 2000)])
    assert np.array(node("return data.x.map(exp);", x=x.tolist())).tobytes() == (
        elementary.exp(x).tobytes()
    )
    rounded = node(
        "return data.x.map((x) => roundFloat64(exp(x), EXPONENTIAL_QUANTUM));", x=x.tolist()
    )
    expected = exact.round_to(elementary.exp(x), exact.EXPONENTIAL_QUANTUM)
    assert np.array(rounded).tobytes() == expected.tobytes()


@needs_node
def test_a_drawing_is_prepared_as_python_prepares_it() -> None:
    generator = np.random.default_rng(4)
    inks = [np.zeros((9, 7), np.uint8), np.ones((3, 300), np.uint8), np.full((560, 560), 255, "u1")]
    for _ in range(300):
        size = generator.integers(1, 90, 2)
        ink = generator.integers(0, 256, size, dtype=np.uint8)
        ink[generator.random(size) < generator.random()] = 0
        inks.append(np.pad(ink, generator.integers(0, 40, (2, 2))))
    frames = [(28, 28), (28, 28), (28, 28)] + [(28, 28), (20, 33), (14, 9)] * 100
    found = node(
        """
        return data.inks.map(([height, width, pixels], i) =>
            Array.from(centred({ height, width, pixels: bytes(pixels) }, data.frames[i])));
        """,
        inks=[(*ink.shape, draw.encoded(ink)) for ink in inks],
        frames=frames,
    )
    for ink, frame, pixels in zip(inks, frames, found, strict=True):
        expected = handwriting.centred(ink, frame)
        assert pixels == expected.ravel().tolist(), (ink.shape, frame)


# ---- The file.


def test_the_page_is_small_and_asks_for_nothing(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert page.stat().st_size <= 400_000
    assert "default-src 'none'" in html
    assert re.findall(r"""(?:src|href)=(?!["']data:)""", html) == []
    assert re.findall(r"\bhttps?:|\bimport\b|@import|url\(", html) == []


def test_the_examples_are_one_of_each_and_the_most_confident_mistakes(scored: Scored) -> None:
    typical, mistakes = draw.examples(scored)
    assert scored.labels[typical].tolist() == scored.predictions[typical].tolist() == [*range(10)]
    certainty = scored.probabilities.max(axis=1)
    wrong = scored.predictions != scored.labels
    assert wrong[mistakes].all()
    assert certainty[mistakes].min() >= np.sort(certainty[wrong])[-draw.MISTAKES]


def test_the_page_is_the_models_and_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Parameters, scored: Scored, page: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["draw"])
    missing = r"^data/raw/dataset\.json: no such file; 'dvc repro' makes it"
    with pytest.raises(InputError, match=missing):
        draw.main()
    DESCRIPTION.parent.mkdir(parents=True)
    save_description(MNIST)
    with pytest.raises(InputError, match=r"^models/model\.npz: no such file; 'dvc repro' makes it"):
        draw.main()
    save_model(MODEL, trained)
    with pytest.raises(InputError, match=r"^data/scored\.npz: no such file; 'dvc repro' makes it"):
        draw.main()
    assert not (tmp_path / draw.PAGE).exists()
    save_scored(scored)
    draw.main()
    assert (tmp_path / draw.PAGE).read_bytes() == page.read_bytes()


# ---- The page in browsers.


@pytest.fixture(scope="module", params=[Chromium, Firefox])
def browser(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    if request.param.PROGRAM is None:
        pytest.skip(f"there is no {request.param.__name__}")
    started: Browser = request.param(tmp_path_factory.mktemp("browser") / "profile")
    yield started
    started.close()


@pytest.fixture
def fresh(browser: Browser, page: Path) -> Browser:
    """The browser with the page just opened, 1280 pixels wide."""
    browser.open(page.as_uri())
    browser.show(1280, 900, "light")
    return browser


def text(browser: Browser, name: str) -> str:
    found: str = browser.run(f"return document.getElementById('{name}').textContent;")
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for what a page shows with its next picture."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def replay(
    browser: Browser, strokes: Sequence[Sequence[tuple[float, float]]], pointer: str
) -> None:
    """Draw on the paper, with two more points between any two."""
    left, top, side, _ = browser.run("""
        const paper = document.getElementById("paper");
        paper.scrollIntoView({ block: "center" });
        const { left, top, width, height } = paper.getBoundingClientRect();
        return [left, top, width, height];
    """)
    for stroke in strokes:
        knots, places = np.arange(len(stroke)), np.linspace(0, len(stroke) - 1, 3 * len(stroke) - 2)
        x, y = (np.interp(places, knots, axis) for axis in zip(*stroke, strict=True))
        points = zip((left + side * x).tolist(), (top + side * y).tolist(), strict=True)
        browser.stroke([Point(*point) for point in points], pointer)


def press(browser: Browser, name: str) -> None:
    browser.run(f"document.getElementById('{name}').click();")


def test_all_test_images_have_pythons_bits(
    fresh: Browser, trained: Parameters, mnist: dict[str, Array]
) -> None:
    answers = []
    for part in np.split(mnist["x_test"], 10):
        found = fresh.run(f"""
            const all = bytes("{draw.encoded(part)}");
            const size = {part[0].size};
            return JSON.stringify(Array.from({{ length: {len(part)} }}, (_, i) => {{
                const found = recognise(all.subarray(i * size, (i + 1) * size));
                return [found.prediction, Array.from(found.probabilities)];
            }}));
        """)
        answers += json.loads(found)
    assert_same_bits(trained, mnist["x_test"], answers)


@pytest.mark.parametrize(
    ("pointer", "width", "scale"),
    [("mouse", 1280, 1.0), ("mouse", 1280, 0.2), ("touch", 360, 1.0), ("pen", 1280, 1.0)],
)
def test_each_digit_drawn_is_recognised(
    fresh: Browser, pointer: str, width: int, scale: float
) -> None:
    if pointer == "pen" and isinstance(fresh, Firefox):
        pytest.skip("Marionette has no pen")
    fresh.show(width, 800, "light")
    for digit, strokes in DIGITS.items():
        press(fresh, "clear")
        smaller = [[(scale * x, scale * y) for x, y in stroke] for stroke in strokes]
        replay(fresh, smaller, pointer)
        until(lambda: text(fresh, "status") != "The paper is blank.")
        assert text(fresh, "digit") == digit
        assert text(fresh, "status").startswith(f"{digit}: ")


def test_the_bars_follow_and_undo_and_clear_take_back(fresh: Browser) -> None:
    def percents() -> list[str]:
        found: list[str] = fresh.run(
            "return Array.from(document.querySelectorAll('#bars .percent'), (p) => p.textContent);"
        )
        return found

    assert percents() == [""] * 10
    assert text(fresh, "digit") == ""
    seen = []
    for stroke in DIGITS["4"]:
        replay(fresh, [stroke], "mouse")
        seen.append(percents())
    assert seen[0] != seen[1]
    press(fresh, "undo")
    assert percents() == seen[0]
    press(fresh, "clear")
    assert percents() == [""] * 10
    press(fresh, "undo")
    assert percents() == seen[0]
    press(fresh, "undo")
    assert percents() == [""] * 10


def test_an_example_is_seen_as_it_stands_in_the_test_set(
    fresh: Browser, trained: Parameters, scored: Scored
) -> None:
    index = draw.examples(scored)[1][0]
    fresh.run("document.querySelector('#mistakes button').click();")
    probability = classify(trained, scored.images[[index]]).probabilities.max()
    shown = f"{probability:.1%}" if f"{probability:.1%}" != "100.0%" else ">99.9%"
    assert text(fresh, "digit") == MNIST.classes[scored.predictions[index]]
    assert text(fresh, "doubt").startswith(shown)
    assert text(fresh, "doubt").endswith(f"labelled {MNIST.classes[scored.labels[index]]}")


def test_the_first_layers_reaction_is_its_activations(
    fresh: Browser, trained: Parameters, scored: Scored
) -> None:
    fresh.run("""
        document.querySelector("details").open = true;
        document.querySelector("#typical button").click();
    """)
    index = draw.examples(scored)[0][0]
    W, b = trained[0]
    active = int((scored.images[index].ravel() / 256 @ W + b > 2.0**-17).sum())
    assert text(fresh, "reaction") == f"{active} of {len(b)} units react."
    silent = "return document.querySelectorAll('#units .silent').length;"
    until(lambda: fresh.run(silent) == len(b) - active)


def test_a_digit_can_be_drawn_by_keyboard_alone(fresh: Browser) -> None:
    while fresh.run("return document.activeElement.id;") != "paper":
        fresh.key("Tab")
    fresh.key(" ")
    for _ in range(14):
        fresh.key("ArrowDown")
    fresh.key(" ")
    assert text(fresh, "status").startswith("1: ")
    fresh.key("ArrowLeft")  # with the pen lifted
    before = text(fresh, "doubt")
    fresh.key("ArrowLeft")
    assert text(fresh, "doubt") == before
    fresh.key("Delete")
    assert text(fresh, "status") == "The paper is blank."
    fresh.key("Backspace")
    assert text(fresh, "status").startswith("1: ")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(fresh: Browser, width: int) -> None:
    fresh.show(width, 800, "dark")
    fresh.run("document.querySelector('details').open = true;")
    assert fresh.run("return document.documentElement.scrollWidth;") <= width
    assert fresh.run("return matchMedia('(prefers-color-scheme: dark)').matches;")


def test_the_console_is_empty_and_no_request_leaves_the_page(fresh: Browser, page: Path) -> None:
    """After all tests above, with the same browser."""
    assert fresh.messages() == []
    assert set(fresh.requests()) <= {page.as_uri()}


def test_the_checks_see_what_a_page_says_and_asks_for(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("""<!DOCTYPE html><img src="http://127.0.0.1:49151/picture.png"><script>
        console.log("spoken");
        throw new Error("thrown");
    </script>""")
    browser.open(bad.as_uri())
    said = "".join(browser.messages())
    assert "spoken" in said
    assert "thrown" in said
    assert "http://127.0.0.1:49151/picture.png" in browser.requests()
