"""`Reflectors.columns`, compiled: sixteen columns of the product at a time, with the same bits.

The pass over a reflector's coordinates that takes its share from the columns also sums the inner
products for the next reflector, so that each column is read and written once a reflector.
Importing this file imports llvmlite.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from .machine import Code, Loop, Machine, function, load
from .parts import Parts, conjugate, parts, product
from .philox import Array
from .reflectors import Reflectors, each
from .vector import I64, LANES, Vector, splat, vector_type

_ENTRY = "columns"
_LINE = 64  # bytes: a vector that lies across two lines of the cache takes twice as long


def columns(
    reflectors: Reflectors, which: Array, threads: int, machine: Machine | None = None
) -> Array:
    """As `Reflectors.columns`.

    Args:
        reflectors: their product is what is wanted.
        which: C column numbers, ascending.
        threads: how many to compute with.
        machine: what to compile for; None for this one.

    Raises:
        OSError: this system lets no process write code for itself.
    """
    m, dtype = reflectors.size, reflectors.phases.dtype
    width = dtype.itemsize // 8
    run, _ = _kernel(width, machine)
    vectors = np.concatenate([_addresses(panel) for panel in reflectors.panels])
    at, tau = _address(vectors), _address(reflectors.tau)
    out = np.empty((which.size, m), dtype)

    def sixteen(first: int) -> None:
        mine = which[first : first + LANES]
        memory = _aligned(m + 1, width)
        y, inner = memory[:m], memory[m]
        for p, phase in enumerate(parts(reflectors.phases[mine])):
            y[mine, p, np.arange(mine.size)] = phase
            # The last reflector begins with a 1, where its column does; the others have not begun.
            inner[p, : mine.size] = phase * (mine == mine[-1])
        run(_address(y), _address(inner), at, tau, m, int(mine[-1]))
        for p, part in enumerate(parts(out[first : first + mine.size])):
            part[...] = y[:, p, : mine.size].T

    each(sixteen, range(0, which.size, LANES), threads)
    return out


def _address(a: Array) -> int:
    return a.__array_interface__["data"][0]  # a tenth of the time of a.ctypes.data


def _addresses(panel: Array) -> Array:
    """Where the vectors of a panel begin, each a row and a column after the one before."""
    row, number = panel.strides
    return _address(panel) + (row + number) * np.arange(len(panel))


def _aligned(rows: int, width: int) -> Array:
    """Zeros for ``rows`` vectors of LANES doubles, of each part one."""
    count = rows * width * LANES
    memory = np.zeros(count + _LINE // 8)
    skipped = -_address(memory) % _LINE // 8
    return memory[skipped : skipped + count].reshape(rows, width, LANES)


@cache
def _kernel(width: int, machine: Machine | None) -> tuple[Callable[..., None], Code]:
    """(addresses of y, inner, vectors and tau; m; the last reflector) -> None, and its code."""
    code = load(_program(width), _ENTRY, machine)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 6)(code.address), code


def _program(width: int) -> ir.Module:
    """LLVM's program: `Reflectors.columns` for LANES columns at once."""
    module = ir.Module(_ENTRY)
    b, (y, inner, vectors, tau, m, last) = function(module, _ENTRY, [I64] * 6)
    y, inner = (_Memory(b, at, vector_type(np.float64), width) for at in (y, inner))
    number = ir.DoubleType()
    each_k = Loop(b, I64(0), b.add(last, I64(1)), *(p.value for p in inner.load(I64(0))))
    k = b.sub(last, each_k.index)
    following = b.select(b.icmp_signed(">", k, I64(0)), b.sub(k, I64(1)), k)
    v, u = (_Memory(b, _element(b, vectors, I64, at), number, width) for at in (k, following))
    scale = splat(b, np.float64, _element(b, tau, number, k))
    share = [scale * Vector(b, np.float64, p) for p in each_k.carried]
    first = product(conjugate(u.spread(I64(0))), y.load(following))

    each_row = Loop(b, k, m, *(p.value for p in first))
    here = y.load(each_row.index)
    gone = product(v.spread(b.sub(each_row.index, k)), share)
    rest = [a - p for a, p in zip(here, gone, strict=True)]
    y.store(each_row.index, rest)
    terms = product(conjugate(u.spread(b.sub(each_row.index, following))), rest)
    sums = [Vector(b, np.float64, p) for p in each_row.carried]
    each_row.close(*((s + t).value for s, t in zip(sums, terms, strict=True)))
    each_k.close(*each_row.carried)
    b.ret_void()
    return module


class _Memory:
    """Real or complex numbers, or vectors of them, side by side; of each its parts in turn."""

    def __init__(self, b: Any, address: Any, kind: Any, width: int) -> None:
        self.b, self.width = b, width
        self.pointer = b.inttoptr(address, kind.as_pointer())

    def _place(self, index: Any, part: int) -> Any:
        b = self.b
        return b.gep(self.pointer, [b.add(b.mul(index, I64(self.width)), I64(part))])

    def load(self, index: Any) -> Parts:
        """Of vectors, one."""
        places = [self._place(index, part) for part in range(self.width)]
        return [Vector(self.b, np.float64, self.b.load(at, align=_LINE)) for at in places]

    def store(self, index: Any, value: Parts) -> None:
        """Of vectors, one."""
        for part in range(self.width):
            self.b.store(value[part].value, self._place(index, part), align=_LINE)

    def spread(self, index: Any) -> Parts:
        """Of numbers, one, in every lane."""
        places = [self._place(index, part) for part in range(self.width)]
        return [splat(self.b, np.float64, self.b.load(at)) for at in places]


def _element(b: Any, address: Any, kind: Any, index: Any) -> Any:
    return b.load(b.gep(b.inttoptr(address, kind.as_pointer()), [index]))
