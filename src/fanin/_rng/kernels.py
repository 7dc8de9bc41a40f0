"""The CPU kernels: words drawn and turned into numbers where the tensor lies, by numba.

A kernel is made of a transform (which law) and a store (which dtype). It fills runs of columns in
rows of memory given by address, 1024 columns at a time, so that what it works on stays in the first
cache. Importing this file imports numba: `backend` does so once there is much to draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core.registry import cpu_target
from numba.extending import intrinsic, register_jitable

from . import kernel_math as m
from .backend import NUMBERS, RUN
from .kernel_math import F32, F64, U32, U64

Kernel = Callable[[tuple[int, ...], tuple[int, ...], tuple[float, ...]], None]

_SIGNATURE = types.void(
    types.UniTuple(types.int64, 6),
    types.UniTuple(types.int64, 4),
    types.UniTuple(types.float64, NUMBERS),
)
_transform = register_jitable(nogil=True, error_model="numpy", forceinline=True)


@intrinsic
def _as_pointer(_: Any, address: Any) -> Any:  # noqa: ARG001 - numba names what it passes
    def codegen(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


_pointer: Any = _as_pointer


# Transforms: words, and low words where the law needs them, -> values of whole tiles.


@_transform
def _uniform_32(words: Any, _: Any, values: Any, numbers: Any) -> None:
    m.wide()
    half, middle, least, greatest = (
        F32(numbers[0]),
        F32(numbers[1]),
        F32(numbers[2]),
        F32(numbers[3]),
    )
    for i in range(values.size):
        values[i] = m.clip(m.signed_uniform_32(words[i]) * half + middle, least, greatest)


@_transform
def _uniform_64(words: Any, low: Any, values: Any, numbers: Any) -> None:
    m.wide()
    half, middle, least, greatest = numbers[0], numbers[1], numbers[2], numbers[3]
    for i in range(values.size):
        value = m.signed_uniform_64(words[i], low[i]) * half + middle
        values[i] = m.clip(value, least, greatest)


@_transform
def _normal_32(words: Any, _: Any, values: Any, numbers: Any) -> None:
    m.wide()
    std, mean = F32(numbers[0]), F32(numbers[1])
    for pair in range(values.size // 32):
        x, z = words[32 * pair : 32 * pair + 32], values[32 * pair : 32 * pair + 32]
        for j in range(16):
            r = m.radius_32(x[j])
            a, b = m.direction_32(x[16 + j])
            z[j], z[16 + j] = r * a * std + mean, r * b * std + mean


@_transform
def _normal_64(words: Any, low: Any, values: Any, numbers: Any) -> None:
    m.wide()
    std, mean = numbers[0], numbers[1]
    for pair in range(values.size // 32):
        x, y = words[32 * pair : 32 * pair + 32], low[32 * pair : 32 * pair + 32]
        z = values[32 * pair : 32 * pair + 32]
        for j in range(16):
            r = m.radius_64(x[j], y[j])
            a, b = m.direction_64(x[16 + j], y[16 + j])
            z[j], z[16 + j] = r * a * std + mean, r * b * std + mean


@_transform
def _truncated_2(words: Any, _: Any, values: Any, numbers: Any) -> None:
    m.wide()
    inside, outside, sigma, mean = numbers[0], numbers[1], F32(numbers[2]), F32(numbers[3])
    least, greatest = F32(numbers[4]), F32(numbers[5])
    for i in range(values.size):
        z = m.truncated_2(words[i], inside, outside)
        values[i] = m.clip(z * sigma + mean, least, greatest)


@_transform
def _truncated_3(words: Any, _: Any, values: Any, numbers: Any) -> None:
    m.wide()
    inside, outside, sigma, mean = numbers[0], numbers[1], F32(numbers[2]), F32(numbers[3])
    least, greatest = F32(numbers[4]), F32(numbers[5])
    for i in range(values.size):
        z = m.truncated_3(words[i], inside, outside)
        values[i] = m.clip(z * sigma + mean, least, greatest)


@_transform
def _window_32(words: Any, low: Any, values: Any, numbers: Any) -> None:
    m.wide()
    below, inside, above, a, b, sigma, mean, bottom, top, least_64, greatest_64 = numbers
    least, greatest = F32(least_64), F32(greatest_64)
    for i in range(values.size):
        z = m.clip(m.window(words[i], low[i], below, inside, above), a, b)
        value = F32(m.clip(z * sigma + mean, bottom, top))
        values[i] = m.clip(value, least, greatest)


@_transform
def _window_64(words: Any, low: Any, values: Any, numbers: Any) -> None:
    m.wide()
    below, inside, above, a, b, sigma, mean, bottom, top, least, greatest = numbers
    for i in range(values.size):
        z = m.clip(m.window(words[i], low[i], below, inside, above), a, b)
        values[i] = m.clip(m.clip(z * sigma + mean, bottom, top), least, greatest)


# Stores: 32-bit values -> the tensor's 16-bit numbers.


@_transform
def _bfloat16(values: Any, out: Any) -> None:
    m.wide()
    for i in range(out.size):
        out[i] = m.to_bfloat16(values[i])


@_transform
def _float16(values: Any, out: Any) -> None:
    m.wide()
    for i in range(out.size):
        out[i] = m.to_float16(values[i])


_TRANSFORMS = {
    "uniform_32": _uniform_32,
    "uniform_64": _uniform_64,
    "normal_32": _normal_32,
    "normal_64": _normal_64,
    "truncated_2": _truncated_2,
    "truncated_3": _truncated_3,
    "window_32": _window_32,
    "window_64": _window_64,
}
_STORES = {"bfloat16": _bfloat16, "float16": _float16}
_TWO_WORDS = {"uniform_64", "normal_64", "window_32", "window_64"}


@cache
def kernel(law: str, dtype: str) -> Kernel:
    """The compiled function that fills rows of memory, from numba's cache on disk if it is there.

    Args:
        law: a key of the transforms.
        dtype: "float32", "float64", or a key of the stores.

    Returns:
        (place, the stream's words, the law's numbers) -> None; place is the address of the first
        element, the bytes from row to row, how many rows, the first one's index, the first column's
        and the one past the last. Columns lie side by side.
    """
    make = _narrowing if dtype in _STORES else _direct
    draw = make(law, dtype)
    # numba keeps a file for each name: with the sources, the processor and numba itself in it, no
    # other code is ever loaded, and no two processes write different things to one file.
    draw.__qualname__ = draw.__name__ = f"{law}_{dtype}_{_fingerprint()}"
    try:
        return njit(_SIGNATURE, cache=True, nogil=True, error_model="numpy")(draw)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        # There is no directory to write to.
        return njit(_SIGNATURE, nogil=True, error_model="numpy")(draw)


@m.jit
def _words(words: Any, low: Any, two: Any, at: Any, key: Any) -> Any:
    """Draw the words of the next RUN columns; (columns to skip, columns to keep, whole tiles)."""
    row, column, last = at
    tile, skip = column >> 6, column & 63
    count = min(RUN - skip, last - column)
    tiles = (skip + count + 63) >> 6
    k0, k1, s2, s3 = U64(key[0]), U64(key[1]), U64(key[2]), U64(key[3])
    m.philox(words, tile, tiles, (row, k0, k1, s2, s3))
    if two:
        m.philox(low, tile, tiles, (row, k0, k1, s2, s3 | U64(0x80000000)))
    return skip, count, tiles


def _direct(law: str, dtype: str) -> Callable:
    """A kernel that computes where the tensor lies, but for runs that end within a tile."""
    transform, two = _TRANSFORMS[law], law in _TWO_WORDS
    real = F64 if dtype == "float64" else F32

    def draw(place: Any, key: Any, numbers: Any) -> None:
        address, stride, rows, first_row, first, last = place
        words, low, spare = np.empty(RUN, U32), np.empty(RUN, U32), np.empty(RUN, real)
        for r in range(rows):
            line = carray(_pointer(address + r * stride), last - first, real)
            row, column = U64(first_row + r), first
            while column < last:
                skip, count, tiles = _words(words, low, two, (row, column, last), key)
                at, whole = column - first, count == 64 * tiles
                values = line[at : at + count] if whole else spare[: 64 * tiles]
                transform(words, low, values, numbers)
                if not whole:
                    # A loop: numba takes seconds to compile the assignment of a slice.
                    for i in range(count):
                        line[at + i] = spare[skip + i]
                column += count

    return draw


def _narrowing(law: str, dtype: str) -> Callable:
    """A kernel that computes in 32 bits and rounds into the tensor."""
    transform, store, two = _TRANSFORMS[law], _STORES[dtype], law in _TWO_WORDS

    def draw(place: Any, key: Any, numbers: Any) -> None:
        address, stride, rows, first_row, first, last = place
        words, low, values = np.empty(RUN, U32), np.empty(RUN, U32), np.empty(RUN, F32)
        for r in range(rows):
            line = carray(_pointer(address + r * stride), last - first, np.uint16)
            row, column = U64(first_row + r), first
            while column < last:
                skip, count, tiles = _words(words, low, two, (row, column, last), key)
                transform(words, low, values[: 64 * tiles], numbers)
                at = column - first
                store(values[skip : skip + count], line[at : at + count])
                column += count

    return draw


@cache
def _fingerprint() -> str:
    here = Path(__file__).parent
    parts = [
        (here / f"{name}.py").read_bytes() for name in ("kernels", "kernel_math", "coefficients")
    ]
    text = repr((numba.__version__, cpu_target.target_context.codegen().magic_tuple())).encode()
    return hashlib.blake2b(b"".join([*parts, text]), digest_size=8).hexdigest()
