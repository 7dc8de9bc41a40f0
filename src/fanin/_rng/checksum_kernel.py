"""The checksum compiled: the specification's own mix in a loop over sixteen words at a time.

Importing this file imports llvmlite.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from .checksum import JOB, MASK, STEP, mixed
from .machine import Loop, function, load
from .vector import I64, LANES, Vector, constant, scalar_type, splat, vector_type

ENTRY = "checksum"
_engines: list[Any] = []  # they own the code that is run


def kernel(size: int) -> Callable[[int, int, int, int, int, int], int]:
    """The function of (address, bytes from row to row, rows, words a row, first index, width).

    Args:
        size: bytes of a word, 1, 2 or 4.

    Raises:
        OSError: this system lets no process write code for itself.
    """
    code = load(program(size), ENTRY)
    _engines.append(code.engine)
    run = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(code.address)

    def add(*job: int) -> int:
        packed = bytearray(JOB.pack(*job, 0))
        run((ctypes.c_char * len(packed)).from_buffer(packed))
        return JOB.unpack(packed)[-1] & MASK

    return add


def program(size: int) -> ir.Module:
    """The kernel in LLVM's language."""
    module = ir.Module(ENTRY)
    b, (job,) = function(module, ENTRY, [I64.as_pointer()])
    address, stride, rows, count, first, width = (
        b.load(b.gep(job, [I64(i)])) for i in range(JOB.size // 8 - 1)
    )
    kind = ir.IntType(8 * size)
    lanes = constant(b, np.uint64, range(1, LANES + 1))
    step = constant(b, np.uint64, STEP)
    spare = b.alloca(kind, LANES)
    nothing = constant(b, np.uint64, 0).value
    row = Loop(b, I64(0), rows, nothing)
    start = b.add(address, b.mul(row.index, stride))
    begin = b.add(first, b.mul(row.index, width))
    place = (splat(b, np.uint64, begin) + lanes) * step

    def sixteen(pointer: Any, place: Any) -> Any:
        raw = b.load(b.bitcast(pointer, ir.VectorType(kind, LANES).as_pointer()), align=1)
        wide = b.zext(raw, vector_type(np.uint64))
        return mixed(Vector(b, np.uint64, wide), Vector(b, np.uint64, place)).value

    whole = b.lshr(count, I64(4))
    block = Loop(b, I64(0), whole, start, place.value, row.carried[0])
    at, here, total = block.carried
    total = b.add(total, sixteen(b.inttoptr(at, kind.as_pointer()), here))
    further = constant(b, np.uint64, STEP * LANES & MASK).value
    block.close(b.add(at, I64(size * LANES)), b.add(here, further), total)
    at, here, total = block.carried

    rest = b.and_(count, I64(LANES - 1))
    element = Loop(b, I64(0), rest)
    source = b.inttoptr(b.add(at, b.mul(element.index, I64(size))), kind.as_pointer())
    b.store(b.load(source, align=1), b.gep(spare, [element.index]))
    element.close()
    inside = b.icmp_unsigned("<=", lanes.value, splat(b, np.uint64, rest).value)
    total = b.add(total, b.select(inside, sixteen(spare, here), nothing))
    row.close(total)

    result = row.carried[0]
    both = scalar_type(np.uint64)(0)
    for lane in range(LANES):
        both = b.add(both, b.extract_element(result, ir.IntType(32)(lane)))
    b.store(both, b.gep(job, [I64(JOB.size // 8 - 1)]))
    b.ret_void()
    return module
