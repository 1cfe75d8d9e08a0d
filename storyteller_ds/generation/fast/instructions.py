"""Instructions that numba has no name for.

numba compiles step.py anew when that file changes, and does not look at this one.
"""

import ctypes
import sys
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_C = ctypes.CDLL("kernel32" if sys.platform == "win32" else None)
_YIELD = "storyteller_ds_yield"
llvmlite.binding.add_symbol(
    _YIELD,
    ctypes.cast(_C.SwitchToThread if sys.platform == "win32" else _C.sched_yield, ctypes.c_void_p).value,
)


@intrinsic
def add_one(typing_context: Any, counters: Any) -> Any:
    """Add 1 to the first of an array of int64, in one piece and visible to all threads."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(counters), code


@intrinsic
def now(typing_context: Any, counters: Any) -> Any:
    """The first of an array of int64, with all that other threads have written before they changed it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(data, "acquire", 8)

    return types.int64(counters), code


@intrinsic
def let_others_run(typing_context: Any) -> Any:
    """Give the core to a thread that waits for it, perhaps the one that this one waits for."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, _YIELD), [])
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def float_of(typing_context: Any, bits: Any) -> Any:
    """The fp32 number that an int32 has the bits of."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


@intrinsic
def prefetch(typing_context: Any, numbers: Any, place: Any) -> Any:
    """Begin to read what is at a place of an array that is contiguous, or would be there if it were longer."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer, number = ir.PointerType(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        begin = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(begin, [builder.gep(data, [arguments[1]]), *(ir.Constant(number, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(numbers, types.intp), code
