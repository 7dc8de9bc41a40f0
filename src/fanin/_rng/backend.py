"""Who draws: the portable specification, or a compiled kernel that gives the same bits.

numba takes half a second to import and seconds to compile, so a kernel is loaded only once about a
million numbers have been asked of it in this process; until then, and where numba is missing, the
specification draws. `FANIN_PORTABLE=1` in the environment keeps to the specification.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise, product
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from .philox import Array, Elements, check_limits
from .stream import Stream

if TYPE_CHECKING:
    from .kernels import Kernel

PORTABLE = "FANIN_PORTABLE"
LOADING_PAYS = 2**20  # elements, 0.1 s of portable drawing
CALL = 2**12  # elements that are drawn in the time a portable call takes anyway
SERIAL_BELOW = 2**16  # elements
PARTS = 4  # for each thread, so that a busy core does not hold up the others
RUN = 1024  # columns drawn at a time, a multiple of the tile; parts begin at multiples of it
NUMBERS = 11  # parameters of the law that has most

Run = tuple[int, int, int]  # position, first index, length
Box = tuple[Run, Run]
Index = range | Array

_asked: dict[tuple[str, str], int] = {}
_loading = Lock()


@dataclass(frozen=True, eq=False)
class Draw:
    """A law with its parameters, ready to be drawn in one kind of float.

    Args:
        portable: elements -> R x C values; the specification.
        real: np.float32 or np.float64, what the values come in.
        law: the kernel's transform; None where the specification alone draws.
        numbers: what the transform takes.
    """

    portable: Callable[[Elements], Array]
    real: type
    law: str | None = None
    numbers: tuple[float, ...] = ()

    def __call__(self, elements: Elements) -> Array:
        """R x C values."""
        rows, columns = elements.rows, elements.columns
        out: Array = np.empty((rows.size, columns.size), self.real)
        memory = Memory(out.ctypes.data, columns.size * out.itemsize, out.dtype.name, out.itemsize)
        written = self.into(memory, elements.stream, rows, columns, threads=1)
        return out if written else self.portable(elements)

    def into(
        self, memory: Memory, stream: Stream, rows: Index, columns: Index, *, threads: int
    ) -> bool:
        """Write the values into memory; False where there is no kernel and nothing was done.

        Args:
            memory: where.
            stream: seed and name.
            rows: R indices.
            columns: C indices.
            threads: how many to write with.
        """
        count = len(rows) * len(columns)
        if self.law is None or not count:
            return False
        draw = _loaded(self.law, memory.dtype, count)
        if draw is None:
            return False
        check_limits(rows, columns)
        key, numbers = stream.words, self.numbers

        def part(box: Box) -> None:
            (i, row, height), (j, column, width) = box
            address = memory.address + i * memory.stride + j * memory.itemsize
            draw((address, memory.stride, height, row, column, column + width), key, numbers)

        boxes = _parts(runs(rows), runs(columns), threads if count >= SERIAL_BELOW else 1)
        if len(boxes) == 1 or threads == 1:
            for box in boxes:
                part(box)
        else:
            list(_pool(threads, os.getpid()).map(part, boxes))
        return True


@dataclass(frozen=True)
class Memory:
    """Rows of numbers in memory, the columns of each side by side.

    Args:
        address: of the first one.
        stride: bytes from row to row.
        dtype: "float32", "float64", "bfloat16" or "float16".
        itemsize: bytes from column to column.
    """

    address: int
    stride: int
    dtype: str
    itemsize: int


def runs(index: Index) -> list[Run]:
    """(position, first index, length) of each stretch of consecutive indices.

    >>> runs(range(5, 9))
    [(0, 5, 4)]
    >>> runs(np.array([5, 6, 9, 2, 3]))
    [(0, 5, 2), (2, 9, 1), (3, 2, 2)]
    """
    if isinstance(index, range):
        if index.step == 1:
            return [(0, index.start, len(index))]
        index = np.arange(index.start, index.stop, index.step)
    if index[-1] - index[0] == index.size - 1 and (np.diff(index) == 1).all():
        return [(0, int(index[0]), index.size)]
    starts = np.flatnonzero(np.diff(index, prepend=index[0] - 2) != 1)
    lengths = np.diff(starts, append=index.size)
    return list(zip(starts.tolist(), index[starts].tolist(), lengths.tolist(), strict=True))


def _parts(rows: list[Run], columns: list[Run], threads: int) -> list[Box]:
    """Boxes that cover the grid: whole runs, or smaller ones where several threads share them."""
    boxes = list(product(rows, columns))
    if threads == 1:
        return boxes
    total = sum(height * width for (_, _, height), (_, _, width) in boxes)
    size = max(SERIAL_BELOW, total // (PARTS * threads))
    return [part for box in boxes for part in _split(box, size)]


def _split(box: Box, size: int) -> Iterator[Box]:
    """About ``size`` elements each; cut at multiples of RUN, so that no tile is drawn twice."""
    (i, row, height), (j, column, width) = box
    down = max(1, size // width)
    begin, across = (column // RUN + 1) * RUN, max(RUN, size // RUN * RUN)
    cuts = [column, *range(begin, column + width, across), column + width]
    for r in range(0, height, down):
        for low, high in pairwise(cuts):
            yield (i + r, row + r, min(down, height - r)), (j + low - column, low, high - low)


@lru_cache(maxsize=1)
def _pool(threads: int, _: int) -> ThreadPoolExecutor:
    """Threads to write with; of this process, since a fork leaves its parent's behind."""
    return ThreadPoolExecutor(threads, thread_name_prefix="fanin")


def _loaded(law: str, dtype: str, count: int) -> Kernel | None:
    if os.environ.get(PORTABLE, "0") not in ("", "0"):
        return None
    asked = _asked.get((law, dtype), 0) + count + CALL
    _asked[law, dtype] = asked
    return None if asked < LOADING_PAYS else _load(law, dtype)


@cache
def _load(law: str, dtype: str) -> Kernel | None:
    with _loading:
        try:
            from .kernels import kernel  # noqa: PLC0415 - numba takes half a second
        except ImportError:
            return None
        return kernel(law, dtype)
