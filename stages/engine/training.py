"""Training on all cores: the parameters that `stages.core.training.train` returns, sooner.

Threads run the compiled step of `stages.engine.kernels`; Python draws random numbers, plans the
batches and adds up the losses. An interrupted training can go on from the state after an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stages.core import Array
from stages.core.augmentation import CHUNK, draw_chunk, gaussian
from stages.core.config import TrainConfig
from stages.core.data import LabelledImages, require_pixels
from stages.core.dropout import dropout_masks
from stages.core.elementary import log
from stages.core.exact import LARGEST_MICRO_BATCH, Arithmetic, Exact, ExactnessError, Plain
from stages.core.initialisation import initialise
from stages.core.network import Layer, one_hot
from stages.core.optimizers import Adam, optimizer_of
from stages.core.schedules import effective_decay, scheduled
from stages.core.state import State
from stages.core.training import DivergedError, Epoch, micro_batches
from stages.engine import kernels
from stages.engine.deformation import deform
from stages.engine.descent import ADAM, NESTEROV, SGD
from stages.engine.layout import Options, Parameters, Plan, Samples, SparseImages
from stages.engine.memory import (
    allocate_buffers,
    allocate_images,
    allocate_parameters,
    lay_out,
    layers_of,
    write_layers,
)
from stages.engine.parallel import LAYER, RUNNING, STATUS, STOPPED, WEIGHTS_TOO_LARGE

WINDOW = 4 * CHUNK
"""Images that are deformed, or whose dropped units are drawn, before they are learned."""
RESIDENT = 2**17
"""Images that are compressed once; of more, those of a window are, so that memory stays bounded."""
LEAST_ROWS = 128
"""Of the buffers, so that scoring takes many samples at once whatever the batch size."""


class Training:
    """One training run and the memory that its threads share."""

    def __init__(
        self,
        training_set: LabelledImages,
        validation_set: LabelledImages,
        config: TrainConfig,
        threads: int = 1,
        exact: bool = True,
        skip_zeros: bool = True,
    ) -> None:
        """Prepare the run.

        Args:
            training_set: as for `stages.core.training.train`.
            validation_set: the same.
            config: how to train.
            threads: to divide the work among; changes no bit of the result.
            exact: whether values are quantised; ordinary float32 is for the benchmark.
            skip_zeros: whether products leave zeros out, which the benchmark can forbid.

        Raises:
            TypeError: the images are not uint8.
        """
        images, labels = training_set
        require_pixels(images)
        require_pixels(validation_set[0])
        self.config, self.threads = config, threads
        self.shape = (images.shape[1], images.shape[2])
        self.images, self.labels = _rows(images), labels.astype(np.int64)
        self.validation_images = compressed(_rows(validation_set[0]), skip_zeros)
        self.validation_labels = validation_set[1].astype(np.int64)
        classes = int(labels.max()) + 1
        self.targets = one_hot(np.arange(classes), classes, config.label_smoothing)
        self.batch_size = len(images) if config.batch_size == "all" else config.batch_size
        self.steps = config.epochs * -(-len(images) // self.batch_size)
        sizes = [self.images.shape[1], *config.hidden_sizes, classes]
        samples = min(LARGEST_MICRO_BATCH, max(self.batch_size, LEAST_ROWS))
        self.arithmetic: Arithmetic = Exact(len(sizes) - 1) if exact else Plain()
        self.network = lay_out(sizes, samples, threads, exact)
        self.buffers = allocate_buffers(self.network, samples, threads)
        generator = np.random.default_rng(config.seed)
        start = initialise(sizes, config.initialisation, generator)
        self.optimizer = optimizer_of(config)
        self.parameters = allocate_parameters(
            self.network, threads, bool(config.ema_decay), self.optimizer.slots
        )
        for vector in (self.parameters.w, self.parameters.average):
            write_layers(vector, self.network, start)
        self.scored = allocate_parameters(self.network, threads, average=False, slots=0)
        self.options = Options(
            threads=threads,
            optimizer={"sgd": SGD, "nesterov": NESTEROV, "adam": ADAM}[config.optimizer],
            momentum=np.float32(config.momentum),
            l2=config.l2 > 0.0,
            weight_decay=config.weight_decay > 0.0,
            average=config.ema_decay > 0.0,
            dropout=config.dropout > 0.0,
            quantise=exact,
            keep_zeros=not skip_zeros,
        )
        self.in_ring = bool(config.augmentation) or len(images) > RESIDENT
        if self.in_ring:
            rows = WINDOW + 2 * CHUNK  # a window may begin and end inside a chunk
            self.sparse_images = allocate_images(
                rows, self.images.shape[1], rows * self.images.shape[1]
            )
        else:
            self.sparse_images = compressed(self.images, skip_zeros)
        if config.augmentation:
            self.gaussians = [gaussian(config.augmentation.smoothness, n) for n in self.shape]
        self.epoch, self.step, self.best_accuracy = 0, 0, -1.0
        self.kept = self.scored.quantised.copy()
        rows = WINDOW if config.dropout else 0
        self.masks = np.empty((rows, sum(config.hidden_sizes)), np.uint8)

    def run(
        self,
        on_epoch: Callable[[Epoch], None] = lambda epoch: None,
        save_due: Callable[[], bool] = lambda: False,
        on_state: Callable[[State], None] = lambda state: None,
        resume: State | None = None,
    ) -> list[Layer]:
        """Train, once, and return the parameters to keep.

        Args:
            on_epoch: called after each epoch.
            save_due: says after an epoch whether the state is to be saved.
            on_state: called with it then.
            resume: the state to go on from, of a training of the same data and configuration; the
                result is the same as if that had gone on.

        Raises:
            ExactnessError: the initial weights are too large.
            DivergedError: a weight, a delta or the loss outgrew what exact sums can hold.
        """
        epoch = 0
        if resume:
            self._restore(resume)
            if self.epoch == self.config.epochs:
                # The last weights need no bounds where their average is kept.
                return self.kept_layers()
            epoch = self.epoch + 1  # which checks these weights, if their average alone was scored
        with ThreadPoolExecutor(self.threads) as self.pool:
            try:
                self._quantise(self.parameters)
                for epoch in range(self.epoch + 1, self.config.epochs + 1):
                    self.epoch = epoch
                    on_epoch(self._run_epoch())
                    if save_due():
                        on_state(self._state())
            except ExactnessError as error:
                if epoch == 0:
                    raise
                raise DivergedError(f"training diverged in epoch {epoch} ({error})") from error
            finally:
                self.buffers.control[STATUS] = STOPPED  # after Ctrl-C, threads may still run
        return self.kept_layers()

    def kept_layers(self) -> list[Layer]:
        """Return a copy of the parameters kept so far."""
        return layers_of(self.kept, self.network)

    def _everywhere(self, task: Callable[..., object], *arguments: object) -> None:
        """Call a task with the arguments and a rank in every thread.

        Raises:
            ExactnessError: a kernel found that a bound was exceeded.
        """
        control = self.buffers.control

        def call(rank: int) -> None:
            try:
                task(*arguments, rank)
            except BaseException:
                control[STATUS] = STOPPED
                raise

        for future in [self.pool.submit(call, rank) for rank in range(self.threads)]:
            future.result()
        if control[STATUS] != RUNNING:
            what = "weights" if control[STATUS] == WEIGHTS_TOO_LARGE else "deltas"
            raise ExactnessError(f"the {what} of layer {control[LAYER] + 1} have grown too large")

    def _run_epoch(self) -> Epoch:
        config, epoch, count = self.config, self.epoch, len(self.images)
        order = np.random.default_rng([config.seed, epoch]).permutation(count)
        plan = self._plan(count)
        rows = np.arange(count) % len(self.sparse_images.bounds) if self.in_ring else order
        samples = self._samples(self.sparse_images, rows, self.labels[order])
        self._everywhere(self._learn, order, samples, plan)
        train_loss = self.arithmetic.loss_sum(log(samples.total) - samples.shifted) / count
        self._choose_parameters_to_score()
        validation = self._score()
        losses = log(validation.total) - validation.shifted
        correct = int((validation.predictions == validation.labels).sum())
        accuracy = correct / len(losses)
        if config.keep == "last" or accuracy > self.best_accuracy:
            self.best_accuracy = accuracy
            self.kept[:] = self.scored.quantised
        validation_loss = self.arithmetic.loss_sum(losses) / len(losses)
        return Epoch(epoch, train_loss, validation_loss, accuracy)

    def _plan(self, count: int) -> Plan:
        """Return an epoch's micro-batches, and the factors of its steps."""
        config, rows = self.config, []
        for start in range(0, count, self.batch_size):
            stop = min(start + self.batch_size, count)
            samples = stop - start
            rate = scheduled(config.learning_rate, config.schedule, self.step / self.steps)
            self.step += 1
            shrink = 1.0 - rate * config.weight_decay
            if isinstance(self.optimizer, Adam):
                rate *= self.optimizer.bias_correction(self.step)
            else:
                rate /= samples
            ema_decay = effective_decay(config.ema_decay, self.step)
            for part in micro_batches(start, stop):
                rows.append(
                    (part.start, part.stop, part.start == start, part.stop == stop, rate,
                     1.0 / samples, config.l2 * samples, shrink, 1.0 - ema_decay)
                )  # fmt: skip
        kinds = [np.int64] * 2 + [np.bool_] * 2 + [np.float32] * 5
        columns = zip(*rows, strict=True)
        return Plan(*(np.array(c, kind) for c, kind in zip(columns, kinds, strict=True)))

    def _quantise(self, parameters: Parameters) -> None:
        """Quantise the weights within their bounds, as the next step would."""
        self._everywhere(kernels.quantise, self.network, parameters, self.buffers, self.options)

    def _learn(self, order: Array, samples: Samples, plan: Plan, rank: int) -> None:
        """Take one thread through an epoch, window by window."""
        drawn = 0
        for first, last in self._windows(plan):
            if self.in_ring:
                needed = -(-int(plan.stop[last - 1]) // CHUNK)
                for chunk in range(drawn, needed):
                    if chunk % self.threads == rank:
                        self._prepare(order, chunk)
                drawn = needed
            if self.config.dropout:
                for n in range(first + rank, last, self.threads):
                    self._draw_masks(plan, first, n)
            part = Plan(*(column[first:last] for column in plan))
            status = kernels.learn(
                self.network, self.parameters, self.buffers, self.options, samples, part, rank
            )
            if status != RUNNING:
                return

    def _windows(self, plan: Plan) -> Iterator[tuple[int, int]]:
        """Cut an epoch's micro-batches into windows of at most `WINDOW` images, if need be."""
        if not (self.in_ring or self.config.dropout):
            yield 0, len(plan.start)
            return
        first = 0
        while first < len(plan.start):
            end = plan.start[first] + WINDOW
            last = int(np.searchsorted(plan.stop, end, side="right"))
            yield first, last
            first = last

    def _prepare(self, order: Array, chunk: int) -> None:
        """Compress the images of a chunk, deformed as drawn for it if they are to be."""
        augmentation, start = self.config.augmentation, chunk * CHUNK
        images, keep_zeros = self.sparse_images, self.options.keep_zeros
        if not augmentation:
            stop = min(start + CHUNK, len(order))
            kernels.compress_images(self.images, order, start, stop, images, keep_zeros)
            return
        seed = [self.config.seed, self.epoch]
        drawn = draw_chunk(augmentation, self.shape, len(order), seed, chunk)
        down, along = self.gaussians
        deform(
            self.images, order, start, self.shape, drawn, augmentation.elastic, down, along, images,
            keep_zeros,
        )  # fmt: skip

    def _draw_masks(self, plan: Plan, first: int, n: int) -> None:
        """Draw a micro-batch's dropout masks, in the window that starts with another one."""
        start, stop = (int(place - plan.start[first]) for place in (plan.start[n], plan.stop[n]))
        masks = dropout_masks(self.config, stop - start, [self.config.seed, self.epoch, n])
        np.concatenate(masks, axis=1, out=self.masks[start:stop].view(np.bool_))

    def _choose_parameters_to_score(self) -> None:
        """Bring the parameters to score and keep into `scored`: `parameters_to_score`."""
        source, w, network = self.parameters.average, self.scored.w, self.network
        if not self.config.ema_decay:
            self._quantise(self.parameters)
            source = self.parameters.quantised
        w[:] = source
        w[network.W[1, 0] : network.b[0]] *= np.float32(1.0 - self.config.dropout)
        self.scored.quanta[:] = Exact(len(network.inputs)).weight_quanta
        self._quantise(self.scored)

    def _score(self) -> Samples:
        """Classify the validation images."""
        rows = np.arange(len(self.validation_images.bounds))
        samples = self._samples(self.validation_images, rows, self.validation_labels)
        options = self.options._replace(dropout=False)
        w = self.scored.quantised
        self._everywhere(kernels.score, self.network, w, self.buffers, options, samples)
        return samples

    def _samples(self, images: SparseImages, rows: Array, labels: Array) -> Samples:
        """Return images to learn or to score, with room for what is found."""
        count = len(rows)
        return Samples(
            images=images,
            rows=rows,
            labels=labels,
            targets=self.targets,
            masks=self.masks,
            shifted=np.empty(count),
            total=np.empty(count),
            predictions=np.empty(count, np.int64),
        )

    def _vectors(self) -> list[Array]:
        """Return the flat arrays that have numbers of their own to go on from."""
        parameters = self.parameters
        every = (parameters.w, parameters.average, parameters.slot0, parameters.slot1)
        return [vector for vector in every if len(vector)]

    def _state(self) -> State:
        return State(
            self.epoch,
            self.step,
            self.best_accuracy,
            self.parameters.quanta.tolist(),
            [layers_of(vector, self.network) for vector in self._vectors()],
            self.kept_layers(),
        )

    def _restore(self, state: State) -> None:
        self.epoch, self.step, self.best_accuracy = state.epoch, state.step, state.best_accuracy
        write_layers(self.kept, self.network, state.kept)
        self.parameters.quanta[:] = state.weight_quanta
        for vector, layers in zip(self._vectors(), state.networks, strict=True):
            write_layers(vector, self.network, layers)


def compressed(images: Array, skip_zeros: bool) -> SparseImages:
    """Return images (images, pixels) uint8 without their dark pixels, unless they are wanted."""
    bright = np.count_nonzero(images) if skip_zeros else images.size
    sparse = allocate_images(len(images), images.shape[1], int(bright))
    kernels.compress_images(images, np.arange(len(images)), 0, len(images), sparse, not skip_zeros)
    return sparse


def _rows(images: Array) -> Array:
    """Return images as contiguous rows of pixels, in a writable array as kernels take it."""
    rows = np.asarray(images).reshape(len(images), -1)
    return np.require(rows, requirements=["C", "W"])
