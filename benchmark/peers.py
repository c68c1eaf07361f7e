"""The contenders: our engine, and each peer in the fastest form that its own documentation offers.

All train the same network on the same images, fully connected layers with ReLU between them, by
SGD with momentum on the mean cross-entropy, in float32, on all cores, every epoch in a new random
order. Our engine's products visit only what is not zero, four fifths of MNIST's pixels and the
inactive units being zero: they add nothing to any sum, and exact sums do not notice. The peers
multiply them, as everyone does who uses a library.

Each is a function from a task and the data to a `Train`: calling the function builds whatever can
be kept, calling the `Train` draws new weights and trains. Peers are imported where they are used,
so that each runs in a process of its own and a missing one does no harm.
"""

from __future__ import annotations

from stages.pipeline import threads

# isort: split
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from stages.core import Array, initialisation, network, prediction
from stages.core.augmentation import Augmentation
from stages.core.config import TrainConfig
from stages.core.exact import PIXELS, Plain
from stages.pipeline.datasets import MNIST

BRIGHTNESS = np.float32(PIXELS.quantum)
"""A pixel's value times this is what enters every contender's network."""
FOREVER = 1_000_000
CLASSES = len(MNIST.classes)

Layers = Sequence[tuple[Array, Array]]
"""Each layer's W (inputs, outputs) and b (outputs,)."""
AfterEpoch = Callable[[int, Callable[[], Layers]], None]
"""Called after each epoch with the samples it trained on and a function that returns the weights;
it may raise `StopTraining` to end the training."""
Train = Callable[[int, "Plan", AfterEpoch], None]
"""Trains from new weights: (seed, plan, after_epoch)."""


class StopTraining(Exception):  # noqa: N818  (no error: what ends a training)
    """The training has gone on for long enough."""


class Data(NamedTuple):
    """Images (samples, pixels) and labels (samples,), uint8, for training and for testing."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array


@dataclass(frozen=True)
class Task:
    """The network and the batch: all that a compiler may want to know beforehand."""

    hidden_sizes: Sequence[int]
    batch_size: int
    momentum: float = 0.9
    images: int | None = None
    """How many of the training images an epoch takes, from the first on; None for all."""
    workers: int | None = None
    """Threads of ours; None for as many as the pipeline uses."""

    @property
    def sizes(self) -> list[int]:
        """Units of every layer, the inputs first."""
        return [MNIST.pixels, *self.hidden_sizes, CLASSES]

    @property
    def operations(self) -> int:
        """Additions and multiplications in a sample's products; the input needs no gradient."""
        first, *others = (a * b for a, b in itertools.pairwise(self.sizes))
        return 2 * (2 * first + 3 * sum(others))


@dataclass(frozen=True)
class Plan:
    """The learning rate: constant for ever, or falling along half a cosine over some epochs.

    The peers' falls from epoch to epoch, which all of them can do; ours, as the pipeline trains,
    from step to step.
    """

    learning_rate: float = 0.1
    epochs: int | None = None

    def rates(self) -> Iterator[float]:
        """Return the learning rate of each epoch."""
        if self.epochs is None:
            return itertools.repeat(self.learning_rate, FOREVER)
        angles = (math.pi * (epoch + 0.5) / self.epochs for epoch in range(self.epochs))
        return (self.learning_rate * (1 + math.cos(angle)) / 2 for angle in angles)


def predict(layers: Layers, x: Array) -> Array:
    """Return the classes of images x (samples, pixels) uint8; the same code scores everyone."""
    parameters = [network.Layer(*layer) for layer in layers]
    return prediction.predict(prediction.logits_of(parameters, x, Plain()))


def he_uniform(sizes: Sequence[int], seed: int) -> Layers:
    """Draw starting weights for the peers that bring none of their own."""
    return initialisation.initialise(sizes, "he", np.random.default_rng(seed))


