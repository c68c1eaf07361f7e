"""One process's share of a network in training.

The crew shares a network out by its units: each process owns some of every hidden layer. It has
the weights that enter its units of the first layer, and those that leave its units of every other.
With `own` for its units and a_0 = x, a step of a batch is

    z_1[:, own] = x @ W_1[:, own] + b_1[own]
    z_l = (sum over the processes of a_{l-1}[:, own] @ W_l[own]) + b_l
    dz_{l-1}[:, own] = (dz_l @ W_l[own].T) * (a_{l-1}[:, own] > 0)
    dW_1[:, own] = x.T @ dz_1[:, own]        dW_l[own] = a_{l-1}[:, own].T @ dz_l

so no weight, gradient or velocity ever leaves its process. What the processes show one another are
a layer's partial sums on the way forwards and hidden layers' errors on the way back: for one hidden
layer, ten numbers a sample, once a step. Since the sums are exact, neither the number of processes
nor who owns what changes a bit of the result. Nor do the inputs that are dark: a batch's images
come in strips, of which the first layer looks at fewer and fewer. The functions are those of
`stages.core.network`; `forward` and `backward` there say the same for one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from stages.core import Array
from stages.core.data import Look
from stages.core.exact import (
    PIXELS,
    Arithmetic,
    Exact,
    column_sums,
    power_of_two_above,
    round_to_grid,
)
from stages.core.network import (
    Exponentials,
    Layer,
    cross_entropy_derivative,
    exponentials,
    gradient,
    relu,
    relu_derivative,
)
from stages.core.normalisation import Moments, moments_of, normalise, normalise_backward
from stages.core.optimizers import Optimizer
from stages.engine.crew import Crew, shared_array

_BLOCK = 32768
"""Parameters that are updated together: few enough to stay in a core's cache meanwhile."""
IMAGE_PLACES = 3
"""For so many batches the board has places for images."""
_KEPT_STRIPS = 1024
"""Ways of cutting a batch into strips whose views are kept; batches are cut in few ways."""
_MOMENTS_SHARE = 0.99
"""What of the moments' averages a step leaves as it was, unless the weights' average says it."""


class Board:
    """What the processes show one another, nearly everything twice.

    While one half is read, the other may already be written: a process that writes a half again
    has passed a barrier that the others reach only after they have read it.

    Attributes:
        pixels: (3, samples, inputs) uint8, a batch's images; three times, since they are shown two
            batches ahead.
        partial: for each layer but the first, (2, processes, samples, outputs) each process's
            part of z; the output layer's class by class in memory, since sums and maxima over few
            classes are fastest across rows.
        errors: for each layer but the first and the last, (2, samples, outputs) dz, then the same
            rounded for the errors of the layer before.
        by_unit: the same, rounded for the gradient.
        weight_sums: (2, processes, units) sums of absolute weights that enter each unit.
        square_sums: the same of squared weights.
        row_sums: (2, processes, layers) the largest sum over a row of absolute weights.
        moments: for each hidden layer, (2, units) averages of mean and variance; once, since each
            process changes its own and all read them only between two epochs.
    """

    def __init__(self, sizes: Sequence[int], samples: int, crew: int, arithmetic: Arithmetic):
        *hidden, classes = sizes[1:]
        self.pixels = shared_array((IMAGE_PLACES, samples, sizes[0]), np.uint8)
        self.partial = [
            shared_array((2, crew, samples, units), arithmetic.narrow) for units in hidden[1:]
        ]
        logits = shared_array((2, crew, classes, samples), arithmetic.wide)
        self.partial.append(logits.swapaxes(2, 3))
        self.errors, self.by_unit = (
            [shared_array((2, samples, units), arithmetic.narrow) for units in hidden[1:]]
            for _ in range(2)
        )
        self.weight_sums = shared_array((2, crew, sum(sizes[1:])))
        self.square_sums = shared_array((2, crew, sum(sizes[1:])), np.float64)
        self.row_sums = shared_array((2, crew, len(sizes) - 1))
        self.moments = [shared_array((2, units), np.float64) for units in hidden]


