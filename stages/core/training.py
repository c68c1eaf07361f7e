"""The training: mini-batch gradient descent, shared out over a crew of processes.

A step has three parts, and every process does its share of each:

    by samples      each process takes some of the batch's rows through `forward` and `backward`;
    by units        each computes the gradient of some of every layer's units over the whole batch;
    by parameters   each moves some of the rows of every W, which lie together in memory.

Between the parts the processes wait for one another. Nothing is ever added up across processes
in an order that could vary, and the sums themselves are exact, so the number of processes does
not change a bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

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
from stages.core.crew import Crew, shared_array
from stages.core.data import CLASSES, Images
from stages.core.elementary import log
from stages.core.exact import (
    LARGEST_PART,
    PIXELS,
    Arithmetic,
    Exact,
    ExactnessError,
    Plain,
    column_sums,
)
from stages.core.network import (
    Layer,
    Workspace,
    backward,
    cross_entropy_derivative,
    exponentials,
    forward,
    gradient,
    initialise,
    on_grids,
    one_hot,
    score,
)
from stages.core.optimizers import Adam, Momentum, Optimizer, scheduled

_CHUNK = 64
"""Groups of images whose deformations are drawn at once."""
_BLOCK = 32768
"""Parameters that are updated together: few enough to stay in a core's cache meanwhile."""
_SMALL = 4096
"""Parameters of a W that one process updates alone."""
_LARGEST_COPY = 2**27
"""Bytes of images that are copied to have their pixels sorted; more of them stay as they are."""
_LANES = 16
"""The inputs that a product looks at are a multiple of these."""


class DivergedError(ArithmeticError):
    """The loss or a weight is no longer a finite, reasonable number."""


@dataclass(frozen=True)
class Recipe:
    """How to train: the parameters of the `train` stage, under the same names."""

    hidden_sizes: Sequence[int]
    initialisation: Literal["he", "glorot", "uniform"] = "he"
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    schedule: Literal["constant", "cosine", "step", "one_cycle"] = "constant"
    momentum: float = 0.9
    batch_size: int | Literal["all"] = 128
    epochs: int = 10
    l2: float = 0.0
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


class Block(NamedTuple):
    """Some rows of a W, or all biases, with all that the update needs beside them: views."""

    layer: int | None
    parameters: Array
    gradient: Array
    average: Array
    slots: list[Array]
    scratch: Array
    rounded: Array


