"""Instructions that numba does not expose.

numba recompiles step.py when that file changes, but does not look at this one.
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
    """Atomically add 1 to the first element of an int64 array, visible to all threads."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "acq_rel")

    return types.int64(counters), code


@intrinsic
def now(typing_context: Any, counters: Any) -> Any:
    """Load the first element of an int64 array, and see everything that other threads wrote before changing it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(data, "acquire", 8)

    return types.int64(counters), code


@intrinsic
def let_others_run(typing_context: Any) -> Any:
    """Yield the core to a waiting thread, perhaps the one that this thread is waiting for."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, _YIELD), [])
        return context.get_dummy_value()

    return types.void(), code


@intrinsic
def float_of(typing_context: Any, bits: Any) -> Any:
    """The fp32 number that has the bits of an int32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), code


@intrinsic
def prefetch(typing_context: Any, numbers: Any, place: Any) -> Any:
    """Prefetch the element at an index of a contiguous array; the index may lie beyond its end."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer, number = ir.PointerType(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        begin = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(begin, [builder.gep(data, [arguments[1]]), *(ir.Constant(number, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(numbers, types.intp), code
