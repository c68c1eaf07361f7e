"""The training: mini-batch gradient descent, epoch by epoch.

A crew of processes trains one network. Each owns some of its units (see `stages.engine.share`), and
each prepares some images of a batch to come while this batch is learnt. Nothing is ever added up
across processes in an order that could vary: the sums are exact, so the number of processes does
not change a bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from stages.core import Array
from stages.core.augmentation import (
    GROUP,
    NO_AUGMENTATION,
    Augmentation,
    Deformations,
    Scratch,
    deform,
    draw,
)
from stages.core.data import CLASSES, Images, Look
from stages.core.elementary import log
from stages.core.exact import LARGEST_PART, Arithmetic, Exact, ExactnessError, Plain
from stages.core.network import Layer, initialise, on_grids, one_hot, score, smoothed
from stages.core.normalisation import Moments, folded
from stages.core.optimizers import Adam, Momentum, Optimizer, scheduled
from stages.engine.crew import Crew, shared_array
from stages.engine.share import IMAGE_PLACES, Board, Regularisation, Share

_CHUNK = 64
"""Groups of images whose deformations are drawn at once."""
_LARGEST_COPY = 2**27
"""Bytes of images that are copied to have their pixels sorted; more of them stay as they are."""


class DivergedError(ArithmeticError):
    """The loss or a weight is no longer a finite, reasonable number."""


@dataclass(frozen=True)
class Recipe:
    """How to train: the parameters of the `train` stage, under the same names."""

    hidden_sizes: Sequence[int]
    initialisation: Literal["he", "glorot", "uniform"] = "he"
    optimizer: Literal["sgd", "nesterov", "adam"] = "sgd"
    learning_rate: float = 0.1
    schedule: Literal["constant", "cosine", "step", "one_cycle"] = "constant"
    warm_up: float = 0.0
    momentum: float = 0.9
    batch_size: int | Literal["all"] = 128
    epochs: int = 10
    l2: float = 0.0
    weight_decay: float = 0.0
    max_norm: float = 0.0
    dropout: float = 0.0
    batch_normalisation: bool = False
    label_smoothing: float = 0.0
    average: float = 0.0
    augmentation: Augmentation = NO_AUGMENTATION
    seed: int = 1
    keep: Literal["best", "last"] = "last"


class Epoch(NamedTuple):
    """What the learning curves say of an epoch, numbered from 1; losses are means."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float


class State(NamedTuple):
    """All that a training needs to go on after an epoch, whatever the number of workers.

    Attributes:
        epoch: how many epochs are done.
        steps: how many steps.
        best: the validation accuracy of the weights kept so far.
        grids: those of the weights; none in ordinary floating point.
        moments: for each hidden layer, (2, units) averages of mean and variance.
        whole: layers of whole networks: the parameters, the average if there is one, and each of
            the optimizer's slots.
        kept: the weights kept so far.
    """

    epoch: int
    steps: int
    best: float
    grids: list[float]
    moments: list[Array]
    whole: list[list[Layer]]
    kept: list[Layer]


