"""What Numba's loops cannot say: wide accumulators in registers, and atomic operations."""

from __future__ import annotations

import os
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INDEX = ir.IntType(64)


def row_combination(width: int) -> Any:
    """Return the compiled function that adds up multiples of `width` columns of a matrix's rows.

    combine(out, o, matrix, m, stride, indices, factors, start, stop, more):

        out[o : o + width] = (out[o : o + width] if more else 0) + sum over k from start to stop of
            factors[k] * matrix[m + indices[k] * stride : ... + width]

    All arrays are flat. The sum is taken in the type of `out`, and its order and its fusing are
    the compiler's, so it must be exact. As a loop over arrays the compiler would load and store
    `out` for every term; one wide LLVM vector stays in registers.
    """

    @intrinsic
    def combine(  # type: ignore[no-untyped-def]
        typing, out, o, matrix, m, stride, indices, factors, start, stop, more
    ):
        signature = types.void(out, o, matrix, m, stride, indices, factors, start, stop, more)
        return signature, _generate

    def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = {
            i: context.make_array(signature.args[i])(context, builder, arguments[i]).data
            for i in (0, 2, 5, 6)
        }
        _, o, _, m, stride, _, _, start, stop, more = arguments
        total_type = ir.VectorType(data[0].type.pointee, width)
        row_type = ir.VectorType(data[2].type.pointee, width)
        columns = builder.gep(data[2], [m])

        def vector(pointer: Any, kind: Any) -> Any:
            return builder.bitcast(pointer, ir.PointerType(kind))

        def widened(value: Any, kind: Any) -> Any:
            return value if value.type == kind else builder.fpext(value, kind)

        target = vector(builder.gep(data[0], [o]), total_type)
        sum_so_far = builder.load(target)
        sum_so_far.align = 4
        more = builder.icmp_signed("!=", more, ir.Constant(more.type, 0))
        zeros = ir.Constant(total_type, [0.0] * width)
        total = cgutils.alloca_once_value(builder, builder.select(more, sum_so_far, zeros))
        with cgutils.for_range_slice(builder, start, stop, INDEX(1), INDEX, inc=True) as (k, _):
            row = builder.zext(builder.load(builder.gep(data[5], [k])), INDEX)
            pointer = builder.gep(columns, [builder.mul(row, stride)])
            terms = builder.load(vector(pointer, row_type))
            terms.align = 4
            factor = widened(builder.load(builder.gep(data[6], [k])), total_type.element)
            undefined = ir.Constant(total_type, ir.Undefined)
            factors = builder.insert_element(undefined, factor, ir.IntType(32)(0))
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            factors = builder.shuffle_vector(factors, undefined, lanes)
            product = builder.fmul(widened(terms, total_type), factors, flags=("contract",))
            added = builder.fadd(builder.load(total), product, flags=("contract",))
            builder.store(added, total)
        builder.store(builder.load(total), target).align = 4
        return context.get_dummy_value()

    return combine


@intrinsic
def four_dots(typing, matrix, a, b, c, d, weights, w, columns):  # type: ignore[no-untyped-def]
    """Return the dot products of four rows of a matrix with a row of weights.

    The rows start at the offsets `a` to `d` and `w` of flat arrays and have `columns` numbers, a
    multiple of 16. The sums must be exact, as for `row_combination`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = (
            context.make_array(signature.args[i])(context, builder, arguments[i]).data
            for i in (0, 5)
        )
        rows = [builder.gep(left, [arguments[i]]) for i in range(1, 5)]
        weights, columns = builder.gep(right, [arguments[6]]), arguments[7]
        number = left.type.pointee

        def load(row: Any, column: Any, kind: Any) -> Any:
            pointer = builder.bitcast(builder.gep(row, [column]), ir.PointerType(kind))
            value = builder.load(pointer)
            value.align = 4
            return value

        def add_up(kind: Any, start: Any, stop: Any, totals: Any) -> None:
            with cgutils.for_range_slice(
                builder, start, stop, INDEX(kind.count), INDEX, inc=True
            ) as (column, _):
                factors = load(weights, column, kind)
                for row, total in zip(rows, totals, strict=True):
                    product = builder.fmul(load(row, column, kind), factors, flags=("contract",))
                    added = builder.fadd(builder.load(total), product, flags=("contract",))
                    builder.store(added, total)

        def halves(value: Any) -> Any:
            count = value.type.count // 2
            undefined = ir.Constant(value.type, ir.Undefined)
            lanes = ir.VectorType(ir.IntType(32), count)
            parts = (ir.Constant(lanes, list(range(n, n + count))) for n in (0, count))
            return (builder.shuffle_vector(value, undefined, part) for part in parts)

        wide, narrow = ir.VectorType(number, 32), ir.VectorType(number, 16)
        whole = builder.and_(columns, INDEX(-32))
        zeros = ir.Constant(wide, [0.0] * 32)
        totals = [cgutils.alloca_once_value(builder, zeros) for _ in rows]
        add_up(wide, INDEX(0), whole, totals)
        sums = [builder.fadd(*halves(builder.load(total))) for total in totals]
        totals = [cgutils.alloca_once_value(builder, total) for total in sums]
        add_up(narrow, whole, columns, totals)
        found = []
        for total in totals:
            value = builder.load(total)
            while value.type.count > 1:
                value = builder.fadd(*halves(value))
            found.append(builder.extract_element(value, ir.IntType(32)(0)))
        return context.make_tuple(builder, signature.return_type, found)

    signature = types.UniTuple(matrix.dtype, 4)(
        matrix, types.int64, types.int64, types.int64, types.int64, weights, types.int64,
        types.int64,
    )  # fmt: skip
    return signature, generate


def _element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


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
