"""Laying out the flat arrays: where each layer lies, and room for parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stages.core import Array
from stages.core.exact import Exact
from stages.core.network import Layer
from stages.core.network import Parameters as Layers
from stages.engine.layout import (
    CACHE_LINE,
    LANES,
    NARROW,
    TILE,
    Buffers,
    Network,
    Parameters,
    SparseImages,
)
from stages.engine.parallel import CONTROL_SIZE


def lay_out(sizes: Sequence[int], samples: int, threads: int, exact: bool) -> Network:
    """Return where everything lies for a network of such sizes.

    Args:
        sizes: units of every layer, the inputs first.
        samples: most of a micro-batch.
        threads: that divide every hidden layer's units.
        exact: whether values are quantised.
    """
    layers = len(sizes) - 1
    arithmetic = Exact(layers)
    inputs, outputs = np.array(sizes[:-1]), np.array(sizes[1:])
    shares = np.arange(threads + 1) / threads
    edges = [np.rint(shares * _padded(n) / LANES) * LANES for n in outputs[:-1]]
    edges = np.minimum(edges, outputs[:-1, np.newaxis]).astype(np.int64)
    units = np.diff(edges)
    columns = np.vstack([_padded(units), np.full(threads, _padded(outputs[-1]))])
    stride = np.where(columns > NARROW, columns | LANES, columns)
    rows = np.vstack([np.broadcast_to(inputs[:-1, np.newaxis], units.shape), units[-1]])
    W = _offsets(rows * stride)
    b = W[-1, -1] + rows[-1, -1] * stride[-1, -1] + _offsets(_padded(outputs))
    formats = arithmetic.inputs
    return Network(
        inputs=inputs,
        outputs=outputs,
        edges=edges,
        columns=columns,
        stride=stride,
        W=W,
        b=b,
        hidden=_offsets(samples * stride[:-1]),
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
    """Return where each of several arrays of such sizes starts, one after the other."""
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).reshape(counts.shape)


def aligned(shape: int | tuple[int, ...], dtype: type) -> Array:
    """Return an array of zeros that starts a cache line."""
    count = int(np.prod(shape))
    memory = np.zeros(count * np.dtype(dtype).itemsize + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    return memory[start : start + count * np.dtype(dtype).itemsize].view(dtype).reshape(shape)


def allocate_parameters(network: Network, threads: int, average: bool, slots: int) -> Parameters:
    """Return room for the parameters, zeros.

    None for an average unless there is one, nor for more slots than the optimizer has; without any,
    as what is only scored, nor for a gradient.
    """
    size = int(network.b[-1] + _padded(network.outputs[-1]))
    layers = len(network.inputs)

    def vector(needed: bool = True) -> Array:
        return aligned(size if needed else 0, np.float32)

    return Parameters(
        w=vector(),
        quantised=vector(),
        average=vector(average),
        slot0=vector(slots > 0),
        slot1=vector(slots > 1),
        gradient=vector(slots > 0),
        quanta=np.array(Exact(layers).weight_quanta),
        column_sums=aligned((threads, layers, int(network.stride.max())), np.float32),
        row_sums=aligned((threads, layers, int(network.inputs[1:].max())), np.float64),
        exceeded=np.zeros((threads, layers + CACHE_LINE), np.bool_),
    )


def allocate_buffers(network: Network, samples: int, threads: int) -> Buffers:
    """Return the buffers for micro-batches of up to `samples` samples."""
    columns = network.inputs[:-1]  # none of the output layer's inputs
    sparse, most = samples * int(columns.sum()), int(columns.max())
    images, tiles = samples * int(network.inputs[0]), -(-int(network.inputs[0]) // TILE)
    hidden = samples * network.stride[:-1].sum(axis=1)
    output, stride = int(network.stride[-1, 0]), int(network.stride.max())
    classes, wide = int(network.outputs[-1]), max(2 * TILE * output, stride)
    return Buffers(
        pixels=aligned((threads, images), np.uint16),
        brightness=aligned((threads, images), np.float32),
        image_bounds=np.zeros((threads, samples, tiles + 1), np.int64),
        indices=np.empty(sparse, np.uint16),
        values=np.empty(sparse, np.float32),
        bounds=np.zeros((len(network.inputs), threads, samples, most // TILE + 2), np.int64),
        column_indices=np.empty(sparse, np.uint16),
        column_values=np.empty(sparse, np.float32),
        column_bounds=np.zeros((len(network.inputs), most, samples // TILE + 2), np.int64),
        places=np.zeros((threads, max(most, samples)), np.int64),
        activations=aligned(int(hidden.sum()), np.float32),
        delta=aligned(int(hidden.sum()), np.float32),
        per_unit=aligned(int(hidden.sum()), np.float32),
        per_sample=aligned(int(hidden.sum()), np.float32),
        partial=aligned((threads, int(hidden[:-1].max(initial=0))), np.float32),
        row_maxima=aligned((threads, samples), np.float32),
        partial_logits=aligned((threads, samples, output), np.float64),
        logits=aligned((samples, output), np.float64),
        output_deltas=aligned((classes, samples + LANES // 2), np.float64),
        block=aligned((threads, TILE * max(stride, NARROW)), np.float32),
        wide_block=aligned((threads, wide), np.float64),
        wide_weights=aligned((threads, stride * output), np.float64),
        control=np.zeros(CONTROL_SIZE, np.int64),
    )


def allocate_images(count: int, pixels: int, bright: int) -> SparseImages:
    """Return room for images of `pixels` pixels each, of which `bright` in all are not dark."""
    return SparseImages(
        pixels=np.empty(bright + 1, np.uint16),  # `compress` writes before it knows whether to keep
        brightness=np.empty(bright + 1, np.uint8),
        bounds=np.empty((count, -(-pixels // TILE) + 1), np.int64),
    )


def layers_of(vector: Array, network: Network) -> list[Layer]:
    """Return copies of each layer's W and b from a flat array."""
    layers = []
    for n, (inputs, outputs) in enumerate(zip(network.inputs, network.outputs, strict=True)):
        W = np.empty((inputs, outputs), np.float32)
        for part, own in _parts(vector, network, n, W):
            part[...] = own
        layers.append(Layer(W, vector[network.b[n] :][:outputs].copy()))
    return layers


def write_layers(vector: Array, network: Network, layers: Layers) -> None:
    """Write each layer's W and b to where they lie in a flat array, if it has any room."""
    for n, (W, b) in enumerate(layers if len(vector) else []):
        for part, own in _parts(vector, network, n, W):
            own[...] = part
        vector[network.b[n] :][: len(b)] = b


def _parts(vector: Array, network: Network, n: int, W: Array) -> Iterator[tuple[Array, Array]]:
    """Yield each thread's part of a layer's W, and where it lies in a flat array."""
    output = n == len(network.inputs) - 1
    for rank, stride in enumerate(network.stride[n]):
        units = slice(*network.edges[n - output, rank : rank + 2])
        part = W[units] if output else W[:, units]
        own = vector[network.W[n, rank] :][: len(part) * stride].reshape(len(part), stride)
        yield part, own[:, : part.shape[1]]
