"""Dropout, compiled: numbers read, the mask drawn in registers, numbers written; no mask in memory.

The same program serves the backward pass, whose law is the same. It takes a tile of 128 elements at a
time: sixteen blocks of Philox, eight decisions of each. Importing this file imports llvmlite.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from .backend import Write
from .kernels import PLACES, packed
from .machine import Code, Loop, Machine, function, load
from .masks import TILE
from .philox import LOW_WORDS, rounds, schedule
from .single import bfloat16, float16
from .vector import I64, LANES, Vector, constant, scalar_type, splat, vector_type

ENTRY = "dropout"
_VECTORS = TILE // LANES
_U32 = np.uint32


class _Job(NamedTuple):
    """The fields of `dropout.Job`, loaded."""

    source: Any
    target: Any
    first: Any
    last: Any
    k0: Any
    k1: Any
    s2: Any
    s3: Any
    step: Any
    threshold: Any
    scale: Any


def kernel(dtype: str, machine: Machine | None = None) -> tuple[Write, Code]:
    """Compile dropout for one dtype; it holds no lock of Python's while it runs.

    Args:
        dtype: "float32", "float64", "bfloat16" or "float16".
        machine: what to compile for; None for this one.

    Returns:
        The function of a job, and the code that it runs.

    Raises:
        OSError: this system lets no process write code for itself.
    """
    code = load(program(dtype), ENTRY, machine)
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(code.address), code


# Numbers of 16 bits as floats, and back: integers alone, since not every processor converts.


def _wide_bfloat16(bits: Any) -> Any:
    return (bits.astype(_U32) << _U32(16)).view(np.float32)


def _wide_float16(bits: Any) -> Any:
    bits = bits.astype(_U32)
    size = (bits & _U32(0x7FFF)) << _U32(13)
    usual = size + _U32(0x38000000)
    small = ((size + _U32(0x38800000)).view(np.float32) - np.float32(2.0**-14)).view(_U32)
    endless = size | _U32(0x7F800000)
    wide = np.where(size < _U32(0x00800000), small, usual)
    wide = np.where(size < _U32(0x0F800000), wide, endless)
    return (wide | (bits & _U32(0x8000)) << _U32(16)).view(np.float32)


def _narrow(rounded: Callable, nan: int) -> Callable[[Any], Any]:
    return lambda x: np.where(x == x, rounded(x), np.uint16(nan))  # noqa: PLR0124 - NaN alone differs


_HALVES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "bfloat16": (_wide_bfloat16, _narrow(bfloat16, 0x7FC0)),
    "float16": (_wide_float16, _narrow(float16, 0x7E00)),
}


# The program


def program(dtype: str) -> ir.Module:
    """The kernel in LLVM's language."""
    module = ir.Module(ENTRY)
    b, (pointer,) = function(module, ENTRY, [I64.as_pointer()])
    fields = [b.load(b.gep(pointer, [I64(i)])) for i in range(len(_Job._fields))]
    job = _Job(*fields)
    stored = np.dtype(np.uint16 if dtype in _HALVES else dtype)
    widened, narrowed = _HALVES.get(dtype, (lambda x: x, lambda x: x))
    real = np.float64 if dtype == "float64" else np.float32
    scale = splat(b, np.float64, b.bitcast(job.scale, scalar_type(np.float64))).astype(real)
    decide = _decisions(b, job)

    def work(source: Any, target: Any, tile: Any) -> None:
        kept: Any
        for lane, kept in enumerate(decide(tile)):
            place = [I64(LANES * lane)]
            here = vector_type(stored).as_pointer()
            given = b.load(b.bitcast(b.gep(source, place), here), align=1)
            value: Any = narrowed(widened(Vector(b, stored, given)) * scale)
            value = np.where(kept, value, value.dtype.type(0))
            b.store(value.value, b.bitcast(b.gep(target, place), here), align=1)

    _tiles(b, job, stored, work)
    b.ret_void()
    return module


def _decisions(b: Any, job: _Job) -> Callable[[Any], list[Vector]]:
    """Tile -> which of its elements are kept, eight vectors."""
    keys = schedule(splat(b, np.uint64, job.k0), splat(b, np.uint64, job.k1))
    step, s2, s3 = (splat(b, np.uint64, x) for x in (job.step, job.s2, job.s3))
    places = constant(b, np.uint64, PLACES)
    threshold = splat(b, _U32, b.trunc(job.threshold, scalar_type(_U32)))
    high, low = threshold >> _U32(16), threshold & _U32(0xFFFF)

    def halves(tile: Any, upper: Vector) -> list[Any]:
        blocks = splat(b, np.uint64, b.mul(tile, I64(LANES))) + places
        words = [packed(c) for c in rounds((blocks, step, s2, upper), keys)]
        return [w & _U32(0xFFFF) for w in words] + [w >> _U32(16) for w in words]

    def decide(tile: Any) -> list[Vector]:
        found = halves(tile, s3)
        kept, tied = [x < high for x in found], [x == high for x in found]
        some = tied[0]
        for other in tied[1:]:
            some = some | other

        def settled() -> list[Any]:
            lower = halves(tile, s3 | np.uint64(LOW_WORDS))
            return [k | (t & (x < low)) for k, t, x in zip(kept, tied, lower, strict=True)]

        return _rarely(b, some, settled, kept)

    return decide


def _rarely(
    b: Any, condition: Vector, exception: Callable[[], list[Vector]], usual: list[Vector]
) -> list[Vector]:
    """The exceptions if the condition holds in any lane; else their instructions are skipped."""
    flags = b.bitcast(condition.value, ir.IntType(LANES))
    before, inside, after = b.block, b.append_basic_block(), b.append_basic_block()
    b.cbranch(b.icmp_unsigned("!=", flags, flags.type(0)), inside, after)
    b.position_at_end(inside)
    other = exception()
    inside = b.block
    b.branch(after)
    b.position_at_end(after)
    chosen = []
    for x, y in zip(usual, other, strict=True):
        phi = b.phi(x.value.type)
        phi.add_incoming(x.value, before)
        phi.add_incoming(y.value, inside)
        chosen.append(x.new(x.dtype, phi))
    return chosen


def _tiles(b: Any, job: _Job, stored: Any, work: Callable[[Any, Any, Any], None]) -> None:
    """Whole tiles where they lie; the last, if it is not whole, by way of the stack."""
    number = scalar_type(stored)
    here = number.as_pointer()
    spare = b.alloca(number, TILE)
    spare.align = 64
    source, target = b.inttoptr(job.source, here), b.inttoptr(job.target, here)
    tile = Loop(b, b.lshr(job.first, I64(7)), b.lshr(b.add(job.last, I64(TILE - 1)), I64(7)))
    at = b.mul(tile.index, I64(TILE))
    count, offset = b.sub(job.last, at), b.sub(at, job.first)
    whole = b.icmp_signed(">=", count, I64(TILE))
    loose = b.select(whole, I64(0), count)
    read, written = b.gep(source, [offset]), b.gep(target, [offset])
    _copy(b, read, spare, loose)
    work(b.select(whole, read, spare), b.select(whole, written, spare), tile.index)
    _copy(b, spare, written, loose)
    tile.close()


def _copy(b: Any, source: Any, target: Any, count: Any) -> None:
    element = Loop(b, I64(0), count)
    number = b.load(b.gep(source, [element.index]))
    b.store(number, b.gep(target, [element.index]))
    element.close()
