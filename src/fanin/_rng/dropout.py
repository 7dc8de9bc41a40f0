"""Dropout in memory: ``y = x scale`` where the mask keeps, else 0, by compiled kernels.

As in `backend`, a kernel is made once about a million numbers have been asked of it, and is compared with
the specification, `masks.keep`, before it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from struct import Struct
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from . import masks
from .backend import CALL, LOADING_PAYS, PARTS, SERIAL_BELOW, Write, in_turn, is_portable
from .philox import Array
from .stream import Words

ITEMSIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}  # bytes

SHARED_FROM = 2**18  # elements: below, one thread is done before another has begun

_pack = Struct("=10qd").pack
_asked: dict[str, int] = {}
_loaded: dict[str, tuple[Write, Any] | None] = {}  # with the code that is run
_loading = Lock()


class Mask(NamedTuple):
    """A mask and the factor of what it keeps.

    Args:
        words: of the stream.
        step: which mask of the stream.
        threshold: what decides, as `masks.threshold` gives it.
        scale: the factor.
    """

    words: Words
    step: int
    threshold: int
    scale: float

    def keep(self, first: int, last: int) -> Array:
        """Which of the elements from ``first`` up to ``last`` are kept; the specification."""
        tiles = np.arange(first // masks.TILE, -(-last // masks.TILE), dtype=np.uint64)
        kept = masks.keep(self.words, self.step, tiles, self.threshold).reshape(-1)
        return kept[first % masks.TILE :][: last - first]

    def into(self, source: int, target: int, count: int, dtype: str, *, threads: int) -> bool:
        """Drop from the numbers at one address to another; False where there is no kernel and nothing was done.

        Args:
            source: where ``count`` numbers lie side by side.
            target: where to write; may be the source.
            count: how many.
            dtype: "float32", "float64", "bfloat16" or "float16".
            threads: how many to work with.
        """
        run = _kernel(dtype, count)
        if run is None:
            return False
        if threads == 1 or count < SHARED_FROM:
            run(self.job(source, target, 0, count))
            return True
        size = ITEMSIZES[dtype]

        def part(bounds: tuple[int, int]) -> None:
            first, last = bounds
            run(self.job(source + first * size, target + first * size, first, last))

        in_turn(part, _cut(count, threads), threads)
        return True

    def job(self, source: int, target: int, first: int, last: int) -> bytes:
        """What a kernel is to do: ``first`` is a multiple of a tile."""
        return _pack(
            source, target, first, last, *self.words, self.step, self.threshold, self.scale
        )


def _cut(count: int, threads: int) -> Iterator[tuple[int, int]]:
    """Whole tiles, in parts that several threads can share."""
    size = max(SERIAL_BELOW, count // (PARTS * threads) // masks.TILE * masks.TILE)
    return ((k, min(k + size, count)) for k in range(0, count, size))


def _kernel(dtype: str, count: int) -> Write | None:
    """The kernel, if it has been made or making it pays."""
    if is_portable():
        return None
    if dtype not in _loaded:
        _asked[dtype] = _asked.get(dtype, 0) + count + CALL
        if _asked[dtype] < LOADING_PAYS:
            return None
        with _loading:
            if dtype not in _loaded:
                _loaded[dtype] = _made(dtype)
    found = _loaded[dtype]
    return found[0] if found else None


def _made(dtype: str) -> tuple[Write, Any] | None:
    try:
        from .mask_kernel import kernel  # noqa: PLC0415 - it imports llvmlite
    except (ImportError, OSError):
        return None
    try:
        made = kernel(dtype)
    except (OSError, RuntimeError) as error:
        why = str(error)
    else:
        if _agrees(made[0], dtype):
            return made
        why = "it kept other elements than the specification"
    warnings.warn(
        f"the kernel of dropout for {dtype} does not work here ({why}), so torch drops instead: the "
        "same numbers, more slowly.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _agrees(run: Write, dtype: str) -> bool:
    """Whether a new kernel gives the specification's bits: half of 1027 twos become ones, the others zeros.

    The second threshold leaves all to the lower halves of the numbers of one element.
    """
    one, two = {"bfloat16": (0x3F80, 0x4000), "float16": (0x3C00, 0x4000)}.get(dtype, (1, 2))
    stored = np.dtype(np.uint16 if ITEMSIZES[dtype] == 2 else dtype)
    x: Array = np.full(1027, two, stored)
    y = np.empty_like(x)
    words = masks.stream_words("", 0)
    for threshold in (2**31, _tie(words)):
        mask = Mask(words, 0, threshold, 0.5)
        run(mask.job(x.ctypes.data, y.ctypes.data, 0, x.size))
        if not np.array_equal(y, np.where(mask.keep(0, x.size), stored.type(one), stored.type(0))):
            return False
    return True


def _tie(words: Words) -> int:
    """A threshold that shares its upper half with an element's number."""
    return int(masks.halves(words, 0, np.zeros(1, np.uint64))[0, 0]) << 16 | 0x8000
