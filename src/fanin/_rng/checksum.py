"""A 64-bit number of a tensor's bits that adds up over its parts: equal bits, equal sums.

The sum, modulo 2^64, over words of at most 32 bits of a mix of the word and its place: an element
is a word, or several that are counted one after another. The mix is one to one in the word, so that
a single changed one always changes the sum; other changes escape with a probability of about 2^-64.
Words may be summed in any order and on any number of machines.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from struct import Struct
from typing import Any

import numpy as np

from .backend import Index, is_portable, runs
from .philox import Array

STEP = 0x9E3779B97F4A7C15  # 2^64 / the golden ratio, odd
FACTORS = (
    0x85EBCA6B,
    0xBF58476D1CE4E5B9,
)  # odd; the first of 32 bits, so that its products are whole
PIECE = 2**15  # elements that numpy mixes at a time
MASK = 2**64 - 1
JOB = Struct("=7q")

Sum = Callable[[int, int, int, int, int, int], int]


def mixed(bits: Any, place: Any) -> Any:
    """64 bits of a word and its place, ``(index + 1) STEP``; unsigned, modulo 2^64.

    >>> [f"{int(z):016x}" for z in mixed(np.arange(2, dtype=np.uint64), np.uint64(STEP))]
    ['46df3b88e06ffd1e', 'cbbfa56175f587b4']

    Source: multiply and shift, as in the finalisers of MurmurHash3 and SplitMix64.
    """
    z = (bits ^ (place >> np.uint64(32))) * np.uint64(FACTORS[0])
    z = (z ^ place) * np.uint64(FACTORS[1])
    return z ^ (z >> np.uint64(32))


def checksum(bits: Array, rows: Index, columns: Index, width: int) -> int:
    """The sum over a grid of elements.

    Args:
        bits: R x C words, unsigned integers of 1, 2 or 4 bytes, each row's side by side.
        rows: R indices along dim 0 of the whole tensor.
        columns: C flat indices of words in its other dims.
        width: words of a row of the whole tensor.
    """
    if not bits.size:
        return 0
    size = bits.itemsize
    add = _sum(size)
    total = 0
    for i, row, height in runs(rows):
        for j, column, count in runs(columns):
            first = row * width + column
            if add is not None:
                address = bits.ctypes.data + i * bits.strides[0] + j * size
                total += add(address, bits.strides[0], height, count, first, width)
            else:
                total += _portable(bits[i : i + height, j : j + count], first, width)
    return total & MASK


def _portable(bits: Array, first: int, width: int) -> int:
    total, count = 0, bits.shape[1]
    high, wide = max(1, PIECE // count), min(count, PIECE)
    for r in range(0, bits.shape[0], high):
        for c in range(0, count, wide):
            block = bits[r : r + high, c : c + wide]
            rows = np.arange(r, r + block.shape[0], dtype=np.uint64)[:, None]
            columns = np.arange(c, c + block.shape[1], dtype=np.uint64)
            with np.errstate(over="ignore"):
                index = np.uint64(first + 1) + rows * np.uint64(width) + columns
                place = index * np.uint64(STEP)
                total += int(mixed(block.astype(np.uint64), place).sum(dtype=np.uint64))
    return total


@cache
def _kernel(size: int) -> Sum | None:
    try:
        from .checksum_kernel import kernel  # noqa: PLC0415 - it imports llvmlite

        made = kernel(size)
    except (ImportError, OSError, RuntimeError):
        return None
    rows = np.arange(3 * 41, dtype=np.uint64).reshape(3, 41).astype(f"u{size}") * 3
    found = made(rows.ctypes.data, rows.strides[0], 3, 41, 5, 77) & MASK
    return made if found == _portable(rows, 5, 77) & MASK else None


def _sum(size: int) -> Sum | None:
    return None if is_portable() else _kernel(size)
