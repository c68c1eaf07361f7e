"""Laying out the flat arrays: where each layer lies, and room for parameters and buffers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.core import Array
from stages.core.exact import Exact
from stages.core.network import Layer
from stages.core.network import Parameters as Layers
from stages.engine.layout import (
    BLOCK,
    BLOCK_ROWS,
    LANES,
    TILE,
    Buffers,
    Network,
    Parameters,
    SparseImages,
)
from stages.engine.parallel import CONTROL_SIZE

CACHE_LINE = 64  # bytes
SAMPLE = 2048  # images that tell how often each pixel is bright
NARROW = 64  # columns that are always used together
ROW_COST = 16.0  # of updating a row of weights, in products of a pixel with a row


def lay_out(
    sizes: Sequence[int], samples: int, threads: int, images: Array, exact: bool
) -> Network:
    """Return where everything lies for a network of such sizes.

    Args:
        sizes: units of every layer, the inputs first.
        samples: most of a micro-batch.
        threads: that divide the rows of every W.
        images: (images, pixels) uint8, to give each thread as many bright pixels.
        exact: whether values are quantised.
    """
    layers = len(sizes) - 1
    arithmetic = Exact(layers)
    inputs, outputs = np.array(sizes[:-1]), np.array(sizes[1:])
    columns = _padded(outputs)
    stride = np.where(columns > NARROW, columns | LANES, columns)
    W = _offsets(inputs * stride)
    b = W[-1] + inputs[-1] * stride[-1] + _offsets(stride)
    shares = np.arange(threads + 1) / threads
    rows = np.array([np.rint(shares * _padded(n) / LANES) * LANES for n in inputs])
    rows = np.minimum(rows, inputs[:, np.newaxis]).astype(np.int64)
    bright = np.count_nonzero(images[:SAMPLE], axis=0) * (samples / len(images[:SAMPLE]))
    cost = np.concatenate([[0.0], np.cumsum(bright + ROW_COST)])
    rows[0] = np.searchsorted(cost, shares * cost[-1])
    formats = arithmetic.inputs
    return Network(
        inputs=inputs,
        outputs=outputs,
        columns=columns,
        stride=stride,
        W=W,
        b=b,
        units=_offsets(stride),
        rows=rows,
        sparse=_offsets(samples * inputs),
        saturation=np.array([f.saturation if exact else np.inf for f in formats], np.float32),
        quantum=np.array([f.quantum if exact else 0.0 for f in formats], np.float32),
        budget=np.array([arithmetic.delta_budget(n) for n in range(layers)]),
        weight_bound=np.array(
            [arithmetic.weight_bound(n) / arithmetic.weight_quanta[n] for n in range(layers)]
        ),
    )


def _padded(counts: Array) -> Array:
    return -(-counts // LANES) * LANES


def _offsets(counts: Array) -> Array:
    """Return where each of several arrays of such sizes starts."""
    return np.concatenate([[0], np.cumsum(counts)[:-1]])


def aligned(shape: int | tuple[int, ...], dtype: type) -> Array:
    """Return an array of zeros that starts a cache line, as every row of it then does."""
    count = int(np.prod(shape))
    memory = np.zeros(count * np.dtype(dtype).itemsize + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


def allocate_parameters(network: Network, threads: int, average: bool, slots: int) -> Parameters:
    """Return room for the parameters, zeros; without an average or a second slot, none for it."""
    size = int(network.b[-1] + network.stride[-1])

    def vector(needed: bool = True) -> Array:
        return aligned(size if needed else 0, np.float32)

    return Parameters(
        w=vector(),
        quantised=vector(),
        average=vector(average),
        slot0=vector(),
        slot1=vector(slots > 1),
        gradient=vector(),
        quanta=np.array(Exact(len(network.inputs)).weight_quanta),
        column_sums=np.zeros((threads, network.stride.sum()), np.float32),
        row_sums=np.zeros((threads, len(network.inputs))),
    )


def allocate_buffers(network: Network, samples: int, threads: int) -> Buffers:
    """Return the buffers for micro-batches of up to `samples` samples."""
    layers, sparse = len(network.inputs), samples * int(network.inputs.sum())
    columns, hidden = int(network.inputs.max()), samples * network.stride[:-1]
    widest = max(BLOCK, BLOCK_ROWS * int(network.stride.max()))
    return Buffers(
        indices=np.empty(sparse, np.uint16),
        values=np.empty(sparse, np.float32),
        bounds=np.zeros((layers, samples, columns // TILE + 2), np.int64),
        column_indices=np.empty(samples * columns, np.uint16),
        column_values=np.empty(samples * columns, np.float32),
        column_bounds=np.zeros((columns, samples // TILE + 2), np.int64),
        column_places=np.zeros(columns, np.int64),
        hidden=_offsets(hidden),
        activations=aligned(int(hidden.sum()), np.float32),
        delta=aligned(int(hidden.sum()), np.float32),
        per_unit=aligned(int(hidden.sum()), np.float32),
        per_sample=aligned(int(hidden.sum()), np.float32),
        logits=aligned(samples * int(network.stride[-1]), np.float64),
        class_indices=np.tile(np.arange(network.stride[-1], dtype=np.uint16), samples),
        class_bounds=np.arange(samples)[:, np.newaxis] * network.stride[-1]
        + [0, network.outputs[-1]],
        block=aligned((threads, widest), np.float32),
        wide_block=aligned((threads, widest), np.float64),
        control=np.zeros(CONTROL_SIZE, np.int64),
    )


def allocate_images(count: int, pixels: int, bright: int) -> SparseImages:
    """Return room for images of so many pixels, `bright` of them not dark in all."""
    return SparseImages(
        pixels=np.empty(bright + 1, np.uint16),  # `compress` writes before it knows whether to keep
        brightness=np.empty(bright + 1, np.uint8),
        bounds=np.empty((count, -(-pixels // TILE) + 1), np.int64),
    )


def layers_of(vector: Array, network: Network) -> list[Layer]:
    """Return copies of each layer's W and b from a flat array."""
    layers = []
    for n, (inputs, outputs) in enumerate(zip(network.inputs, network.outputs, strict=True)):
        W = vector[network.W[n] :][: inputs * network.stride[n]].reshape(inputs, -1)
        layers.append(Layer(W[:, :outputs].copy(), vector[network.b[n] :][:outputs].copy()))
    return layers


def write_layers(vector: Array, network: Network, layers: Layers) -> None:
    """Write each layer's W and b to where they lie in a flat array, if it has any room."""
    for n, (W, b) in enumerate(layers if len(vector) else []):
        rows = vector[network.W[n] :][: len(W) * network.stride[n]].reshape(len(W), -1)
        rows[:, : W.shape[1]] = W
        vector[network.b[n] :][: len(b)] = b
