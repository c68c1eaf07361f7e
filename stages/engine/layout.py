"""What the kernels read and write: flat arrays that all threads share.

All layers' arrays lie one after the other in one array, each row of a W padded with zeros to a
multiple of `LANES` columns, so that products take whole vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from stages.core import Array

LANES = 16
BLOCK = 4096
"""Parameters updated together, at least: few enough to stay in a core's first cache."""
BLOCK_ROWS = 32
"""Rows of W updated together, at least: enough to use a tile of deltas several times."""
TILE = 128
"""Rows of a matrix whose product is taken before that of others, while the cache holds them."""


class Network(NamedTuple):
    """Where each layer's numbers lie in the flat arrays, (layers,) each, and their formats.

    Attributes:
        inputs: rows of W.
        outputs: columns of W.
        columns: outputs, padded to whole vectors.
        stride: from one row to the next; an odd number of cache lines where there are many columns,
            so that parts of the rows do not compete for the same places of a cache.
        W: offset of W among the parameters.
        b: offset of b among the parameters.
        units: offset among arrays with one value per unit of every layer.
        rows: (layers, threads + 1) boundaries of each thread's rows of W.
        sparse: offset of the inputs' sparse rows.
        saturation: of the layer's inputs, and their quantum (0: none).
        quantum: see there.
        budget: bound on the deltas that meet the inputs in a gradient (float64).
        weight_bound: bound on a column's absolute weights, in multiples of their quantum.
    """

    inputs: Array
    outputs: Array
    columns: Array
    stride: Array
    W: Array
    b: Array
    units: Array
    rows: Array
    sparse: Array
    saturation: Array
    quantum: Array
    budget: Array
    weight_bound: Array


class Parameters(NamedTuple):
    """Flat arrays of all layers' parameters, float32 but for the last three.

    Attributes:
        w: the parameters.
        quantised: the same, W quantised.
        average: their moving average.
        slot0: the optimizer's state: velocity, or first moment.
        slot1: the second moment.
        gradient: of a batch's earlier micro-batches.
        quanta: (layers,) of the weights, float64.
        column_sums: (threads, units) sums of absolute quantised weights over each thread's rows.
        row_sums: (threads, layers) the largest such sum over one row, float64.
    """

    w: Array
    quantised: Array
    average: Array
    slot0: Array
    slot1: Array
    gradient: Array
    quanta: Array
    column_sums: Array
    row_sums: Array


class Buffers(NamedTuple):
    """What a micro-batch of up to `samples` samples needs.

    Attributes:
        indices: sparse rows of every layer's inputs: which are not zero, uint16.
        values: their values, float32.
        bounds: (layers, samples, tiles + 1) where each sparse row starts, each tile of it ends.
        column_indices: sparse columns of one layer's inputs: the samples, uint16.
        column_values: their values, float32.
        column_bounds: (inputs, tiles + 1) where each sparse column starts, each tile of it ends.
        column_places: (inputs,) how far each has been written.
        hidden: (hidden layers,) offsets of the next four, (samples, stride) for each hidden layer.
        activations: of the hidden layers, float32.
        delta: their deltas.
        per_unit: the deltas quantised for the gradient.
        per_sample: the deltas quantised for the layer below.
        logits: (samples, stride of the output layer) float64; then the output layer's deltas.
        class_indices: (samples, stride of the output layer) the number of each column, uint16.
        class_bounds: (samples, 2) where each row of classes starts and ends in it.
        block: (threads, BLOCK or BLOCK_ROWS rows) gradients, float32.
        wide_block: the same for the output layer, float64.
        control: int64, the barrier and the threads' common status.
    """

    indices: Array
    values: Array
    bounds: Array
    column_indices: Array
    column_values: Array
    column_bounds: Array
    column_places: Array
    hidden: Array
    activations: Array
    delta: Array
    per_unit: Array
    per_sample: Array
    logits: Array
    class_indices: Array
    class_bounds: Array
    block: Array
    wide_block: Array
    control: Array


class Plan(NamedTuple):
    """The micro-batches of some steps, one entry each; float32 factors for those that end a batch.

    Attributes:
        start: of the samples, in the epoch's order.
        stop: see there.
        first: whether it begins a batch.
        last: whether it ends one.
        rate: learning rate / samples of the batch; for Adam the bias-corrected learning rate.
        mean: 1 / samples of the batch.
        penalty: l2 * samples of the batch.
        shrink: 1 - learning rate * weight decay.
        blend: 1 - effective decay of the moving average.
    """

    start: Array
    stop: Array
    first: Array
    last: Array
    rate: Array
    mean: Array
    penalty: Array
    shrink: Array
    blend: Array


class Options(NamedTuple):
    """What stays the same over a training.

    Attributes:
        threads: how many.
        optimizer: SGD, NESTEROV or ADAM.
        momentum: float32.
        l2: whether there is a penalty.
        weight_decay: whether weights shrink.
        average: whether there is a moving average.
        dropout: whether there are masks.
        quantise: whether anything is rounded; not for ordinary floating point.
        keep_zeros: whether products take zeros as any other number, for the benchmark.
    """

    threads: int
    optimizer: int
    momentum: Any
    l2: bool
    weight_decay: bool
    average: bool
    dropout: bool
    quantise: bool
    keep_zeros: bool


class SparseImages(NamedTuple):
    """Images as sparse rows: only what is not dark.

    Attributes:
        pixels: which pixels, uint16.
        brightness: their values, uint8.
        bounds: (images, tiles + 1) where each row starts and each tile of it ends, int64.
    """

    pixels: Array
    brightness: Array
    bounds: Array


class Samples(NamedTuple):
    """The images of an epoch, and what their losses are made of.

    Attributes:
        images: only their bright pixels.
        rows: (samples,) where each sample of the epoch's order is among the images.
        labels: (samples,) int64.
        targets: (classes, classes) float64, the probabilities to learn for each label.
        masks: (samples of some micro-batches, hidden units) uint8, what dropout keeps.
        shifted: (samples,) float64, the softmax's shifted logit of the label.
        total: (samples,) float64, the softmax's total.
        predictions: (samples,) int64.
    """

    images: SparseImages
    rows: Array
    labels: Array
    targets: Array
    masks: Array
    shifted: Array
    total: Array
    predictions: Array
