"""The CPU kernels: the specification's own functions in a loop over tiles, compiled by LLVM.

A kernel is made of a law, which turns words into numbers, and a dtype. It fills a grid of memory
row by row, a tile of 64 columns at a time: four vectors of words, four vectors of numbers, stored.
What is written once for numpy, in `philox`, `single` and `double`, is compiled here by calling it on
vectors. A kernel takes a tenth of a second to make, so none is kept on disk. Importing this file
imports llvmlite: `backend` does so once there is much to draw.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from . import double, single
from .backend import NUMBERS, ROUNDED, Write
from .coefficients import QUANTILE_2, QUANTILE_3
from .machine import Loop, Machine, function, load
from .philox import LOW_WORDS, rounds, schedule
from .vector import I64, LANES, Vector, constant, scalar_type, splat, vector_type

TILE = 4 * LANES
Vectors = Sequence[Any]  # `Vector`s, which the specification takes for arrays
Transform = Callable[[Vectors, Vectors], list[Any]]  # words, low words -> values

ENTRY = "fill"  # the name of the program's function


# Laws: numbers -> (words, low words) -> values, four vectors each.


def _normal_32(numbers: Vectors) -> Transform:
    std, mean = _narrow(numbers[:2])

    def transform(words: Vectors, _: Vectors) -> list[Any]:
        a, b, c, d = words
        return [z * std + mean for pair in ((a, b), (c, d)) for z in single.box_muller(*pair)]

    return transform


def _normal_64(numbers: Vectors) -> Transform:
    std, mean = numbers[:2]

    def transform(words: Vectors, low: Vectors) -> list[Any]:
        a, b, c, d = zip(words, low, strict=True)
        return [z * std + mean for pair in ((a, b), (c, d)) for z in double.box_muller(*pair)]

    return transform


def _uniform_32(numbers: Vectors) -> Transform:
    half, middle, least, greatest = _narrow(numbers[:4])

    def transform(words: Vectors, _: Vectors) -> list[Any]:
        return [
            single.clip(single.signed_uniform(w) * half + middle, least, greatest) for w in words
        ]

    return transform


def _uniform_64(numbers: Vectors) -> Transform:
    half, middle, least, greatest = numbers[:4]

    def transform(words: Vectors, low: Vectors) -> list[Any]:
        units = [double.signed_uniform(pair) for pair in zip(words, low, strict=True)]
        return [single.clip(unit * half + middle, least, greatest) for unit in units]

    return transform


def _truncated(table: single.Rational) -> Callable[[Vectors], Transform]:
    def law(numbers: Vectors) -> Transform:
        (scale,) = _narrow([numbers[0] * 2.0**-31])
        outside, sigma, mean, least, greatest = _narrow(numbers[1:6])

        def transform(words: Vectors, _: Vectors) -> list[Any]:
            z = [single.quantile(word, table, scale, outside) for word in words]
            return [single.clip(each * sigma + mean, least, greatest) for each in z]

        return transform

    return law


def _window(real: type) -> Callable[[Vectors], Transform]:
    def law(numbers: Vectors) -> Transform:
        below, inside, above, a, b, sigma, mean, low_end, high_end = numbers[:9]
        least, greatest = (x.astype(real) for x in numbers[9:])

        def value(pair: Any) -> Any:
            z = single.clip(double.between(pair, below, inside, above), a, b)
            within = single.clip(z * sigma + mean, low_end, high_end)
            return single.clip(within.astype(real), least, greatest)

        return lambda words, low: [value(pair) for pair in zip(words, low, strict=True)]

    return law


def _narrow(numbers: Vectors) -> list[Any]:
    return [number.astype(np.float32) for number in numbers]


LAWS: dict[str, Callable[[Vectors], Transform]] = {
    "uniform_32": _uniform_32,
    "uniform_64": _uniform_64,
    "normal_32": _normal_32,
    "normal_64": _normal_64,
    "truncated_2": _truncated(QUANTILE_2),
    "truncated_3": _truncated(QUANTILE_3),
    "window_32": _window(np.float32),
    "window_64": _window(np.float64),
}
_TWO_WORDS = {"uniform_64", "normal_64", "window_32", "window_64"}
_STORED = {"bfloat16": np.uint16, "float16": np.uint16}


# Compiled

_engines: list[Any] = []  # they own the code that is run


def kernel(law: str, dtype: str, machine: Machine | None = None) -> Write:
    """Compile the function that fills memory; it holds no lock of Python's while it runs.

    Args:
        law: "normal_32" and the like, as `laws` names them.
        dtype: "float32", "float64", "bfloat16" or "float16".
        machine: what to compile for; None for this one.

    Raises:
        OSError: this system lets no process write code for itself.
    """
    code = load(program(law, dtype), ENTRY, machine)
    _engines.append(code.engine)
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p)(code.address)


# The program


class _Job(NamedTuple):
    """The fields of `backend.Job`, loaded."""

    address: Any
    row_stride: Any
    step: Any
    run: Any
    run_step: Any
    position: Any
    rows: Any
    first_row: Any
    first: Any
    last: Any
    k0: Any
    k1: Any
    s2: Any
    s3: Any


def program(law: str, dtype: str) -> ir.Module:
    """The kernel in LLVM's language."""
    module = ir.Module(law)
    b, (pointer,) = function(module, ENTRY, [I64.as_pointer()])
    job, numbers = _load_job(b, pointer)
    tile = _tile(b, job, LAWS[law](numbers), ROUNDED.get(dtype), two=law in _TWO_WORDS)
    stored = np.dtype(_STORED.get(dtype, dtype))
    spare = b.alloca(scalar_type(stored), TILE)
    spare.align = 64
    row = Loop(b, I64(0), job.rows)
    address = b.add(job.address, b.mul(row.index, job.row_stride))
    number = b.add(job.first_row, row.index)
    _row(b, job, address, lambda at: tile(number, at), _Spare(spare, stored.itemsize))
    row.close()
    b.ret_void()
    return module


