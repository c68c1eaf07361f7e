"""What Numba's loops cannot say: wide accumulators in registers, and atomic operations."""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INDEX = ir.IntType(64)
WIDTHS = 64, 32, 16  # of vectors, the widest first
FLOATS = 64  # float32 numbers that are added up at a time: enough for an addition's latency


@intrinsic
def combine(  # type: ignore[no-untyped-def]
    typing, width, out, o, matrix, m, stride, indices, factors, start, stop, more
):
    """Add up multiples of `width` columns of a matrix's rows: 64, 32 or 16.

        out[o : o + width] = (out[o : o + width] if more else 0) + sum over k from start to stop of
            factors[k] * matrix[m + indices[k] * stride : ... + width]

    All arrays are flat; without `indices`, None, the rows are 0, 1, ... The sum is taken in the
    type of `out`, and its order and its fusing are the compiler's, so it must be exact. As a loop
    over arrays the compiler would load and store `out` for every term; wide LLVM vectors stay in
    registers.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any, width: int) -> None:
        out, matrix = (_data(context, builder, signature, arguments, i) for i in (1, 3))
        _, _, o, _, m, stride, _, _, start, stop, more = arguments
        total_type = ir.VectorType(out.type.pointee, width)
        target = _pointer(builder, out, o, width)
        sum_so_far = _loaded(builder, target)
        more = builder.icmp_signed("!=", more, ir.Constant(more.type, 0))
        zeros = ir.Constant(total_type, [0.0] * width)
        columns, groups = builder.gep(matrix, [m]), FLOATS // width
        totals = [cgutils.alloca_once_value(builder, zeros) for _ in range(groups)]
        builder.store(builder.select(more, sum_so_far, zeros), totals[0])

        def add(k: Any, total: Any) -> None:
            row, factor = _term(context, builder, signature, arguments, (6, 7), k, start)
            terms = _loaded(builder, _pointer(builder, columns, builder.mul(row, stride), width))
            terms = _widened(builder, terms, total_type)
            _add_product(builder, total, terms, _repeated(builder, factor, total_type))

        count = builder.sub(stop, start)
        whole = builder.sub(stop, builder.and_(count, INDEX(groups - 1)))
        with _range(builder, start, whole, groups) as (k, _):
            for n, total in enumerate(totals):
                add(builder.add(k, INDEX(n)), total)
        if groups > 1:
            with _range(builder, whole, stop, 1) as (k, _):
                add(k, totals[0])
        total = builder.load(totals[0])
        for other in totals[1:]:
            total = builder.fadd(total, builder.load(other))
        builder.store(total, target).align = 4

    signature = types.void(width, out, o, matrix, m, stride, indices, factors, start, stop, more)
    return signature, _for_every_width(generate)


@intrinsic
def scatter(  # type: ignore[no-untyped-def]
    typing, width, out, o, stride, indices, factors, start, stop, rows, r
):
    """Add multiples of `width` columns of a row to other rows.

        out[o + indices[k] * stride : ... + width] += factors[k] * rows[r : r + width],
            k from start to stop

    As for `combine`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any, width: int) -> None:
        out, rows = (_data(context, builder, signature, arguments, i) for i in (1, 8))
        _, _, o, stride, _, _, start, stop, _, r = arguments
        kind = ir.VectorType(out.type.pointee, width)
        columns = builder.gep(out, [o])
        terms = _widened(builder, _loaded(builder, _pointer(builder, rows, r, width)), kind)
        with _range(builder, start, stop, 1) as (k, _):
            row, factor = _term(context, builder, signature, arguments, (4, 5), k, start)
            target = _pointer(builder, columns, builder.mul(row, stride), width)
            product = builder.fmul(terms, _repeated(builder, factor, kind), flags=("contract",))
            added = builder.fadd(_loaded(builder, target), product, flags=("contract",))
            builder.store(added, target).align = 4

    signature = types.void(width, out, o, stride, indices, factors, start, stop, rows, r)
    return signature, _for_every_width(generate)