def ours(task: Task, data: Data, *, exact: bool = True, skip_zeros: bool = True) -> Train:
    """Train with this project's engine, as the `train` stage does."""
    from stages.engine.training import Training

    def train(seed: int, plan: Plan, after_epoch: AfterEpoch) -> None:
        config = TrainConfig(
            hidden_sizes=task.hidden_sizes,
            initialisation="he",
            optimizer="sgd",
            learning_rate=plan.learning_rate,
            schedule="cosine" if plan.epochs else "constant",
            momentum=task.momentum,
            batch_size=task.batch_size,
            epochs=plan.epochs or FOREVER,
            l2=0.0,
            weight_decay=0.0,
            dropout=0.0,
            label_smoothing=0.0,
            ema_decay=0.0,
            augmentation=Augmentation(0.0, 0.0, 0.0, 0.0, 0.0, smoothness=4.0, thickness=0.0),
            seed=seed,
            keep="last",
        )
        few = slice(0, CLASSES)  # its own scoring is no part of what is measured
        training = Training(
            (data.x.reshape(-1, *MNIST.shape), data.y),
            (data.x_test[few].reshape(-1, *MNIST.shape), data.y_test[few]),
            config,
            task.workers or threads.worker_count(),
            exact,
            skip_zeros,
        )
        training.run(lambda epoch: after_epoch(len(data.x), training.kept_layers))

    return train


def jax_scan(task: Task, data: Data) -> Train:
    """Train with JAX: a whole epoch is one compiled call, a `lax.scan` over its batches.

    The images stay on the device as uint8 and are gathered there; the buffers are donated. Weights
    as (outputs, inputs) are up to a tenth faster than the other way round.
    """
    import jax
    import jax.numpy as jnp

    pixels, labels = jnp.asarray(data.x), jnp.asarray(data.y.astype(np.int32))
    steps = len(data.x) // task.batch_size
    samples = steps * task.batch_size

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        for W, b in parameters[:-1]:
            x = jax.nn.relu(x @ W.T + b)
        W, b = parameters[-1]
        log_probabilities = jax.nn.log_softmax(x @ W.T + b)
        return -jnp.take_along_axis(log_probabilities, y[:, None], axis=1).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def epoch(
        parameters: Any, velocities: Any, batches: Any, rate: Any, pixels: Any, labels: Any
    ) -> Any:
        def step(state: Any, batch: Any) -> Any:
            parameters, velocities = state
            x = pixels[batch].astype(jnp.float32) * BRIGHTNESS
            gradients = jax.grad(loss)(parameters, x, labels[batch])
            velocities = jax.tree.map(lambda v, g: task.momentum * v + g, velocities, gradients)
            parameters = jax.tree.map(lambda p, v: p - rate * v, parameters, velocities)
            return (parameters, velocities), None

        return jax.lax.scan(step, (parameters, velocities), batches)[0]

    def train(seed: int, plan: Plan, after_epoch: AfterEpoch) -> None:
        start = he_uniform(task.sizes, seed)
        parameters = [(jnp.asarray(W.T), jnp.asarray(b)) for W, b in start]
        velocities = jax.tree.map(jnp.zeros_like, parameters)
        generator = np.random.default_rng(seed)

        def layers() -> Layers:
            return [(np.asarray(W).T, np.asarray(b)) for W, b in parameters]

        for rate in plan.rates():
            order = generator.permutation(len(data.x))[:samples].astype(np.int32)
            batches = order.reshape(steps, task.batch_size)
            parameters, velocities = jax.block_until_ready(
                epoch(parameters, velocities, batches, rate, pixels, labels)
            )
            after_epoch(samples, layers)

    return train