class Training:
    """One training run: its data, its parameters and the memory that the crew shares."""

    def __init__(
        self,
        train: tuple[Array, Array],
        validation: tuple[Array, Array],
        recipe: Recipe,
        workers: int = 1,
        exact: bool = True,
    ) -> None:
        """Prepare the run.

        Args:
            train: x (samples, 784) uint8, a pixel's brightness being its value / 256; y (samples,).
            validation: the same for the validation set, which is only scored.
            recipe: how to train.
            workers: processes to share the work among; changes no bit of the result.
            exact: exact sums (the pipeline's arithmetic), or else plain float32.
        """
        self.recipe = recipe
        x, labels = train
        # Deforming an image needs its pixels in their places.
        sort = not recipe.augmentation and x.nbytes <= _LARGEST_COPY
        self.images = Images.by_use(x) if sort else Images.as_they_are(x)
        self.y = labels.astype(np.intp)
        self.targets = one_hot(np.arange(CLASSES), CLASSES)
        self.validation = validation
        self.crew = Crew(workers)
        self.batch_size = len(x) if recipe.batch_size == "all" else recipe.batch_size
        self.steps_per_epoch = -(-len(x) // self.batch_size)
        self.optimizer: Optimizer = (
            Adam() if recipe.optimizer == "adam" else Momentum(recipe.momentum)
        )

        self.sizes = [x.shape[1], *recipe.hidden_sizes, CLASSES]
        start = initialise(self.sizes, recipe.initialisation, np.random.default_rng(recipe.seed))
        start[0] = Layer(start[0].W[self.images.pixels], start[0].b)
        count = sum(W.size + b.size for W, b in start)
        self.flat, self.flat_gradient = shared_array(count), shared_array(count)
        self.flat_slots = [shared_array(count) for _ in range(self.optimizer.slots)]
        self.flat_average = shared_array(count) if recipe.average else self.flat
        self.parameters = _layers(self.flat, self.sizes)
        for layer, initial in zip(self.parameters, start, strict=True):
            layer.W[...], layer.b[...] = initial
        self.flat_average[...] = self.flat
        self.groups = -(-len(x) // GROUP)
        if recipe.augmentation:
            self.deformations = Deformations(
                shared_array((self.groups, x.shape[1]), np.int16),
                shared_array((self.groups, 4, x.shape[1])),
            )
        self.arithmetic: Arithmetic = Exact([W for W, _ in start]) if exact else Plain()
        self.rounded = self.parameters
        if isinstance(self.arithmetic, Exact):
            types = [self.arithmetic.narrow] * (len(start) - 1) + [self.arithmetic.wide]
            self.rounded = [
                Layer(shared_array(W.shape, dtype), b)
                for (W, b), dtype in zip(self.parameters, types, strict=True)
            ]
            for number, layer in enumerate(self.parameters):
                self.arithmetic.round_weights(number, layer.W, out=self.rounded[number].W)

        part = min(LARGEST_PART, self.batch_size)
        self.workspace = Workspace.empty(self.sizes, part, self.arithmetic, shared_array)
        self.weight_sums = shared_array((workers, sum(self.sizes[1:])))
        self.row_sums = shared_array((workers, len(start)))
        # Of each image in an epoch's order, what its loss is made of: log(total) - shifted.
        self.shifted, self.totals = (shared_array(len(x), np.float64) for _ in range(2))
        self.scores = shared_array((workers, 2), np.float64)

    def in_place(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return layers of this training with their inputs in the images' own order."""
        (W, b), *others = layers
        places = np.argsort(self.images.pixels)
        return [Layer(W[places], b), *(Layer(W.astype(np.float32), b) for W, b in others)]

    def run(self, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> list[Layer]:
        """Train, calling `on_epoch` after each epoch, and return the parameters to keep.

        Raises:
            DivergedError: the loss or the weights outgrew what arithmetic can hold.
        """
        # A kernel may compute beyond the edge of a matrix and raise the flag for what it finds
        # there; real infinities and NaN are caught by the arithmetic's bounds.
        with np.errstate(invalid="ignore"):
            kept: list[Layer] = self.crew.run(lambda rank: Worker(self, rank).train(on_epoch))
        return kept


class Views(NamedTuple):
    """What one process touches in a batch of some size.

    Attributes:
        rows: its samples.
        workspace: their rows of the workspace.
        parameters: the layers, rounded, of the first W only the inputs that are looked at.
        gradients: for each layer, what enters it (samples, inputs), and of the process's own
            units the errors (samples, units), the gradient of W and that of b.
    """

    rows: slice
    workspace: Workspace
    parameters: list[Layer]
    gradients: list[tuple[Array, Array, Array, Array]]


class Worker:
    """One process's share of a training run."""

    def __init__(self, training: Training, rank: int) -> None:
        self.training = training
        self.arithmetic = training.arithmetic
        self.crew = training.crew
        self.rank = rank
        self.pixels = np.empty((LARGEST_PART, training.sizes[0]), np.uint8)
        self.blocks = list(self._blocks())
        self.canvas = Scratch()
        ends = list(accumulate(training.sizes[1:]))
        self.weight_sums = np.split(training.weight_sums[rank], ends[:-1])
        self.views = cache(self._views)
        self.row_sums = training.row_sums[rank]
        # Only hidden layers that carry errors back, in float32, need them.
        layers = len(training.parameters)
        self.needs_row_sums = [0 < layer < layers - 1 for layer in range(layers)]
        self.steps = 0

    def train(self, on_epoch: Callable[[Epoch], None]) -> list[Layer]:
        """Run all epochs; rank 0 reports them and returns the parameters to keep."""
        recipe = self.training.recipe
        kept: list[Layer] = []
        best = -1.0
        for number in range(1, recipe.epochs + 1):
            try:
                self._epoch(number)
                parameters, arithmetic = self._parameters_to_score()
                epoch = self._report(number, parameters, arithmetic)
            except ExactnessError as error:
                raise DivergedError(
                    f"training diverged in epoch {number} ({error}); the learning rate was "
                    f"{recipe.learning_rate:g}: try a smaller one"
                ) from error
            if self.rank == 0:
                if recipe.keep == "last" or epoch.validation_accuracy > best:
                    best = epoch.validation_accuracy
                    kept = [Layer(W.copy(), b.copy()) for W, b in parameters]
                on_epoch(epoch)
        return kept

    def _epoch(self, number: int) -> None:
        run = self.training
        samples = len(run.y)
        order = np.random.default_rng([run.recipe.seed, number]).permutation(samples)
        if run.recipe.augmentation:
            self._draw_deformations(number)
        for start in range(0, samples, run.batch_size):
            batch = order[start : start + run.batch_size]
            for first in range(0, len(batch), LARGEST_PART):
                part = batch[first : first + LARGEST_PART]
                used = -(-int(run.images.used[part].max()) // _LANES) * _LANES
                views = self.views(len(part), min(used, run.sizes[0]))
                self._by_samples(views, part, start + first)
                self.crew.wait(self.rank)
                self._by_units(views, add=first > 0)
                self.crew.wait(self.rank)
            self._by_parameters(len(batch))
            self.crew.wait(self.rank)
            self._keep_bounds()

    def _views(self, samples: int, inputs: int) -> Views:
        """Return what this process touches in a batch of `samples` with only so many inputs."""
        run = self.training
        batch = run.workspace.batch(samples, inputs)
        (W, b), *others = run.rounded
        rows = self.crew.share(samples, self.rank)
        entering = [*batch.activations[:-1], batch.last_hidden]
        gradients = []
        for x, dz, layer in zip(
            entering, batch.errors, _layers(run.flat_gradient, run.sizes), strict=True
        ):
            units = self.crew.share(len(layer.b), self.rank)
            gradients.append((x, dz[:, units], layer.W[:, units], layer.b[units]))
        return Views(
            rows, batch.rows(rows.start, rows.stop), [Layer(W[:inputs], b), *others], gradients
        )

    def _by_samples(self, views: Views, part: Array, position: int) -> None:
        """Take this process's rows of a part of the batch forwards and backwards."""
        run = self.training
        rows, workspace, parameters, _ = views
        samples = part[rows]
        pixels = self.pixels[: len(samples)]
        np.take(run.images.x, samples, axis=0, out=pixels, mode="clip")
        x = workspace.activations[0]
        x[...] = (
            self._deformed(pixels, position + rows.start)
            if run.recipe.augmentation
            else pixels[:, : x.shape[1]]
        )
        x *= PIXELS.grid
        labels = run.y[samples]

        logits = forward(parameters, workspace, self.arithmetic)
        shifted, e, total = exponentials(logits, self.arithmetic)
        here = slice(position + rows.start, position + rows.stop)
        run.shifted[here] = shifted[np.arange(len(labels)), labels]
        run.totals[here] = total[:, 0]
        targets = run.targets.take(labels, axis=0)
        cross_entropy_derivative(e / total, targets, out=workspace.errors[-1])
        self.arithmetic.round_output_errors(workspace.errors[-1])
        backward(parameters, workspace, self.arithmetic)

    def _draw_deformations(self, number: int) -> None:
        """Draw an epoch's deformations, each process its share of them."""
        run = self.training
        chunks = range(0, run.groups, _CHUNK)
        for start in chunks[self.crew.share(len(chunks), self.rank)]:
            stop = min(start + _CHUNK, run.groups)
            generator = np.random.default_rng([run.recipe.seed, number, start])
            drawn = draw(run.recipe.augmentation, stop - start, generator)
            run.deformations.places[start:stop] = drawn.places
            run.deformations.weights[start:stop] = drawn.weights
        self.crew.wait(self.rank)

    def _deformed(self, pixels: Array, position: int) -> Array:
        """Return the images from `position` on in the epoch's order, deformed group by group."""
        deformed = np.empty(pixels.shape, np.float32)
        end = position + len(pixels)
        for group in range(position // GROUP, -(-end // GROUP)):
            start, stop = max(group * GROUP, position), min((group + 1) * GROUP, end)
            rows = slice(start - position, stop - position)
            deformed[rows] = deform(pixels[rows], self.training.deformations, group, self.canvas)
        return deformed

    def _by_units(self, views: Views, add: bool) -> None:
        """Compute the gradient of this process's units over a part of the batch."""
        for number, (x, dz, dW, db) in enumerate(views.gradients):
            errors = self.arithmetic.errors_by_unit(number, dz)
            looked_at = dW[: x.shape[1]]
            if add:
                looked_at += gradient(x, errors)
                db += column_sums(errors)
            else:
                gradient(x, errors, out=looked_at)
                dW[x.shape[1] :] = 0.0
                db[...] = column_sums(errors)

    def _by_parameters(self, samples: int) -> None:
        """Move this process's parameters by one step, block by block, and round them."""
        run, recipe = self.training, self.training.recipe
        progress = self.steps / (run.steps_per_epoch * recipe.epochs)
        rate = scheduled(recipe.learning_rate, recipe.schedule, progress)
        self.steps += 1
        # A short training's average must not be its beginning: the share grows to its full size.
        kept_share = min(recipe.average, (1.0 + self.steps) / (10.0 + self.steps))
        self._clear_sums()
        for block in self.blocks:
            w, g, scratch = block.parameters, block.gradient, block.scratch
            if recipe.l2 and block.layer is not None:
                np.multiply(w, recipe.l2 * samples, out=scratch)
                np.add(g, scratch, out=g)
            run.optimizer.update(w, g, block.slots, scratch, rate, samples, self.steps)
            if recipe.average:
                np.subtract(w, block.average, out=scratch)
                scratch *= 1.0 - kept_share
                np.add(block.average, scratch, out=block.average)
            self._round(block)

    def _parameters_to_score(self) -> tuple[list[Layer], Arithmetic]:
        """Return the weights that are scored and kept: the averaged ones, if any, on grids."""
        run = self.training
        if not run.recipe.average:
            return run.in_place(run.rounded), self.arithmetic
        averages = run.in_place(_layers(run.flat_average, run.sizes))
        if isinstance(self.arithmetic, Exact):
            return on_grids(averages)
        return averages, self.arithmetic

    def _round(self, block: Block) -> None:
        """Put a block's weights on their grid and add up how large they are."""
        if not isinstance(self.arithmetic, Exact) or block.layer is None:
            return
        self.arithmetic.round_weights(block.layer, block.parameters, out=block.rounded)
        magnitudes = np.abs(block.rounded, out=block.scratch, casting="same_kind")
        self.weight_sums[block.layer] += column_sums(magnitudes)
        if self.needs_row_sums[block.layer]:
            largest = column_sums(magnitudes.T).max()
            self.row_sums[block.layer] = max(self.row_sums[block.layer], largest)

    def _clear_sums(self) -> None:
        self.training.weight_sums[self.rank] = 0.0
        self.row_sums[...] = 0.0

    def _keep_bounds(self) -> None:
        """Check the bounds on the rounded weights; coarsen the grids of layers that outgrew them.

        Every process sees the same sums and so decides the same.
        """
        if not isinstance(self.arithmetic, Exact):
            return
        run = self.training
        while not self.arithmetic.weights_fit(column_sums(run.weight_sums)):
            self.crew.wait(self.rank)
            self._clear_sums()
            for block in self.blocks:
                self._round(block)
            self.crew.wait(self.rank)
        if any(self.needs_row_sums):
            self.arithmetic.row_sums = run.row_sums.max(axis=0).tolist()

    def _report(self, number: int, parameters: list[Layer], arithmetic: Arithmetic) -> Epoch:
        """Add up the epoch's losses and score the validation set, each process its share."""
        run = self.training
        x, y = run.validation
        mine = self.crew.share(len(x), self.rank)
        share = score(parameters, x[mine], y[mine], arithmetic)
        run.scores[self.rank] = share.correct, share.loss_sum
        self.crew.wait(self.rank)
        correct = run.scores[:, 0].sum()
        loss_sum = self.arithmetic.loss_sum(run.scores[:, 1])
        train_loss_sum = self.arithmetic.loss_sum(log(run.totals) - run.shifted)
        self.crew.wait(self.rank)
        return Epoch(
            number,
            train_loss_sum / len(run.y),
            loss_sum / len(x),
            float(correct / len(x)),
        )

    def _blocks(self) -> Iterator[Block]:
        """Cut this process's share of the parameters into blocks that fit a core's cache."""
        run = self.training
        flats = [run.flat, run.flat_gradient, run.flat_average, *run.flat_slots]
        scratch = np.empty(max(_BLOCK, sum(run.sizes)), np.float32)

        def block(layer: int | None, views: Sequence[Array], rounded: Array) -> Block:
            parameters, gradient, average, *slots = views
            own_scratch = scratch[: parameters.size].reshape(parameters.shape)
            return Block(layer, parameters, gradient, average, slots, own_scratch, rounded)

        for number, layers in enumerate(zip(*(_layers(f, run.sizes) for f in flats), strict=True)):
            W = layers[0].W
            rows = self.crew.share(len(W), self.rank)
            if W.size <= _SMALL:
                mine = self.rank == number % self.crew.size
                rows = slice(0, len(W) if mine else 0)
            height = max(1, _BLOCK // W.shape[1])
            for top in range(rows.start, rows.stop, height):
                part = slice(top, min(top + height, rows.stop))
                yield block(
                    number, [layer.W[part] for layer in layers], run.rounded[number].W[part]
                )
        if self.rank == 0:
            biases = slice(len(run.flat) - sum(run.sizes[1:]), None)
            yield block(None, [flat[biases] for flat in flats], run.flat[biases])


def _layers(flat: Array, sizes: Sequence[int]) -> list[Layer]:
    """Return the layers' `W` and `b` as views of one flat vector: W_1, W_2, ..., b_1, b_2, ..."""
    shapes = list(pairwise(sizes))
    ends = list(accumulate([*(inputs * outputs for inputs, outputs in shapes), *sizes[1:]]))
    parts = np.split(flat, ends[:-1])
    weights, biases = parts[: len(shapes)], parts[len(shapes) :]
    return [Layer(W.reshape(shape), b) for W, b, shape in zip(weights, biases, shapes, strict=True)]
