"""Which random word stands at (row, column): Philox4x32-10 behind a layout of tiles of 64.

Column c lies in tile t = c >> 6, lane l = (c >> 4) & 3, place j = c & 15, and its word is output
number l of the block whose counter is (16 t + j, row, s2, s3). Runs of 16 columns share a lane, so
that vector units and GPUs store without a shuffle, and any element is reached in one block.

Axes: R rows, C columns, B blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import InvalidValueError
from .stream import Stream

Array = npt.NDArray
Lane = npt.NDArray[np.uint32]

ROW_LIMIT = 2**32
COLUMN_LIMIT = 2**34
LOW_WORDS = 0x80000000

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@dataclass(frozen=True, eq=False)
class Elements:
    """A block of a stream's table: every pair of one of the rows and one of the columns.

    Args:
        stream: seed and name.
        rows: R indices along the first axis of the whole tensor.
        columns: C flat indices in the rest of it.
    """

    stream: Stream
    rows: Array
    columns: Array


def philox(
    counter: tuple[Array, Array, Array, Array], key: tuple[int, int]
) -> tuple[Lane, Lane, Lane, Lane]:
    """Four words per counter.

    >>> zero = np.zeros(1, np.uint64)
    >>> [f"{int(word[0]):08x}" for word in philox((zero, zero, zero, zero), (0, 0))]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11, section 4.
    """
    w0, w1, w2, w3 = rounds(counter, schedule(np.uint64(key[0]), np.uint64(key[1])))
    return w0.astype(np.uint32), w1.astype(np.uint32), w2.astype(np.uint32), w3.astype(np.uint32)


def schedule(k0: Any, k1: Any) -> list[tuple[Any, Any]]:
    """The key of every round: the two words, each with a multiple of its constant added."""
    steps = [(np.uint64(turn * _WEYL[0]), np.uint64(turn * _WEYL[1])) for turn in range(_ROUNDS)]
    return [((k0 + a) & _MASK, (k1 + b) & _MASK) for a, b in steps]


def rounds(counter: Sequence[Any], keys: Sequence[tuple[Any, Any]]) -> tuple[Any, Any, Any, Any]:
    """Philox itself: 32-bit words as the lower halves of 64-bit integers, so that products are whole.

    The upper halves keep what the products leave there: vector units multiply lower halves alone.
    """
    c0, c1, c2, c3 = counter
    for k0, k1 in keys:
        p0, p1 = (c0 & _MASK) * _MULTIPLIERS[0], (c2 & _MASK) * _MULTIPLIERS[1]
        c0, c1 = (p1 >> _HALF) ^ c1 ^ k0, p1
        c2, c3 = (p0 >> _HALF) ^ c3 ^ k1, p0
    return c0, c1, c2, c3


def addresses(columns: Array) -> tuple[Array, Array]:
    """The blocks that hold these columns, and the place of each column among their outputs.

    Returns:
        blocks: B counters, each once.
        slots: C indices into the 4 B outputs, all blocks' lane 0 first, then lane 1, 2, 3.
    """
    block = ((columns >> 6) << 4) | (columns & 15)
    lane = (columns >> 4) & 3
    first, last = int(columns.min()) >> 6, int(columns.max()) >> 6
    if 64 * (last - first + 1) <= 2 * columns.size:
        blocks = np.arange(16 * first, 16 * last + 16, dtype=np.uint64)
        return blocks, lane * blocks.size + (block - 16 * first)
    blocks, place = np.unique(block, return_inverse=True)
    return blocks.astype(np.uint64), lane * blocks.size + place.reshape(-1)


def draw(
    elements: Elements, transform: Callable[..., Sequence[Array]], *, low: bool = False
) -> Array:
    """``transform`` of the words of every block that is needed, gathered into R x C values.

    Args:
        elements: which ones.
        transform: (a lane, its partner lane) -> the values of both. With ``low`` a lane is a pair
            (high words, low words).
        low: whether a value needs 64 random bits.

    Raises:
        InvalidValueError: a row >= 2^32 or a column >= 2^34.
    """
    stream, rows = elements.stream, elements.rows
    check_limits(rows, elements.columns)
    blocks, slots = addresses(np.asarray(elements.columns, np.int64))
    lanes = _blocks(stream, rows, blocks, 0)
    words: Sequence = lanes
    if low:
        words = list(zip(lanes, _blocks(stream, rows, blocks, LOW_WORDS), strict=True))
    values = list(transform(words[0], words[1]))
    if slots.max() >= 2 * blocks.size:
        values += transform(words[2], words[3])
    return np.take(np.concatenate(values, axis=1), slots, axis=1)


def words(elements: Elements) -> Array:
    """The R x C random words themselves, uint32."""
    return draw(elements, lambda even, odd: (even, odd))


def _blocks(stream: Stream, rows: Array, blocks: Array, flag: int) -> tuple[Lane, ...]:
    k0, k1, s2, s3 = stream.words
    shape = (len(rows), len(blocks))
    row = np.broadcast_to(np.asarray(rows).astype(np.uint64)[:, None], shape)
    block = np.broadcast_to(blocks[None, :], shape)
    upper = (np.full((1, 1), s2, np.uint64), np.full((1, 1), s3 | flag, np.uint64))
    return philox((block, row, *upper), (k0, k1))


def check_limits(rows: range | Array, columns: range | Array) -> None:
    """Raise where an index has no place in a stream's table.

    Raises:
        InvalidValueError: a row >= 2^32 or a column >= 2^34.
    """
    for what, index, limit in (("row", rows, ROW_LIMIT), ("column", columns, COLUMN_LIMIT)):
        if isinstance(index, range):
            least, greatest = min(index[0], index[-1]), max(index[0], index[-1])
        else:
            least, greatest = int(index.min()), int(index.max())
        if least < 0 or greatest >= limit:
            raise InvalidValueError(
                f"{what} indices must lie in [0, {limit}); got "
                f"{least} to {greatest}. Split the tensor and give each part its own key."
            )