def pytorch(task: Task, data: Data) -> Train:
    """Train with PyTorch as it is taught, batches cut from one tensor instead of a DataLoader."""
    import torch
    from torch.nn.functional import cross_entropy

    x = torch.from_numpy(data.x * BRIGHTNESS)
    y = torch.from_numpy(data.y.astype(np.int64))

    def train(seed: int, plan: Plan, after_epoch: AfterEpoch) -> None:
        torch.manual_seed(seed)
        modules: list[torch.nn.Module] = []
        for inputs, outputs in itertools.pairwise(task.sizes):
            modules += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        model = torch.nn.Sequential(*modules[:-1])
        optimizer = torch.optim.SGD(
            model.parameters(), lr=plan.learning_rate, momentum=task.momentum, fused=True
        )

        def layers() -> Layers:
            linear = [module for module in model if isinstance(module, torch.nn.Linear)]
            return [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in linear]

        for rate in plan.rates():
            optimizer.param_groups[0]["lr"] = rate
            for batch in torch.randperm(len(x)).split(task.batch_size):
                optimizer.zero_grad()
                cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
            after_epoch(len(x), layers)

    return train


def pytorch_compiled(task: Task, data: Data) -> Train:
    """Train with `torch.compile` over whole steps: gather, forward, backward and update in one.

    Compiled in one piece, with `torch.func.grad`, this is up to twice as fast as a compiled model
    with an ordinary backward pass and optimizer. Several steps a call save calls, which only short
    steps feel, and take longer to compile.
    """
    import torch
    from torch.nn.functional import cross_entropy, linear, relu

    pixels, labels = torch.from_numpy(data.x), torch.from_numpy(data.y.astype(np.int64))
    steps_per_call = 4 if task.operations * task.batch_size < 5e7 else 1
    calls = len(data.x) // (task.batch_size * steps_per_call)
    samples = calls * steps_per_call * task.batch_size

    def loss(parameters: Any, x: Any, y: Any) -> Any:
        for W, b in parameters[:-1]:
            x = relu(linear(x, W, b))
        return cross_entropy(linear(x, *parameters[-1]), y)

    def steps(parameters: Any, velocities: Any, batches: Any, rate: Any) -> None:
        for batch in batches:
            x = pixels[batch].float() * float(BRIGHTNESS)
            gradients = torch.func.grad(loss)(parameters, x, labels[batch])
            for layer, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                for p, v, g in zip(layer, velocity, gradient, strict=True):
                    v.mul_(task.momentum).add_(g)
                    p.sub_(rate * v)

    compiled = torch.compile(steps, fullgraph=True)

    def train(seed: int, plan: Plan, after_epoch: AfterEpoch) -> None:
        torch.manual_seed(seed)
        start = he_uniform(task.sizes, seed)
        parameters = [(torch.from_numpy(W.T.copy()), torch.from_numpy(b)) for W, b in start]
        velocities = [(torch.zeros_like(W), torch.zeros_like(b)) for W, b in parameters]
        for rate in map(torch.tensor, plan.rates()):
            order = torch.randperm(len(pixels))[:samples]
            for batches in order.reshape(calls, steps_per_call, task.batch_size):
                compiled(parameters, velocities, batches, rate)
            after_epoch(samples, lambda: [(W.numpy().T, b.numpy()) for W, b in parameters])

    return train


