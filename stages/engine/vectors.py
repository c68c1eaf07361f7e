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

    combine(out, o, matrix, m, stride, indices, factors, start, stop):

        out[o : o + width] = sum over k from start to stop of
            factors[k] * matrix[m + indices[k] * stride : ... + width]

    All arrays are flat. The sum is taken in the type of `out`, and its order and its fusing are
    the compiler's, so it must be exact. As a loop over arrays the compiler would load and store
    `out` for every term; one wide LLVM vector stays in registers.
    """

    @intrinsic
    def combine(  # type: ignore[no-untyped-def]
        typing, out, o, matrix, m, stride, indices, factors, start, stop
    ):
        signature = types.void(out, o, matrix, m, stride, indices, factors, start, stop)
        return signature, _generate

    def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = {
            i: context.make_array(signature.args[i])(context, builder, arguments[i]).data
            for i in (0, 2, 5, 6)
        }
        _, o, _, m, stride, _, _, start, stop = arguments
        total_type = ir.VectorType(data[0].type.pointee, width)
        row_type = ir.VectorType(data[2].type.pointee, width)
        columns = builder.gep(data[2], [m])

        def vector(pointer: Any, kind: Any) -> Any:
            return builder.bitcast(pointer, ir.PointerType(kind))

        def widened(value: Any, kind: Any) -> Any:
            return value if value.type == kind else builder.fpext(value, kind)

        total = cgutils.alloca_once_value(builder, ir.Constant(total_type, [0.0] * width))
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
        target = vector(builder.gep(data[0], [o]), total_type)
        builder.store(builder.load(total), target).align = 4
        return context.get_dummy_value()

    return combine


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