class Training:
    """One training run: its data, its parameters and the memory that the crew shares."""

    def __init__(
        self,
        train: tuple[Array, Array],
        validation: tuple[Array, Array],
        recipe: Recipe,
        workers: int = 1,
        exact: bool = True,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        """Prepare the run.

        Args:
            train: x (samples, 784) uint8, a pixel's brightness being its value / 256; y (samples,).
            validation: the same for the validation set, which is only scored.
            recipe: how to train.
            workers: processes to share the work among; changes no bit of the result.
            exact: exact sums (the pipeline's arithmetic), or else ordinary floating point.
            dtype: of ordinary floating point.
        """
        self.recipe, self.validation = recipe, validation
        x, labels = train
        # Deforming an image needs its pixels in their places, and dropout the images in theirs.
        as_they_are = recipe.augmentation or recipe.dropout or x.nbytes > _LARGEST_COPY
        self.images = Images.as_they_are(x) if as_they_are else Images.by_use(x)
        self.labels = labels.astype(np.intp)
        self.targets = smoothed(one_hot(np.arange(CLASSES), CLASSES), recipe.label_smoothing)
        self.batch_size = len(x) if recipe.batch_size == "all" else recipe.batch_size
        self.crew = Crew(workers)
        self.optimizer: Optimizer = (
            Adam()
            if recipe.optimizer == "adam"
            else Momentum(recipe.momentum, nesterov=recipe.optimizer == "nesterov")
        )

        sizes = [x.shape[1], *recipe.hidden_sizes, CLASSES]
        self.start = initialise(sizes, recipe.initialisation, np.random.default_rng(recipe.seed))
        self.arithmetic: Arithmetic = Exact([W for W, _ in self.start]) if exact else Plain(dtype)
        part = min(LARGEST_PART, self.batch_size)
        self.board = Board(sizes, part, workers, self.arithmetic)
        self.regularisation = Regularisation(
            l2=recipe.l2,
            weight_decay=recipe.weight_decay,
            max_norm=recipe.max_norm,
            dropout=recipe.dropout,
            batch_normalisation=recipe.batch_normalisation,
        )
        self.layers = self._shared_layers(sizes)
        """The whole network after the last epoch: what is scored and kept."""
        vectors = 1 + (recipe.average > 0.0) + self.optimizer.slots
        self.whole = [self._shared_layers(sizes) for _ in range(vectors)]
        self.save_now = shared_array(1, np.uint8)
        self.resumed: State | None = None
        self.groups = -(-len(x) // GROUP)
        if recipe.augmentation:
            self.deformations = Deformations(
                shared_array((self.groups, x.shape[1]), np.int16),
                shared_array((self.groups, 4, x.shape[1])),
                shared_array(self.groups),
            )
        # Of each image in an epoch's order, what its loss is made of: log(total) - shifted.
        self.shifted, self.totals = (shared_array(len(x), np.float64) for _ in range(2))
        self.scores = shared_array((workers, 2), np.float64)

    def _shared_layers(self, sizes: Sequence[int]) -> list[Layer]:
        kind = self.arithmetic.narrow
        return [
            Layer(shared_array((a, b), kind), shared_array(b, kind)) for a, b in pairwise(sizes)
        ]

    def run(
        self,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
        save_due: Callable[[], bool] = lambda: False,
        on_state: Callable[[State], None] = lambda state: None,
        resume: State | None = None,
    ) -> list[Layer]:
        """Train, and return the parameters to keep.

        Args:
            on_epoch: called after each epoch.
            save_due: says after an epoch whether the state is to be saved.
            on_state: called with it then; its arrays are good until `on_state` returns.
            resume: the state to go on from, saved by a training of the same data and recipe; the
                result is the same as if that had gone on.

        Raises:
            DivergedError: the loss or the weights outgrew what arithmetic can hold.
        """
        self.resumed = resume
        # A kernel may compute beyond the edge of a matrix and raise the flag for what it finds
        # there; real infinities and NaN are caught by the arithmetic's bounds.
        with np.errstate(invalid="ignore"):
            kept: list[Layer] = self.crew.run(
                lambda rank: Worker(self, rank).train(on_epoch, save_due, on_state)
            )
        return kept


class Part(NamedTuple):
    """At most 512 images of a batch: a batch's gradient is the sum of its parts'.

    Attributes:
        images: (samples,) which they are, those used furthest first.
        labels: (samples,) theirs.
        rows: those of them that this process prepares and takes note of.
        looks: how far they are looked at, strip by strip.
        position: of the first of them in the epoch's order.
        first: whether they begin a batch.
        batch: how many images the batch has that they end; 0 if they end none.
    """

    images: Array
    labels: Array
    rows: slice
    looks: list[Look]
    position: int
    first: bool
    batch: int


class Worker:
    """One process's share of a training run."""

    def __init__(self, training: Training, rank: int) -> None:
        self.training = training
        self.crew = training.crew
        self.rank = rank
        (W, b), *others = training.start
        self.share = Share(
            [Layer(W[training.images.pixels], b), *others],
            training.arithmetic,
            training.optimizer,
            training.regularisation,
            training.recipe.average,
            training.board,
            training.crew,
            rank,
        )
        self.canvas = Scratch()

    def train(
        self,
        on_epoch: Callable[[Epoch], None],
        save_due: Callable[[], bool],
        on_state: Callable[[State], None],
    ) -> list[Layer]:
        """Run all epochs; rank 0 reports them and returns the parameters to keep."""
        run, recipe = self.training, self.training.recipe
        done, best = 0, -1.0
        kept: list[Layer] = []
        if run.resumed:
            done, steps, best, grids, moments, whole, kept = run.resumed
            if isinstance(run.arithmetic, Exact):
                run.arithmetic.coarsen(grids)
            for shown, saved in zip(run.board.moments, moments, strict=True):
                shown[...] = saved
            self.share.restore(whole, run.images.pixels, steps)
        for number in range(done + 1, recipe.epochs + 1):
            try:
                self._epoch(number)
                parameters, arithmetic = self._parameters_to_score()
                epoch = self._report(number, parameters, arithmetic)
            except ExactnessError as error:
                raise DivergedError(f"training diverged in epoch {number} ({error})") from error
            if self.rank == 0:
                if recipe.keep == "last" or epoch.validation_accuracy > best:
                    best = epoch.validation_accuracy
                    kept = [Layer(W.copy(), b.copy()) for W, b in parameters]
                on_epoch(epoch)
                run.save_now[0] = save_due()
            self.crew.wait(self.rank)
            if run.save_now[0]:
                self.share.save(run.whole, run.images.pixels)
                self.crew.wait(self.rank)
                if self.rank == 0:
                    grids = run.arithmetic.grids if isinstance(run.arithmetic, Exact) else []
                    steps, moments = self.share.steps, run.board.moments
                    on_state(State(number, steps, best, grids, moments, run.whole, kept))
        return kept

    def _epoch(self, number: int) -> None:
        run, recipe = self.training, self.training.recipe
        order = np.random.default_rng([recipe.seed, number]).permutation(len(run.labels))
        if recipe.augmentation:
            self._draw_deformations(number)
        parts = self._parts(order)
        steps = recipe.epochs * -(-len(order) // run.batch_size)
        for i in range(IMAGE_PLACES - 1):
            self._prepare(parts, i)
        self.crew.wait(self.rank)
        for i, part in enumerate(parts):
            ahead = partial(self._prepare, parts, i + IMAGE_PLACES - 1)
            self._learn(part, i, [recipe.seed, number, i, 1], ahead)
            if part.batch:
                progress = self.share.steps / steps
                rate = scheduled(recipe.learning_rate, recipe.schedule, progress, recipe.warm_up)
                self.share.update(part.batch, rate)

    def _parts(self, order: Array) -> list[Part]:
        """Cut an epoch's order into batches and these into parts of nearly the same size."""
        run, size = self.training, self.training.batch_size
        parts = []
        for start in range(0, len(order), size):
            end = min(start + size, len(order))
            count = -(-(end - start) // LARGEST_PART)
            edges = [start + (end - start) * part // count for part in range(count + 1)]
            for first, last in pairwise(edges):
                images, looks = run.images.in_strips(order[first:last])
                parts.append(
                    Part(
                        images=images,
                        labels=run.labels[images],
                        rows=self.crew.share(last - first, self.rank),
                        looks=looks,
                        position=first,
                        first=first == start,
                        batch=end - start if last == end else 0,
                    )
                )
        return parts

    def _prepare(self, parts: Sequence[Part], number: int) -> None:
        """Show this process's rows of a part's images on the board, if there is such a part."""
        if number >= len(parts):
            return
        run, part = self.training, parts[number]
        pixels = run.board.pixels[number % IMAGE_PLACES, part.rows]
        np.take(run.images.x, part.images[part.rows], axis=0, out=pixels, mode="clip")
        if run.recipe.augmentation:
            self._deform(pixels, part.position + part.rows.start)

    def _learn(
        self, part: Part, number: int, seed: Sequence[int], meanwhile: Callable[[], None]
    ) -> None:
        """Let the share learn a part, and note what its images' losses are made of."""
        run = self.training
        labels, rows = part.labels, part.rows
        targets = run.targets.take(labels, axis=0)
        add = not part.first
        pieces = self.share.learn(number, part.looks, targets, seed, add, meanwhile)
        numbers = np.arange(rows.start, rows.stop)
        here = slice(part.position + rows.start, part.position + rows.stop)
        run.shifted[here] = pieces.shifted[numbers, labels[rows]]
        run.totals[here] = pieces.total[rows, 0]

    def _draw_deformations(self, number: int) -> None:
        """Draw an epoch's deformations, each process its share of them."""
        run = self.training
        chunks = range(0, run.groups, _CHUNK)
        for start in chunks[self.crew.share(len(chunks), self.rank)]:
            stop = min(start + _CHUNK, run.groups)
            generator = np.random.default_rng([run.recipe.seed, number, start])
            drawn = draw(run.recipe.augmentation, stop - start, generator)
            for shared, new in zip(run.deformations, drawn, strict=True):
                shared[start:stop] = new
        self.crew.wait(self.rank)

    def _deform(self, pixels: Array, position: int) -> None:
        """Deform images in place, group by group, the first at `position` in the epoch's order."""
        end = position + len(pixels)
        for group in range(position // GROUP, -(-end // GROUP)):
            start, stop = max(group * GROUP, position), min((group + 1) * GROUP, end)
            rows = slice(start - position, stop - position)
            pixels[rows] = deform(pixels[rows], self.training.deformations, group, self.canvas)

    def _parameters_to_score(self) -> tuple[list[Layer], Arithmetic]:
        """Return the weights that are scored and kept: the averaged ones, if any, on grids."""
        run, recipe = self.training, self.training.recipe
        layers = run.layers
        self.crew.wait(self.rank)
        self.share.keep_bounds()
        self.share.show(run.layers, run.images.pixels)
        self.crew.wait(self.rank)
        if recipe.batch_normalisation:
            layers = folded(layers, [Moments(*found) for found in run.board.moments])
        rounded = not (recipe.average or recipe.dropout or recipe.batch_normalisation)
        if rounded or not isinstance(run.arithmetic, Exact):
            return layers, run.arithmetic
        return on_grids(layers)

    def _report(self, number: int, parameters: list[Layer], arithmetic: Arithmetic) -> Epoch:
        """Add up the epoch's losses and score the validation set, each process its share."""
        run = self.training
        x, y = run.validation
        mine = self.crew.share(len(x), self.rank)
        share = score(parameters, x[mine], y[mine], arithmetic)
        run.scores[self.rank] = share.correct, share.loss_sum
        self.crew.wait(self.rank)
        correct = run.scores[:, 0].sum()
        loss_sum = run.arithmetic.loss_sum(run.scores[:, 1])
        train_loss_sum = run.arithmetic.loss_sum(log(run.totals) - run.shifted)
        self.crew.wait(self.rank)
        return Epoch(
            number,
            train_loss_sum / len(run.labels),
            loss_sum / len(x),
            float(correct / len(x)),
        )