def keras_fit(task: Task, data: Data, *, jit_compile: bool) -> Train:
    """Train with Keras on TensorFlow: `fit`, a whole epoch in one execution.

    The images stay uint8 until they are in the network; a `tf.data` pipeline gathers a batch at a
    time. Against arrays given to `fit` with its other defaults this is two to four times faster.
    """
    import keras
    import tensorflow as tf

    pixels, labels = tf.constant(data.x), tf.constant(data.y.astype(np.int32))
    steps = len(data.x) // task.batch_size
    samples = steps * task.batch_size

    def new_batches(_: Any) -> Any:
        order = tf.random.shuffle(tf.range(len(data.x)))
        return tf.reshape(order[:samples], (steps, task.batch_size))

    dataset = (
        tf.data.Dataset.range(1)
        .map(new_batches)
        .unbatch()
        .map(lambda batch: (tf.gather(pixels, batch), tf.gather(labels, batch)))
        .apply(tf.data.experimental.assert_cardinality(steps))
        .prefetch(8)
    )
    # Nothing here needs tuning, and after a pause the tuner holds up an epoch for seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    model = keras.Sequential(
        [
            keras.Input((MNIST.pixels,), dtype="uint8"),
            keras.layers.Rescaling(float(BRIGHTNESS)),
            *(keras.layers.Dense(units, activation="relu") for units in task.hidden_sizes),
            keras.layers.Dense(CLASSES),
        ]
    )
    model.compile(
        keras.optimizers.SGD(momentum=task.momentum),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps,
        jit_compile=jit_compile,
    )
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]

    def train(seed: int, plan: Plan, after_epoch: AfterEpoch) -> None:
        keras.utils.set_random_seed(seed)
        model.optimizer.build(model.trainable_variables)
        for layer in dense:  # keeps what is compiled, which a new model would not
            initializer = keras.initializers.GlorotUniform(keras.random.SeedGenerator(seed))
            layer.kernel.assign(initializer(layer.kernel.shape))
            layer.bias.assign(np.zeros(layer.bias.shape))
        for velocity in model.optimizer.momentums:
            velocity.assign(np.zeros(velocity.shape))

        rates = plan.rates()
        model.fit(
            dataset,
            epochs=plan.epochs or FOREVER,
            verbose=0,
            callbacks=[
                keras.callbacks.LearningRateScheduler(lambda epoch, rate: next(rates)),
                keras.callbacks.LambdaCallback(
                    on_epoch_end=lambda epoch, logs: after_epoch(samples, layers)
                ),
            ],
        )

    def layers() -> Layers:
        return [(layer.kernel.numpy(), layer.bias.numpy()) for layer in dense]

    return train


def scikit_learn(task: Task, data: Data) -> Train:
    """Train scikit-learn's `MLPClassifier`, an epoch a `partial_fit`, in float32."""
    import sklearn
    from sklearn.neural_network import MLPClassifier

    x = data.x * BRIGHTNESS

    def train(seed: int, plan: Plan, after_epoch: AfterEpoch) -> None:
        model = MLPClassifier(
            task.hidden_sizes,
            solver="sgd",
            batch_size=task.batch_size,
            learning_rate_init=next(plan.rates()),
            momentum=task.momentum,
            nesterovs_momentum=False,
            alpha=0.0,
            # With a number for a seed, every partial_fit would shuffle alike.
            random_state=np.random.RandomState(seed),
        )
        with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            for epoch, rate in enumerate(plan.rates()):
                if epoch > 0:
                    # It has no such schedule of its own.
                    model._optimizer.learning_rate = rate
                model.partial_fit(x, data.y, classes=range(CLASSES))
                after_epoch(len(x), lambda: list(zip(model.coefs_, model.intercepts_, strict=True)))

    return train


NOTEBOOK_ITERATIONS = 10


def notebook(task: Task, data: Data) -> Train:
    """Train with the notebook's own algorithm: full batch, float64, one column per sample.

    Its slips are kept, since they are part of it; an "epoch" is 10 of its iterations.
    """
    x, m = (data.x / 255).T, len(data.x_test)
    hidden = task.hidden_sizes[0]

    def train(seed: int, plan: Plan, after_epoch: AfterEpoch) -> None:
        generator = np.random.default_rng(seed)
        W1, b1 = generator.random((hidden, len(x))) - 0.5, generator.random((hidden, 1)) - 0.5
        W2, b2 = generator.random((CLASSES, hidden)) - 0.5, generator.random((CLASSES, 1)) - 0.5
        for rate in plan.rates():
            for _ in range(NOTEBOOK_ITERATIONS):
                z1 = np.dot(W1, x) + b1
                a1 = np.maximum(z1, 0)
                z2 = np.dot(W2, a1) + b2
                e = np.exp(z2 - np.max(z2))
                a2 = e / sum(e)

                one_hot = np.zeros((data.y.size, CLASSES))
                one_hot[np.arange(data.y.size), data.y] = 1
                dz2 = a2 - one_hot.T
                dW2, db2 = 1 / m * np.dot(dz2, a1.T), 1 / m * np.sum(dz2)
                dz1 = np.dot(W2.T, dz2) * (z1 > 0)
                dW1, db1 = 1 / m * np.dot(dz1, x.T), 1 / m * np.sum(dz1)

                W1, b1 = W1 - rate * dW1, b1 - rate * db1
                W2, b2 = W2 - rate * dW2, b2 - rate * db2
            weights = [(W1.T, b1[:, 0]), (W2.T, b2[:, 0])]
            after_epoch(NOTEBOOK_ITERATIONS * len(data.x), partial(list, weights))

    return train