def _load_job(b: Any, pointer: Any) -> tuple[_Job, list[Vector]]:
    fields = [b.load(b.gep(pointer, [I64(i)])) for i in range(len(_Job._fields))]
    real = scalar_type(np.float64)
    behind = b.bitcast(b.gep(pointer, [I64(len(fields))]), real.as_pointer())
    numbers = [b.load(b.gep(behind, [I64(i)])) for i in range(NUMBERS)]
    return _Job(*fields), [splat(b, np.float64, number) for number in numbers]


def _tile(
    b: Any, job: _Job, transform: Transform, rounded: Callable | None, *, two: bool
) -> Callable[[Any, Any], list[Vector]]:
    """(row, tile) -> the values of its four lanes."""
    keys = schedule(splat(b, np.uint64, job.k0), splat(b, np.uint64, job.k1))
    s2, s3 = splat(b, np.uint64, job.s2), splat(b, np.uint64, job.s3)
    places = constant(b, np.uint64, PLACES)

    def values(row: Any, tile: Any) -> list[Any]:
        blocks = splat(b, np.uint64, b.mul(tile, I64(LANES))) + places
        counter = blocks, splat(b, np.uint64, row), s2
        words = [packed(c) for c in rounds((*counter, s3), keys)]
        low = rounds((*counter, s3 | np.uint64(LOW_WORDS)), keys) if two else ()
        found = transform(words, [packed(c) for c in low])
        return [rounded(each) for each in found] if rounded else found

    return values


# Blocks are numbered so that the lower halves of two registers of 64-bit integers, taken two by two
# in turn, are in order: one shuffle, within 128 bits, on every processor.
PLACES = [4 * (p // 2 % (LANES // 4)) + p % 2 + 2 * (p // (LANES // 2)) for p in range(LANES)]


def packed(wide: Vector) -> Vector:
    """The lower halves, in the order of their blocks."""
    b = wide.builder
    halves = b.bitcast(wide.value, ir.VectorType(scalar_type(np.uint32), 2 * LANES))
    at = [scalar_type(np.int32)(2 * PLACES.index(j)) for j in range(LANES)]
    order = ir.Constant(vector_type(np.int32), at)
    nothing = ir.Constant(halves.type, ir.Undefined)
    return wide.new(np.uint32, b.shuffle_vector(halves, nothing, order))


class _Spare(NamedTuple):
    """A tile of memory on the stack, and the bytes of one of its numbers."""

    pointer: Any
    itemsize: int


def _row(b: Any, job: _Job, address: Any, values: Callable[[Any], Vectors], spare: _Spare) -> None:
    """Fill the columns of a row: whole tiles where they lie, other ones by way of ``spare``."""
    here = spare.pointer.type
    width = b.sub(job.last, job.first)
    in_one_run = b.icmp_signed(">=", job.run, b.add(job.position, width))
    dense = b.and_(in_one_run, b.icmp_signed("==", job.step, I64(spare.itemsize)))
    end = b.lshr(b.add(job.last, I64(TILE - 1)), I64(6))
    start = b.add(address, b.mul(job.position, job.step))
    tile = Loop(b, b.lshr(job.first, I64(6)), end, start, job.position)
    at, position = tile.carried
    base = b.mul(tile.index, I64(TILE))
    low = _greater(b, b.sub(job.first, base), I64(0))
    high = _lesser(b, b.sub(job.last, base), I64(TILE))
    whole = b.and_(dense, b.icmp_signed("==", b.sub(high, low), I64(TILE)))
    target = b.select(whole, b.inttoptr(at, here), spare.pointer)
    for lane, vector in enumerate(values(tile.index)):
        place = b.gep(target, [I64(LANES * lane)])
        b.store(vector.value, b.bitcast(place, vector.value.type.as_pointer()), align=1)

    element = Loop(b, b.select(whole, high, low), high, at, position)
    to, position = element.carried
    b.store(b.load(b.gep(spare.pointer, [element.index])), b.inttoptr(to, here), align=1)
    following = b.add(position, I64(1))
    ends = b.icmp_signed("==", following, job.run)
    over = b.sub(job.run_step, b.mul(position, job.step))
    element.close(b.add(to, b.select(ends, over, job.step)), b.select(ends, I64(0), following))

    passed = b.add(at, I64(TILE * spare.itemsize))
    tile.close(b.select(whole, passed, to), position)


def _greater(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.icmp_signed(">", x, y), x, y)


def _lesser(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.icmp_signed("<", x, y), x, y)
