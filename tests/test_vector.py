"""`_rng.vector`: what numpy code becomes machine code, against numpy itself, bit for bit."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from llvmlite import ir

from fanin._rng.machine import function, load
from fanin._rng.vector import I64, LANES, Vector, constant, splat, vector_type

DTYPES = [np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]
INTEGERS, FLOATS = DTYPES[:4], DTYPES[4:]


def compiled(work, *arrays):
    """``work`` of vectors, run on arrays of LANES numbers each."""
    module = ir.Module("test")
    b, pointers = function(module, "run", [I64.as_pointer()] * (len(arrays) + 1))
    given = [
        Vector(b, a.dtype, b.load(b.bitcast(p, vector_type(a.dtype).as_pointer()), align=8))
        for p, a in zip(pointers[1:], arrays, strict=True)
    ]
    found = work(*given)
    if found.dtype == np.bool_:
        found = np.where(found, constant(b, np.uint32, 1), np.uint32(0))
    b.store(found.value, b.bitcast(pointers[0], found.value.type.as_pointer()), align=8)
    b.ret_void()
    code = load(module, "run")
    out = np.empty(LANES, found.dtype)
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(arrays) + 1))(code.address)
    run(out.ctypes.data, *(a.ctypes.data for a in arrays))
    return out


def numbers(dtype, seed=0):
    """Of every size, of both signs where there are two, none of them zero."""
    pick = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (pick.standard_normal(LANES) * 10.0 ** pick.integers(-12, 12, LANES)).astype(dtype)
    bits = pick.integers(1, 2**63, LANES, dtype=np.uint64) >> pick.integers(0, 40, LANES, dtype=np.uint64)  # fmt: skip
    found = (bits * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)).astype(np.uint64)
    return (
        found.view(np.int64).astype(dtype) if np.dtype(dtype).kind == "i" else found.astype(dtype)
    )


def check(work, *arrays):
    with np.errstate(all="ignore"):
        expected = work(*arrays)
    found = compiled(work, *arrays)
    if expected.dtype == np.bool_:
        found = found.astype(np.bool_)
    assert found.dtype == expected.dtype
    assert np.array_equal(found.view(np.uint8), expected.view(np.uint8))


ANY = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "multiply": lambda x, y: x * y,
    "equal": lambda x, y: x == y,
    "not equal": lambda x, y: x != y,
    "less": lambda x, y: x < y,
    "at most": lambda x, y: x <= y,
    "more": lambda x, y: x > y,
    "at least": lambda x, y: x >= y,
    "where": lambda x, y: np.where(x < y, x, y),
    "minimum": np.minimum,
    "maximum": np.maximum,
    "negative": lambda x, _: -x,
}
OF_INTEGERS = {
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "not": lambda x, _: ~x,
    "left": lambda x, _: x << x.dtype.type(5),
    "right": lambda x, _: x >> x.dtype.type(5),
}
OF_FLOATS = {
    "divide": lambda x, y: x / y,
    "root": lambda x, _: np.sqrt(np.abs(x)),
    "python's numbers": lambda x, _: 0.1 - x * 3,
    "from the left": lambda x, _: x.dtype.type(2.5) * x - 1.0 / x,
    "like": lambda x, _: x + np.full_like(x, 0.1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("work", ANY.values(), ids=ANY)
def test_operations(work, dtype):
    x, y = numbers(dtype, 1), numbers(dtype, 2)
    y[::3] = x[::3]
    check(work, x, y)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("work", OF_INTEGERS.values(), ids=OF_INTEGERS)
def test_operations_on_integers(work, dtype):
    check(work, numbers(dtype, 1), numbers(dtype, 2))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("work", OF_FLOATS.values(), ids=OF_FLOATS)
def test_operations_on_floats(work, dtype):
    check(work, numbers(dtype, 1), numbers(dtype, 2))


# What a float cannot be as an integer is undefined in numpy, too; kernels turn none into one.
CONVERSIONS = [(a, b) for a in DTYPES for b in DTYPES if a not in FLOATS or b in FLOATS]


@pytest.mark.parametrize(("dtype", "to"), CONVERSIONS)
def test_conversions(dtype, to):
    check(lambda x: x.astype(to), numbers(dtype))


@pytest.mark.parametrize(("dtype", "to"), [(a, b) for a in DTYPES for b in DTYPES if np.dtype(a).itemsize == np.dtype(b).itemsize])  # fmt: skip
def test_views_are_the_bits(dtype, to):
    check(lambda x: x.view(to), numbers(dtype))


def test_narrow_integers_keep_their_lower_bits():
    check(lambda x: (x >> np.uint32(3)).astype(np.uint16), numbers(np.uint32))


def test_a_conversion_rounds_to_nearest_even():
    x = np.float64(1) + 2.0**-24 * np.arange(LANES)
    check(lambda x: x.astype(np.float32), x)


def test_a_sum_is_not_fused_with_a_product():
    x = np.float32(1) + np.float32(2.0**-12) * np.arange(LANES, dtype=np.float32)
    check(lambda x: x * x - np.float32(1), x)


@pytest.mark.parametrize("lanes", [[], [3], range(LANES)])
def test_exceptions(lanes):
    """Computed where one lane needs them, and chosen lane by lane."""
    x = np.ones(LANES)
    x[list(lanes)] = 7.0
    found = compiled(lambda x: (x > 5.0).rarely(lambda: x * 10.0, x + 1.0) - 0.5, x)
    assert np.array_equal(found, np.where(x > 5, x * 10, x + 1) - 0.5)


def test_one_number_in_every_lane():
    found = compiled(lambda x: x + splat(x.builder, np.float64, x.builder.extract_element(x.value, I64(2))), numbers(np.float64))  # fmt: skip
    assert np.array_equal(found, numbers(np.float64) + numbers(np.float64)[2])


@pytest.mark.parametrize("work", [np.sin, np.cumsum, lambda x: np.add(x, x, out=x), lambda x: np.add.reduce(x)])  # fmt: skip
def test_what_no_instruction_does_is_refused(work):
    with pytest.raises(TypeError):
        compiled(work, numbers(np.float32))