MATRIX_SIZE = 2048


def products(task: Task, data: Data) -> Train:
    """Train nothing: multiply float32 matrices, the most that NumPy's BLAS gives this machine.

    A "sample" is one addition or multiplication.
    """

    def train(seed: int, plan: Plan, after_epoch: AfterEpoch) -> None:
        shape = (cores(), MATRIX_SIZE, MATRIX_SIZE)
        a, b = np.random.default_rng(seed).random((2, *shape), np.float32)
        out = np.empty(shape, np.float32)
        with ThreadPoolExecutor(cores()) as pool:
            for _ in plan.rates():
                list(pool.map(np.matmul, a, b, out))
                after_epoch(cores() * 2 * MATRIX_SIZE**3, list)

    return train


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Contender:
    """Someone who takes part.

    Attributes:
        name: as the tables show it.
        form: how it is used, in a few words.
        build: makes its `Train`.
        packages: what must be installed, the first being the one that is compared.
        threads: of each process's BLAS or OpenMP; None for every core.
        environment: variables that must be set before the packages are imported.
    """

    name: str
    form: str
    build: Callable[[Task, Data], Train]
    packages: Sequence[str]
    threads: int | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        """Whether it is somebody else's, so that the benchmark must do without it if need be."""
        return self.packages != ["numpy"]

    def variables(self) -> dict[str, str]:
        """Return the environment variables of this contender's process."""
        # From this one `stages.pipeline.threads` sets those of all BLAS and OpenMP libraries.
        return {"BLAS_THREADS": str(self.threads or cores())} | self.environment


TENSORFLOW = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
}

CONTENDERS = {
    "ours_exact": Contender("ours", "exact sums, as the pipeline trains", ours, ["numpy"], 1),
    "ours_plain": Contender(
        "ours, plain float32",
        "the same engine, nothing quantised",
        partial(ours, exact=False),
        ["numpy"],
        1,
    ),
    "ours_dense": Contender(
        "ours, zeros multiplied",
        "the same engine, exact, but products take zeros as any other number",
        partial(ours, skip_zeros=False),
        ["numpy"],
        1,
    ),
    "jax": Contender(
        "JAX",
        "jit and lax.scan over a whole epoch, uint8 images on the device, donated buffers",
        jax_scan,
        ["jax"],
        environment={"JAX_PLATFORMS": "cpu"},
    ),
    "pytorch": Contender(
        "PyTorch", "eager, fused SGD, batches cut from one tensor", pytorch, ["torch"]
    ),
    "pytorch_compiled": Contender(
        "PyTorch, compiled",
        "torch.compile over whole training steps, uint8 images",
        pytorch_compiled,
        ["torch"],
    ),
    "keras": Contender(
        "Keras",
        "fit on TensorFlow, a whole epoch an execution, tf.data gathers uint8 batches",
        partial(keras_fit, jit_compile=False),
        ["keras", "tensorflow"],
        environment=TENSORFLOW,
    ),
    "keras_jit": Contender(
        "Keras, jit_compile",
        "the same, compiled by XLA",
        partial(keras_fit, jit_compile=True),
        ["keras", "tensorflow"],
        environment=TENSORFLOW,
    ),
    "scikit_learn": Contender(
        "scikit-learn",
        "MLPClassifier, an epoch a partial_fit, float32, input checks off",
        scikit_learn,
        ["scikit-learn"],
    ),
    "notebook": Contender("the notebook", "full batch, float64, as it stands", notebook, ["numpy"]),
    "sgemm": Contender(
        "sgemm",
        "np.matmul on every core, 2048 x 2048",
        products,
        ["numpy"],
        1,
    ),
}