class Regularisation(NamedTuple):
    """What keeps the weights small and the units independent; 0 means none.

    Attributes:
        l2: weight of the penalty on squared weights, in the gradient: g + l2 w.
        weight_decay: share of each weight, times the learning rate, that a step takes away
            apart from the gradient (Loshchilov and Hutter 2019, "Decoupled Weight Decay
            Regularization", eq. 9).
        max_norm: the largest Euclidean norm of the weights that enter a unit; longer ones are
            scaled back after a step (Srivastava et al. 2014, section 5.1).
        batch_normalisation: whether the hidden layers' z are normalised.
        dropout: share of the hidden units that each sample does without (Srivastava et al. 2014,
            section 4); the trained weights that leave them are scaled by 1 - dropout.
    """

    l2: float = 0.0
    weight_decay: float = 0.0
    max_norm: float = 0.0
    dropout: float = 0.0
    batch_normalisation: bool = False


class Block(NamedTuple):
    """Some rows of a W, or all biases, with all that the update needs beside them: views."""

    layer: int | None
    parameters: Array
    gradient: Array
    average: Array
    slots: list[Array]
    scratch: Array
    rounded: Array


class Strip(NamedTuple):
    """What the first layer touches of a strip of images: views.

    Attributes:
        pixels: (samples, inputs) uint8.
        x: (samples, inputs) the same as they enter the layer, from 0 to 255: scaling its few
            outputs instead of its many inputs is a power of two, and so changes no bit.
        W: (inputs, own units) the rounded weights.
        z: (samples, own units) what the layer makes of them.
        ending: (samples so far, ending inputs) of this strip and those before it, the inputs
            that those after it do not look at.
        gradient: (ending inputs, own units) the weights' gradient that `ending` leads to.
    """

    pixels: Array
    x: Array
    W: Array
    z: Array
    ending: Array
    gradient: Array


class Views(NamedTuple):
    """What a process touches for so many samples on one half of the board: views.

    Attributes:
        activations: for each hidden layer, (samples, own units) what leaves it.
        last_hidden: the last of them in the output layer's wider type.
        errors: for each hidden layer, (samples, own units) dz.
        partial: for each layer but the first, the own part of z.
        parts: for each layer but the first, all processes' parts of z: of the own units, and of
            all classes.
        shown: for each hidden layer but the first, (samples, units) dz, and the same by unit.
    """

    activations: list[Array]
    last_hidden: Array
    errors: list[Array]
    partial: list[Array]
    parts: list[list[Array]]
    shown: list[tuple[Array, Array]]


