"""Numpy code -> machine code: sixteen numbers in registers that numpy functions can be called on.

A `Vector` takes part in numpy expressions as an array does (NEP 13 and 18), and each operation
appends the LLVM instruction that does the same to all lanes, rounded on its own. So the functions
of `single` and `double`, written once for arrays, are the kernels' arithmetic too. Importing this
file imports llvmlite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.lib.mixins import NDArrayOperatorsMixin

LANES = 16  # numbers in a Vector: a lane of Philox's tile; LLVM splits what a register cannot hold

I32, I64 = ir.IntType(32), ir.IntType(64)
_TYPES: dict[str, Any] = {
    "bool": ir.IntType(1),
    "uint16": ir.IntType(16),
    "int32": I32,
    "uint32": I32,
    "int64": I64,
    "uint64": I64,
    "float32": ir.FloatType(),
    "float64": ir.DoubleType(),
}


class Vector(NDArrayOperatorsMixin):
    """LANES numbers of one dtype.

    Args:
        builder: where instructions are appended.
        dtype: of the numbers.
        value: LLVM's name for them.
    """

    def __init__(self, builder: Any, dtype: Any, value: Any) -> None:
        self.builder, self.dtype, self.value = builder, np.dtype(dtype), value

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Append what the ufunc does."""
        if method != "__call__" or options or ufunc.__name__ not in _UFUNCS:
            return NotImplemented
        return _UFUNCS[ufunc.__name__](*_alike(self, inputs))

    def __array_function__(self, function: Callable, _: Any, inputs: Any, options: Any) -> Any:
        """Append what the function does."""
        if options or function not in _FUNCTIONS:
            return NotImplemented
        return _FUNCTIONS[function](*inputs)

    def view(self, dtype: Any) -> Vector:
        """The same bits as numbers of another dtype of this width."""
        to = vector_type(dtype)
        return self.new(
            dtype, self.value if to == self.value.type else self.builder.bitcast(self.value, to)
        )

    def astype(self, dtype: Any) -> Vector:
        """The numbers converted: integers keep their lower bits, floats are rounded to nearest even."""
        dtype, b = np.dtype(dtype), self.builder
        if dtype == self.dtype:
            return self
        kinds, narrower = self.dtype.kind + dtype.kind, dtype.itemsize < self.dtype.itemsize
        if kinds == "ff":
            convert = b.fptrunc if narrower else b.fpext
        elif dtype.kind == "f":
            convert = b.sitofp if kinds == "if" else b.uitofp
        elif dtype.itemsize == self.dtype.itemsize:
            return self.view(dtype)
        else:
            convert = b.trunc if narrower else b.sext if self.dtype.kind == "i" else b.zext
        return self.new(dtype, convert(self.value, vector_type(dtype)))

    def rarely(self, exception: Callable[[], Vector], usual: Vector) -> Vector:
        """The exception where this condition holds; its instructions are skipped where no lane needs it."""
        b = self.builder
        flags = b.bitcast(self.value, ir.IntType(LANES))
        before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
        b.cbranch(b.icmp_unsigned("!=", flags, flags.type(0)), inside, after)
        b.position_at_end(inside)
        value = _where(self, exception(), usual).value
        inside = b.block
        b.branch(after)
        b.position_at_end(after)
        chosen = b.phi(value.type)
        chosen.add_incoming(usual.value, before)
        chosen.add_incoming(value, inside)
        return usual.new(usual.dtype, chosen)

    def new(self, dtype: Any, value: Any) -> Vector:
        """Other numbers in the same place of the program."""
        return Vector(self.builder, dtype, value)


def vector_type(dtype: Any) -> Any:
    """LLVM's type of a Vector of ``dtype``."""
    return ir.VectorType(scalar_type(dtype), LANES)


def scalar_type(dtype: Any) -> Any:
    """LLVM's type of one number."""
    return _TYPES[np.dtype(dtype).name]


