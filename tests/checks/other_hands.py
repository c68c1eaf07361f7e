"""Score the model on digits that are not MNIST's files: `python -m tests.checks.other_hands`.

A thousand test images become photos, and scikit-learn's `load_digits` (1,797 digits of other
people, 8 x 8) is enlarged. What each step of the preparation adds is shown for the latter: the
steps were chosen by the images at even places, so the odd ones are given apart.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from stages.pipeline import threads  # noqa: F401  (before NumPy)

# isort: split
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stages.core import Array
from stages.core.prediction import classify
from stages.pipeline.datasets import MNIST, load_raw
from stages.pipeline.model_file import MODEL, load_model
from tests.checks.photos import photo
from tools import handwriting
from tools.handwriting import NoInkError, centred, prepared
from tools.predict import Prediction, predict

PHOTOS = 1000
ENLARGEMENT = 10


def photo_accuracies(count: int, seed: int) -> tuple[float, float]:
    """Return the accuracy on the first test images as they are and as photos, through files."""
    images, labels = load_raw("test")
    images, labels = images[:count], labels[:count]
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, image in enumerate(images):
            files.append(f"{folder}/{number}.jpg")
            Path(files[-1]).write_bytes(photo(image, generator))
        results = predict(files, MNIST)
    correct = [
        isinstance(result, Prediction) and result.ranking[0] == label
        for result, label in zip(results.values(), labels, strict=True)
    ]
    return accuracy(images, labels), float(np.mean(correct))


def accuracy(images: Array, labels: Array) -> float:
    """Return the model's accuracy on prepared images (samples, height, width) uint8."""
    model = load_model(MODEL, MNIST.pixels, len(MNIST.classes))
    return float((classify(model, images).classes == labels).mean())


def other_digits() -> tuple[Array, Array]:
    """Return scikit-learn's digits (1797, 8, 8) uint8 and their labels."""
    digits = load_digits()
    return np.rint(digits.images * 255 / 16).astype(np.uint8), digits.target


def enlarged(image: Array, resampling: Image.Resampling, factor: int = ENLARGEMENT) -> Array:
    """Return an image, larger by a whole factor."""
    size = image.shape[1] * factor, image.shape[0] * factor
    return np.asarray(Image.fromarray(image).resize(size, resampling))


def or_empty(image: Array) -> Array:
    """Return the prepared image, an empty frame for a blank one."""
    try:
        return prepared(image, MNIST.shape)
    except NoInkError:
        return np.zeros(MNIST.shape, np.uint8)


def step_by_step(image: Array) -> dict[str, Array]:
    """Return what the network would see after more and more steps of the preparation."""
    ink = image / np.float32(255)
    box = handwriting._box(ink > 0)
    size = handwriting.WORKING_SIZE
    large = handwriting._resized(ink, box, size / max(side.stop - side.start for side in box))

    def finished(ink: Array) -> Array:
        return centred(np.rint(255 * ink).astype(np.uint8), MNIST.shape)

    return {
        "resized to the frame": np.asarray(
            Image.fromarray(image).resize(MNIST.shape[::-1], Image.Resampling.BICUBIC)
        ),
        "box and centre of mass alone": centred(image, MNIST.shape),
        "after smooth enlargement": finished(large),
        "with steep edges": finished(handwriting._steepened(large)),
        "with MNIST's stroke width: all steps": or_empty(image),
    }


def main() -> None:
    """Print the accuracies."""
    as_they_are, as_photos = photo_accuracies(PHOTOS, seed=1)
    print(f"{PHOTOS} test images as they are: {as_they_are:.2%}; as photos: {as_photos:.2%}")
    images, labels = other_digits()
    steps = [step_by_step(image) for image in images]
    rows = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    for name in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS"):
        rows[f"all steps, enlarged before: {name.lower()}"] = np.stack([
            or_empty(enlarged(image, Image.Resampling[name])) for image in images
        ])  # fmt: skip
    print(f"load_digits {'':34} {'all':>7} {'even':>7} {'odd':>7}")
    for name, seen in rows.items():
        parts = [accuracy(seen[part], labels[part])
                 for part in (slice(None), slice(0, None, 2), slice(1, None, 2))]  # fmt: skip
        print(f"  {name:44} {' '.join(f'{part:7.2%}' for part in parts)}")


if __name__ == "__main__":
    main()