def _for_every_width(generate: Any) -> Any:
    """Return what generates code that branches by its first argument, the width."""

    def branch(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for width in WIDTHS:
            with builder.if_then(builder.icmp_signed("==", arguments[0], INDEX(width))):
                generate(context, builder, signature, arguments, width)
        return context.get_dummy_value()

    return branch


def _range(builder: Any, start: Any, stop: Any, step: int) -> Any:
    return cgutils.for_range_slice(builder, start, stop, INDEX(step), INDEX, inc=True)


def _data(context: Any, builder: Any, signature: Any, arguments: Any, i: int) -> Any:
    """Return where the numbers of an array lie."""
    return context.make_array(signature.args[i])(context, builder, arguments[i]).data


def _pointer(builder: Any, data: Any, offset: Any, width: int) -> Any:
    """Return where a vector of an array starts."""
    vector = ir.VectorType(data.type.pointee, width)
    return builder.bitcast(builder.gep(data, [offset]), ir.PointerType(vector))


def _loaded(builder: Any, pointer: Any) -> Any:
    value = builder.load(pointer)
    value.align = 4
    return value


def _term(
    context: Any, builder: Any, signature: Any, arguments: Any, places: tuple[int, int], k: Any,
    start: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Return the row and the factor of term k."""
    at_indices, at_factors = places
    if isinstance(signature.args[at_indices], types.NoneType):
        row = builder.sub(k, start)
    else:
        indices = _data(context, builder, signature, arguments, at_indices)
        row = builder.zext(builder.load(builder.gep(indices, [k])), INDEX)
    factors = _data(context, builder, signature, arguments, at_factors)
    return row, builder.load(builder.gep(factors, [k]))


def _widened(builder: Any, value: Any, kind: Any) -> Any:
    return value if value.type == kind else builder.fpext(value, kind)


def _repeated(builder: Any, factor: Any, kind: Any) -> Any:
    """Return a vector of one number, converted to the vector's type."""
    undefined = ir.Constant(kind, ir.Undefined)
    vector = builder.insert_element(
        undefined, _widened(builder, factor, kind.element), ir.IntType(32)(0)
    )
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(vector, undefined, lanes)


def _add_product(builder: Any, total: Any, a: Any, b: Any) -> None:
    """Add a product to a sum in memory; the two may be fused."""
    product = builder.fmul(a, b, flags=("contract",))
    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)


@intrinsic
def eight_dots(typing, matrix, indices, k, m, stride, row, r, columns):  # type: ignore[no-untyped-def]
    """Return the dot products of eight rows of a matrix with one row.

    The eight are `indices[k]` to `indices[k + 7]`; the matrix starts at the offset `m` of a flat
    array, the one row at `r` of another, and has `columns` numbers, a multiple of 16. The sums must
    be exact, as for `combine`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix, indices, row = (_data(context, builder, signature, arguments, i) for i in (0, 1, 5))
        _, _, k, m, stride, _, r, columns = arguments
        row, kind = builder.gep(row, [r]), ir.VectorType(matrix.type.pointee, 16)
        rows = []
        for n in range(8):
            index = builder.load(builder.gep(indices, [builder.add(k, INDEX(n))]))
            start = builder.mul(builder.zext(index, INDEX), stride)
            rows.append(builder.gep(matrix, [builder.add(m, start)]))
        zeros = ir.Constant(kind, [0.0] * 16)
        totals = [cgutils.alloca_once_value(builder, zeros) for _ in rows]
        with _range(builder, INDEX(0), columns, 16) as (column, _):
            factors = _loaded(builder, _pointer(builder, row, column, 16))
            for start, total in zip(rows, totals, strict=True):
                terms = _loaded(builder, _pointer(builder, start, column, 16))
                _add_product(builder, total, terms, factors)
        sums = _lane_sums(builder, [builder.load(total) for total in totals])
        found = [builder.extract_element(sums, ir.IntType(32)(n)) for n in range(8)]
        return context.make_tuple(builder, signature.return_type, found)

    offset = types.int64
    signature = types.UniTuple(matrix.dtype, 8)(
        matrix, indices, offset, offset, offset, row, offset, offset
    )
    return signature, generate


def _lane_sums(builder: Any, vectors: list[Any]) -> Any:
    """Return a vector of the sums of the lanes of each of some vectors.

    One addition adds half of the lanes of two vectors to the other half, as long as there are two.
    """
    size = vectors[0].type.count  # lanes that hold parts of one sum
    while size > 1:
        pairs = [vectors[n : n + 2] for n in range(0, len(vectors), 2)]
        vectors = [_added_halves(builder, pair[0], pair[-1], size) for pair in pairs]
        size //= 2
    return vectors[0]


def _added_halves(builder: Any, a: Any, b: Any, size: int) -> Any:
    """Add the second half of every `size` lanes to the first; `a` may be the same vector as `b`."""
    lanes = a.type.count if a is b else 2 * a.type.count
    firsts = [n for n in range(lanes) if n % size < size // 2]
    kind = ir.VectorType(ir.IntType(32), len(firsts))
    masks = (ir.Constant(kind, [n + shift for n in firsts]) for shift in (0, size // 2))
    return builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in masks))


@intrinsic
def prefetch(typing, array, i):  # type: ignore[no-untyped-def]
    """Begin to load the cache line of an array's element into the second cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature, arguments)
        pointer = builder.bitcast(pointer, ir.PointerType(ir.IntType(8)))
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        read, second_cache, data = word(0), word(2), word(1)
        builder.call(function, [pointer, read, second_cache, data])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def float_of_bits(typing, bits):  # type: ignore[no-untyped-def]
    """Return the float32 number with the bits of an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.gep(_data(context, builder, signature, arguments, 0), [arguments[1]])


@intrinsic
def atomic_add(typing, array, i, value):  # type: ignore[no-untyped-def]
    """Add to an element of an int64 array and return what it was, as one indivisible operation."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(array, types.int64, types.int64), generate


@intrinsic
def atomic_load(typing, array, i):  # type: ignore[no-untyped-def]
    """Return an element of an int64 array as another thread last stored it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature, arguments)
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(array, types.int64), generate


@intrinsic
def atomic_store(typing, array, i, value):  # type: ignore[no-untyped-def]
    """Set an element of an int64 array, and before it all that was written, for other threads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _element(context, builder, signature, arguments)
        builder.store_atomic(arguments[2], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


if not hasattr(os, "sched_yield"):  # as on Windows, where the compiler would abort
    raise ImportError("this system has no sched_yield")
yield_core = types.ExternalFunction("sched_yield", types.int32())
"""Lets another thread run on this core."""
