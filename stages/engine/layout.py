"""What the kernels read and write: flat arrays that all threads share.

Each thread owns some units of every hidden layer: their columns of W, the state of these, their
activations and deltas, and the rows of the output layer's W that they meet. All of one thread's lie
together, so that threads exchange little but sums. Rows are padded with zeros to a multiple of
`LANES` columns, so that products take whole vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from stages.core import Array

CACHE_LINE = 64  # bytes
LANES = 16
NARROW = 64
"""Columns of a matrix that are used together."""
BLOCK_ROWS = 64
"""Rows of a W between hidden layers that are updated together: enough to use a tile of deltas
several times."""
TILE = 128
"""Rows of a matrix whose product is taken before that of others, while the cache holds them."""


class Network(NamedTuple):
    """Where each thread's part of each layer lies in the flat arrays, and the layers' formats.

    Attributes:
        inputs: (layers,) rows of W.
        outputs: (layers,) columns of W.
        edges: (hidden layers, threads + 1) boundaries of each thread's units.
        columns: (layers, threads) each thread's columns of W, padded to whole vectors.
        stride: (layers, threads) from one row to the next; an odd number of cache lines where there
            are many columns, so that parts of the rows do not compete for the same places of a
            cache.
        W: (layers, threads) offset of the thread's part of W among the parameters.
        b: (layers,) offset of b among the parameters.
        hidden: (hidden layers, threads) offset of the thread's units where each sample has a row.
        sparse: (layers,) offset of the inputs' sparse rows and columns.
        saturation: (layers,) of the layer's inputs, float32.
        quantum: (layers,) of the same; 0 for none.
        budget: (layers,) bound on the deltas that meet the inputs in a gradient, float64.
        weight_bound: (layers,) on a column's absolute weights, in multiples of their quantum.
    """

    inputs: Array
    outputs: Array
    edges: Array
    columns: Array
    stride: Array
    W: Array
    b: Array
    hidden: Array
    sparse: Array
    saturation: Array
    quantum: Array
    budget: Array
    weight_bound: Array


class Parameters(NamedTuple):
    """Flat arrays of all layers' parameters, float32; and what their quanta depend on.

    Attributes:
        w: the parameters.
        quantised: the same, W quantised.
        average: their moving average.
        slot0: the optimizer's state: velocity, or first moment.
        slot1: the second moment.
        gradient: of a batch's earlier micro-batches.
        quanta: (layers,) of the weights, float64.
        column_sums: (threads, layers, ...) sums of absolute quantised weights over each thread's
            part of each column, float32.
        row_sums: (threads, layers, ...) the same over its part of each row, float64.
        exceeded: (threads, layers + padding) whether one of its columns exceeds the bound, bool.
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
    exceeded: Array


class Buffers(NamedTuple):
    """What a micro-batch of up to `samples` samples needs.

    Attributes:
        pixels: (threads, ...) the images as sparse rows: which pixels are not dark, uint16.
        brightness: their values, float32.
        image_bounds: (threads, samples, tiles + 1) where each row starts and each tile of it ends.
        indices: sparse rows of the hidden layers' activations: which are not zero, uint16.
        values: their values, float32.
        bounds: (layers, threads, samples, tiles + 1) where each thread's part of each sparse row
            starts and each tile of it ends.
        column_indices: sparse columns of the same activations: the samples, uint16.
        column_values: their values, float32.
        column_bounds: (layers, inputs, tiles + 1) where each sparse column starts, each tile ends.
        places: (threads, inputs or samples) how far each sparse column has been written, or
            each sparse row read.
        activations: of the hidden layers, float32, (samples, stride) for each layer and thread.
        delta: their deltas.
        per_unit: the deltas quantised for the gradient.
        per_sample: the deltas quantised for the layer below.
        partial: (threads, ...) what each thread's columns of W add to the deltas of a layer below.
        row_maxima: (threads, samples) the largest absolute delta of each thread's units.
        partial_logits: (threads, samples, stride of the output layer) float64, what each thread's
            units add to the logits.
        logits: (samples, stride of the output layer) float64; then the output layer's deltas.
        output_deltas: (classes, samples) float64, the same deltas transposed.
        block: (threads, ...) each thread's own: gradients and what else it needs for a moment.
        wide_block: the same in float64.
        wide_weights: (threads, ...) each thread's part of the output layer's W, float64.
        control: int64, the barrier and the threads' common status.
    """

    pixels: Array
    brightness: Array
    image_bounds: Array
    indices: Array
    values: Array
    bounds: Array
    column_indices: Array
    column_values: Array
    column_bounds: Array
    places: Array
    activations: Array
    delta: Array
    per_unit: Array
    per_sample: Array
    partial: Array
    row_maxima: Array
    partial_logits: Array
    logits: Array
    output_deltas: Array
    block: Array
    wide_block: Array
    wide_weights: Array
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