class Share:
    """One process's units: their parameters, and what a step does with them.

    Layers are numbered from 0, the output layer included.
    """

    def __init__(
        self,
        start: Sequence[Layer],
        arithmetic: Arithmetic,
        optimizer: Optimizer,
        regularisation: Regularisation,
        average: float,
        board: Board,
        crew: Crew,
        rank: int,
    ) -> None:
        """Take this rank's share of `start`, the parameters that training starts from.

        `average` is the share of the weights' average that a step leaves as it was; 0: none.
        """
        self.arithmetic, self.optimizer = arithmetic, optimizer
        self.regularisation, self.average = regularisation, average
        self.board, self.crew, self.rank = board, crew, rank
        self.own = [crew.share(len(b), rank) for _, b in start[:-1]]
        mine = self._of(start)
        flat: Array = np.concatenate([W.ravel() for W, _ in mine] + [b for _, b in mine])
        self.flat: Array = flat.astype(arithmetic.narrow)
        self.flat_gradient = np.zeros_like(self.flat)
        self.flat_average = self.flat.copy() if average else self.flat
        self.flat_slots = [np.zeros_like(self.flat) for _ in range(optimizer.slots)]
        self.parameters, self.gradients, self.averages = (
            _split(vector, mine) for vector in (self.flat, self.flat_gradient, self.flat_average)
        )
        self.rounded = [W for W, _ in self.parameters]
        if isinstance(arithmetic, Exact):
            self.rounded = [arithmetic.round_weights(n, W) for n, W in enumerate(self.rounded)]
        # The output layer's stay in the wider type that its products need.
        self.rounded[-1] = self.rounded[-1].astype(arithmetic.wide, copy=False)
        self.blocks = list(self._blocks())

        _, samples, inputs = board.pixels.shape
        units = [own.stop - own.start for own in self.own]
        self.x = np.empty(samples * inputs, arithmetic.narrow)
        self.activations, self.errors = (
            [np.empty((samples, count), arithmetic.narrow) for count in units] for _ in range(2)
        )
        self.last_hidden = np.empty((samples, units[-1]), arithmetic.wide)
        self.logits: Array = np.empty((len(start[-1].b), samples), arithmetic.wide).T
        self.normalised = [np.empty_like(a) for a in self.activations]
        self.moments = [Moments(np.empty(0), np.empty(0)) for _ in units]
        self.views = cache(self._views)
        self.strips = lru_cache(_KEPT_STRIPS)(self._strips)
        self.hidden_sizes = [len(b) for _, b in start[:-1]]
        self.ends = list(accumulate(len(b) for _, b in start))
        # Of both halves of the board: all own sums, and those of each layer.
        self.all_sums = list(board.weight_sums[:, rank])
        self.layer_sums = [self._by_layer(sums) for sums in self.all_sums]
        self.layer_squares = [self._by_layer(sums) for sums in board.square_sums[:, rank]]
        # Only hidden layers that carry errors back, in float32, need them.
        self.needs_row_sums = [0 < number < len(start) - 1 for number in range(len(start))]
        self.steps = 0
        self._round_all()

    def learn(
        self,
        number: int,
        looks: Sequence[Look],
        targets: Array,
        seed: Sequence[int],
        add: bool,
        meanwhile: Callable[[], None],
    ) -> Exponentials:
        """Take the images on the board forwards and backwards; find the own share's gradient.

        Args:
            number: counts what is learned, and says which places of the board are used.
            looks: how far they are looked at, strip by strip.
            targets: (samples, classes) one_hot of the labels.
            seed: says which units are dropped; the same in every process.
            add: add to the gradient of the batch's earlier parts, instead of starting anew.
            meanwhile: done once, while the other processes are waited for.

        Returns:
            The pieces of the softmax, which the losses are made of.

        Raises:
            ExactnessError: something has grown beyond its bound.
        """
        strips = self.strips(number % IMAGE_PLACES, tuple(looks))
        views = self.views(number % 2, looks[-1].stop)
        for strip in strips:
            np.copyto(strip.x, strip.pixels)
        kept = self._kept_units(looks[-1].stop, seed)
        logits = self._forward(strips, views, kept, meanwhile)
        pieces = exponentials(logits, self.arithmetic)
        dz = cross_entropy_derivative(pieces.e / pieces.total, targets)
        self._backward(strips, views, self.arithmetic.round_output_errors(dz), add)
        return pieces

    def _kept_units(self, samples: int, seed: Sequence[int]) -> list[Array | None]:
        """Draw for each hidden layer which own units (samples, units) are kept; None: all."""
        dropout = self.regularisation.dropout
        if not dropout:
            return [None] * len(self.own)
        generator = np.random.default_rng(seed)
        return [
            (generator.random((samples, units), np.float32) >= dropout)[:, own]
            for units, own in zip(self.hidden_sizes, self.own, strict=True)
        ]

    def _forward(
        self,
        strips: Sequence[Strip],
        views: Views,
        kept: Sequence[Array | None],
        meanwhile: Callable[[], None],
    ) -> Array:
        """Return the logits of all samples."""
        self._to_second_layer(strips, views, kept[0])
        self.crew.wait(self.rank, meanwhile)
        if self.keep_bounds():
            self._to_second_layer(strips, views, kept[0])
            self.crew.wait(self.rank)
        for number, parts in enumerate(views.parts[:-1], start=1):
            a = views.activations[number]
            self._activate(number, _total(parts, out=a), kept[number])
            self._to_next_layer(number, views)
            self.crew.wait(self.rank)
        logits = _total(views.parts[-1], out=self.logits[: len(views.last_hidden)])
        logits += self.parameters[-1].b
        return logits

    def _to_second_layer(self, strips: Sequence[Strip], views: Views, kept: Array | None) -> None:
        for strip in strips:
            np.matmul(strip.x, strip.W, out=strip.z)
        z = views.activations[0]
        z *= PIXELS.grid
        self._activate(0, z, kept)
        self._to_next_layer(0, views)

    def _activate(self, number: int, z: Array, kept: Array | None) -> None:
        """Turn a layer's z, without its bias, into its activations, in place."""
        if self.regularisation.batch_normalisation:
            self.moments[number] = moments_of(number, z, self.arithmetic)
            normalise(z, self.moments[number])
            self.normalised[number][: len(z)] = z
        z += self.parameters[number].b
        relu(z, self.arithmetic.ceiling(number + 1), out=z)
        self.arithmetic.round_activations(number + 1, z)
        if kept is not None:
            z *= kept

    def _to_next_layer(self, number: int, views: Views) -> None:
        """Show the own part of what the activations of a layer make of the next one's z."""
        np.matmul(self._leaving(number, views), self.rounded[number + 1], out=views.partial[number])

    def _leaving(self, number: int, views: Views) -> Array:
        """Return the own activations of a layer, in the type that the next one's products need."""
        if number < len(views.activations) - 1:
            return views.activations[number]
        np.copyto(views.last_hidden, views.activations[number])
        return views.last_hidden

    def _backward(self, strips: Sequence[Strip], views: Views, dz: Array, add: bool) -> None:
        """Find the gradient of the own share, given the output layer's errors."""
        last = len(self.own)
        self._add_gradient(views.last_hidden, dz, self.gradients[last].W, add)
        self._add_bias_gradient(last, dz, add)
        errors = views.errors
        product = dz @ self.rounded[last].T
        product *= relu_derivative(views.activations[-1])
        np.copyto(errors[-1], product, casting="same_kind")
        by_unit = self._through_bias(last - 1, errors[-1], add)
        for number in range(last - 1, 0, -1):
            all_errors, all_by_unit = views.shown[number - 1]
            all_errors[:, self.own[number]] = errors[number]
            all_by_unit[:, self.own[number]] = by_unit
            self.crew.wait(self.rank)
            mine = all_errors[self.crew.share(len(all_errors), self.rank)]
            self.arithmetic.errors_by_sample(number, mine, out=mine)
            a = views.activations[number - 1]
            self._add_gradient(a, all_by_unit, self.gradients[number].W, add)
            self.crew.wait(self.rank)
            np.matmul(all_errors, self.rounded[number].T, out=errors[number - 1])
            errors[number - 1] *= relu_derivative(a)
            by_unit = self._through_bias(number - 1, errors[number - 1], add)
        for strip in strips:
            self._add_gradient(strip.ending, by_unit[: len(strip.ending)], strip.gradient, add)
        if not add:
            self.gradients[0].W[strips[0].x.shape[1] :] = 0.0

    def _through_bias(self, number: int, dz: Array, add: bool) -> Array:
        """Find the gradient of a hidden layer's biases, and go back through its normalisation.

        Returns:
            The errors, rounded for the gradient of the layer's weights.
        """
        by_unit = self.arithmetic.errors_by_unit(number, dz)
        self._add_bias_gradient(number, by_unit, add)
        if self.regularisation.batch_normalisation:
            normalised = self.normalised[number][: len(dz)]
            normalise_backward(dz, by_unit, normalised, self.moments[number], self.arithmetic)
            by_unit = self.arithmetic.errors_by_unit(number, dz)
        return by_unit

    def _add_bias_gradient(self, number: int, dz: Array, add: bool) -> None:
        db = self.gradients[number].b
        if add:
            db += column_sums(dz)
        else:
            db[...] = column_sums(dz)

    def _add_gradient(self, x: Array, dz: Array, dW: Array, add: bool) -> None:
        if add:
            dW += gradient(x, dz)
        else:
            gradient(x, dz, out=dW)

    def update(self, samples: int, rate: float) -> None:
        """Move the own parameters by one step, block by block, and round them.

        Args:
            samples: that the gradient is a sum over.
            rate: the learning rate.
        """
        l2, weight_decay, max_norm, *_ = self.regularisation
        self.steps += 1
        self._clear_sums()
        for block in self.blocks:
            w, g, scratch = block.parameters, block.gradient, block.scratch
            # The first layer's gradient is for pixels of 0 to 255.
            weight = samples / PIXELS.grid if block.layer == 0 else samples
            if l2 and block.layer is not None:
                np.multiply(w, l2 * weight, out=scratch)
                np.add(g, scratch, out=g)
            if weight_decay and block.layer is not None:
                np.multiply(w, 1.0 - rate * weight_decay, out=w)
            self.optimizer.update(w, g, block.slots, scratch, rate, weight, self.steps)
            if not max_norm:
                self._settle(block)
        if max_norm:
            self._scale_back(max_norm)
            for block in self.blocks:
                self._settle(block)
        if self.regularisation.batch_normalisation:
            first = self.steps == 1
            share = 0.0 if first else self._kept_share(self.average or _MOMENTS_SHARE)
            for shown, own, found in zip(self.board.moments, self.own, self.moments, strict=True):
                shown[:, own] += (np.stack(found) - shown[:, own]) * (1.0 - share)

    def _kept_share(self, average: float) -> float:
        """Return what of an average stays in this step.

        A short training's average must not be its beginning: the share grows to its full size.
        """
        return min(average, (1.0 + self.steps) / (10.0 + self.steps))

    def _settle(self, block: Block) -> None:
        """Take a moved block into the average and put its weights on their grid."""
        if self.average:
            np.subtract(block.parameters, block.average, out=block.scratch)
            block.scratch[...] *= 1.0 - self._kept_share(self.average)
            np.add(block.average, block.scratch, out=block.average)
        self._round(block)

    def _scale_back(self, max_norm: float) -> None:
        """Scale the weights that enter a unit so that their norm is at most `max_norm`.

        A weight beyond 16 times the power of two above `max_norm` is first cut off there.
        """
        half = self.steps % 2
        # A weight is at most 2**20 steps of the grid, its square 2**40, and float64 adds up 2**13
        # of them exactly.
        largest = float(power_of_two_above(max_norm)) * 16.0
        grid = largest * 2.0**-20
        for (W, _), sums in zip(self.parameters, self.layer_squares[half], strict=True):
            np.clip(W, -largest, largest, out=W)
            sums[...] = column_sums(round_to_grid(W.astype(np.float64), grid) ** 2)
        self.crew.wait(self.rank)
        norms = np.sqrt(column_sums(self.board.square_sums[half]))
        factors = np.minimum(1.0, max_norm / np.maximum(norms, max_norm / 2.0))
        for number, (W, _) in enumerate(self.parameters):
            own = self.own[0] if number == 0 else slice(None)
            W *= np.split(factors, self.ends[:-1])[number][own].astype(W.dtype)

    def _by_layer(self, sums: Array) -> list[Array]:
        """Return, of sums for all units, those that this process adds to, layer by layer."""
        first, *others = np.split(sums, self.ends[:-1])
        return [first[self.own[0]], *others]

    def _round_all(self) -> None:
        self._clear_sums()
        for block in self.blocks:
            self._round(block)

    def _round(self, block: Block) -> None:
        """Put a block's weights on their grid and add up how large they are."""
        if not isinstance(self.arithmetic, Exact) or block.layer is None:
            return
        self.arithmetic.round_weights(block.layer, block.parameters, out=block.rounded)
        magnitudes = np.abs(block.rounded, out=block.scratch, casting="same_kind")
        self.weight_sums[block.layer] += column_sums(magnitudes)
        if self.needs_row_sums[block.layer]:
            largest = column_sums(magnitudes.T).max(initial=0.0)
            self.row_sums[block.layer] = max(self.row_sums[block.layer], largest)

    def _clear_sums(self) -> None:
        """Begin new sums on the half of the board that the others do not read now."""
        half = self.steps % 2
        self.all_sums[half].fill(0.0)
        self.weight_sums = self.layer_sums[half]
        self.row_sums = self.board.row_sums[half, self.rank]
        self.row_sums.fill(0.0)

    def keep_bounds(self) -> bool:
        """Put the weights on coarser grids until they keep their bounds; say whether it took any.

        Needs a wait since the last step: every process sees the same sums and so decides the same.

        Raises:
            ExactnessError: the weights have outgrown every grid.
        """
        if not isinstance(self.arithmetic, Exact):
            return False
        half, coarser = self.steps % 2, False
        while not self.arithmetic.weights_fit(column_sums(self.board.weight_sums[half])):
            coarser = True
            self.crew.wait(self.rank)
            self._round_all()
            self.crew.wait(self.rank)
        if any(self.needs_row_sums):
            self.arithmetic.row_sums = self.board.row_sums[half].max(axis=0).tolist()
        return coarser

    def show(self, layers: Sequence[Layer], inputs: Array) -> None:
        """Write the own share of what is kept into `layers`, the whole network's.

        That is the averages, if there are any, or else the rounded weights; where units were
        dropped, the weights that leave them are scaled to all of them being there.

        Args:
            layers: to be written; all processes can read them.
            inputs: (inputs,) where in the whole network each input stands.
        """
        W = [layer.W for layer in self.averages] if self.average else self.rounded
        biases = [layer.b for layer in (self.averages if self.average else self.parameters)]
        kept = 1.0 - self.regularisation.dropout
        W = [W[0], *(values * kept if kept < 1.0 else values for values in W[1:])]
        self._place(layers, inputs, [Layer(*layer) for layer in zip(W, biases, strict=True)])

    def save(self, whole: Sequence[Sequence[Layer]], inputs: Array) -> None:
        """Write the own share of all that steps change into whole networks' layers.

        Args:
            whole: to be written: for the parameters, for the average if there is one, and for
                each of the optimizer's slots.
            inputs: as for `show`.
        """
        for layers, vector in zip(whole, self._vectors(), strict=True):
            self._place(layers, inputs, _split(vector, self.parameters))

    def restore(self, whole: Sequence[Sequence[Layer]], inputs: Array, steps: int) -> None:
        """Go on from what `save` wrote after so many steps; the arithmetic's grids are set."""
        for layers, vector in zip(whole, self._vectors(), strict=True):
            (W, b), *others = layers
            mine = self._of([Layer(W[inputs], b), *others])
            for own, saved in zip(_split(vector, self.parameters), mine, strict=True):
                own.W[...], own.b[...] = saved
        self.steps = steps
        self._round_all()

    def _vectors(self) -> list[Array]:
        return [self.flat, *([self.flat_average] if self.average else []), *self.flat_slots]

    def _place(self, layers: Sequence[Layer], inputs: Array, mine: Sequence[Layer]) -> None:
        """Write the own share of each layer where it stands in a whole network's layers."""
        layers[0].W[:, self.own[0]][inputs] = mine[0].W
        for layer, own, (W, _) in zip(layers[1:], self.own, mine[1:], strict=True):
            layer.W[own] = W
        for layer, own, (_, b) in zip(layers[:-1], self.own, mine[:-1], strict=True):
            layer.b[own] = b
        if self.rank == 0:
            layers[-1].b[...] = mine[-1].b

    def _of(self, layers: Sequence[Layer]) -> list[Layer]:
        """Return the own share of a network's layers, as views."""
        (W, b), *others = layers
        first = Layer(W[:, self.own[0]], b[self.own[0]])
        units = [*self.own[1:], slice(None)]
        return [
            first,
            *(
                Layer(W[rows], b[own])
                for (W, b), rows, own in zip(others, self.own, units, strict=True)
            ),
        ]

    def _strips(self, place: int, looks: Sequence[Look]) -> list[Strip]:
        samples, inputs = looks[-1].stop, looks[0].inputs
        x = self.x[: samples * inputs].reshape(samples, inputs)
        pixels, (z, *_), dW = self.board.pixels[place], self.activations, self.gradients[0].W
        following = [look.inputs for look in looks[1:]] + [0]
        return [
            Strip(
                pixels=pixels[start:stop, :inputs],
                x=x[start:stop, :inputs],
                W=self.rounded[0][:inputs],
                z=z[start:stop],
                ending=x[:stop, after:inputs],
                gradient=dW[after:inputs],
            )
            for (start, stop, inputs), after in zip(looks, following, strict=True)
        ]

    def _views(self, half: int, samples: int) -> Views:
        board = self.board
        columns = [*self.own[1:], slice(None)]
        return Views(
            activations=[a[:samples] for a in self.activations],
            last_hidden=self.last_hidden[:samples],
            errors=[dz[:samples] for dz in self.errors],
            partial=[z[half, self.rank, :samples] for z in board.partial],
            parts=[
                [part[:samples, own] for part in z[half]]
                for z, own in zip(board.partial, columns, strict=True)
            ],
            shown=[
                (dz[half, :samples], by_unit[half, :samples])
                for dz, by_unit in zip(board.errors, board.by_unit, strict=True)
            ],
        )

    def _blocks(self) -> Iterator[Block]:
        """Cut the own parameters into blocks that fit a core's cache."""
        vectors = [self.flat, self.flat_gradient, self.flat_average, *self.flat_slots]
        widest = max(
            *(W.shape[1] for W, _ in self.parameters), sum(len(b) for _, b in self.parameters)
        )
        scratch = np.empty(max(_BLOCK, widest), self.flat.dtype)

        def block(layer: int | None, views: Sequence[Array], rounded: Array) -> Block:
            parameters, gradient, average, *slots = views
            own_scratch = scratch[: parameters.size].reshape(parameters.shape)
            return Block(layer, parameters, gradient, average, slots, own_scratch, rounded)

        like = self.parameters
        for number, layers in enumerate(zip(*(_split(v, like) for v in vectors), strict=True)):
            rows, columns = layers[0].W.shape
            height = max(1, _BLOCK // max(1, columns))
            for top in range(0, rows, height):
                part = slice(top, top + height)
                views = [layer.W[part] for layer in layers]
                yield block(number, views, self.rounded[number][part])
        biases = slice(sum(W.size for W, _ in like), None)
        yield block(None, [vector[biases] for vector in vectors], self.flat[biases])


def _total(parts: Sequence[Array], out: Array) -> Array:
    """Return the sum of all processes' parts."""
    if len(parts) == 1:
        np.copyto(out, parts[0])
        return out
    first, second, *others = parts
    np.add(first, second, out=out)
    for part in others:
        out += part
    return out


def _split(flat: Array, like: Sequence[Layer]) -> list[Layer]:
    """Return the layers' `W` and `b` as views of one flat vector: W_1, W_2, ..., b_1, b_2, ..."""
    shapes = [W.shape for W, _ in like] + [b.shape for _, b in like]
    ends = list(accumulate(int(np.prod(shape)) for shape in shapes))
    views = [
        part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)
    ]
    return [Layer(W, b) for W, b in zip(views[: len(like)], views[len(like) :], strict=True)]