def constant(builder: Any, dtype: Any, numbers: float | Sequence[int]) -> Vector:
    """Numbers known now: one for every lane, or the same for all."""
    dtype = np.dtype(dtype)
    every = np.broadcast_to(np.asarray(numbers, dtype), LANES).tolist()
    kind = scalar_type(dtype)
    return Vector(
        builder, dtype, ir.Constant(vector_type(dtype), [ir.Constant(kind, x) for x in every])
    )


def splat(builder: Any, dtype: Any, scalar: Any) -> Vector:
    """One number, known when the kernel runs, in every lane."""
    kind = vector_type(dtype)
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, scalar, I32(0))
    zeros = ir.Constant(ir.VectorType(I32, LANES), [I32(0)] * LANES)
    return Vector(builder, dtype, builder.shuffle_vector(first, nothing, zeros))


def _alike(like: Vector, inputs: Sequence[Any]) -> list[Vector]:
    """Scalars become vectors, and all get the dtype that numpy would give the result."""
    dtype = np.result_type(*(x.dtype if isinstance(x, Vector) else x for x in inputs))
    return [
        x.astype(dtype) if isinstance(x, Vector) else constant(like.builder, dtype, x)
        for x in inputs
    ]


def _arithmetic(integer: str, real: str) -> Callable[..., Vector]:
    def operation(*x: Vector) -> Vector:
        append = getattr(x[0].builder, real if x[0].dtype.kind == "f" else integer)
        return x[0].new(x[0].dtype, append(*(each.value for each in x)))

    return operation


def _comparison(sign: str) -> Callable[[Vector, Vector], Vector]:
    def operation(x: Vector, y: Vector) -> Vector:
        b, kind = x.builder, x.dtype.kind
        compare = {"f": b.fcmp_ordered, "i": b.icmp_signed}.get(kind, b.icmp_unsigned)
        return x.new(np.bool_, compare(sign, x.value, y.value))

    return operation


def _shift_right(x: Vector, places: Vector) -> Vector:
    shift = x.builder.ashr if x.dtype.kind == "i" else x.builder.lshr
    return x.new(x.dtype, shift(x.value, places.value))


def _intrinsic(name: str) -> Callable[[Vector], Vector]:
    def operation(x: Vector) -> Vector:
        module, kind = x.builder.module, x.value.type
        full = f"llvm.{name}.v{LANES}f{8 * x.dtype.itemsize}"
        known = module.globals.get(full)
        function = known or ir.Function(module, ir.FunctionType(kind, [kind]), full)
        return x.new(x.dtype, x.builder.call(function, [x.value]))

    return operation


def _where(condition: Vector, x: Any, y: Any) -> Vector:
    x, y = _alike(condition, (x, y))
    return x.new(x.dtype, x.builder.select(condition.value, x.value, y.value))


def _full_like(x: Vector, number: float) -> Vector:
    return constant(x.builder, x.dtype, number)


_UFUNCS: dict[str, Callable[..., Vector]] = {
    "add": _arithmetic("add", "fadd"),
    "subtract": _arithmetic("sub", "fsub"),
    "multiply": _arithmetic("mul", "fmul"),
    "divide": _arithmetic("", "fdiv"),
    "negative": _arithmetic("neg", "fneg"),
    "bitwise_and": _arithmetic("and_", ""),
    "bitwise_or": _arithmetic("or_", ""),
    "bitwise_xor": _arithmetic("xor", ""),
    "invert": _arithmetic("not_", ""),
    "left_shift": _arithmetic("shl", ""),
    "right_shift": _shift_right,
    "equal": _comparison("=="),
    "not_equal": _comparison("!="),
    "less": _comparison("<"),
    "less_equal": _comparison("<="),
    "greater_equal": _comparison(">="),
    "greater": _comparison(">"),
    "minimum": lambda x, y: _where(x > y, y, x),
    "maximum": lambda x, y: _where(x < y, y, x),
    "sqrt": _intrinsic("sqrt"),
    "absolute": _intrinsic("fabs"),
}
_FUNCTIONS: dict[Callable, Callable[..., Vector]] = {np.where: _where, np.full_like: _full_like}
