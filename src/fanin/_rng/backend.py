"""Who draws: the portable specification, or a compiled kernel that gives the same bits.

A kernel takes a tenth of a second to make, so it is made only once about a million numbers have
been asked of it in this process; until then, and where llvmlite is missing, the specification draws.
`FANIN_PORTABLE=1` in the environment keeps to the specification.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, product
from struct import Struct
from threading import Lock
from typing import Any, TypeVar

import numpy as np

from . import single
from .philox import Array, Elements, check_limits
from .stream import Stream

PORTABLE = "FANIN_PORTABLE"
LOADING_PAYS = 2**20  # elements, 0.1 s of portable drawing
CALL = 2**10  # elements that are drawn in the time a portable call takes anyway
SERIAL_BELOW = 2**16  # elements
PARTS = 4  # for each thread, so that a busy core does not hold up the others
RUN = 1024  # columns drawn at a time, a multiple of the tile; parts begin at multiples of it
BLOCK = 256, 64  # rows and columns that share cache lines where columns are far apart
NUMBERS = 11  # parameters of the law that has most
ROUNDED: dict[str, Callable[[Any], Any]] = {
    "bfloat16": single.bfloat16,
    "float16": single.float16,
}

Run = tuple[int, int, int]  # position, first index, length
Box = tuple[Run, Run]
Index = range | Array
Write = Callable[[bytes], None]  # job -> None
T = TypeVar("T")

# The parts of a kernel's job: where to write what, the stream's words, and the law's numbers.
pack_place, pack_words = Struct("=10q").pack, Struct("=4q").pack
_pack_numbers = Struct(f"={NUMBERS}d").pack

_asked: dict[tuple[str, str], int] = {}
_loaded: dict[tuple[str, str], Write | None] = {}
_loading = Lock()


@dataclass(frozen=True)
class Memory:
    """Where the numbers of a grid lie: bytes from row to row, and from column to column of a run.

    Args:
        address: of the first one.
        stride: bytes from row to row.
        dtype: "float32", "float64", "bfloat16" or "float16".
        itemsize: bytes of a number.
        step: bytes from column to column.
        run: how many columns lie ``step`` apart; 0 for all of them.
        run_step: bytes from the first column of a run to that of the next.
    """

    address: int
    stride: int
    dtype: str
    itemsize: int
    step: int
    run: int = 0
    run_step: int = 0

    @property
    def across(self) -> bool:
        """Whether rows are nearer to one another than columns."""
        return not self.run and 0 < self.stride < self.step

    def place(self, rows: Run, columns: Run) -> bytes:
        """The fields of a kernel's job that say where to write what."""
        (i, row, height), (j, column, width) = rows, columns
        nth, position = divmod(j, self.run) if self.run else (0, j)
        address = self.address + i * self.stride + nth * self.run_step
        run = self.run or position + width + 1
        return pack_place(
            address, self.stride, self.step, run, self.run_step, position,
            height, row, column, column + width,
        )  # fmt: skip


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
        size = out.itemsize
        memory = Memory(out.ctypes.data, columns.size * size, out.dtype.name, size, size)
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
        write = self.writer(memory.dtype, count)
        if write is None or not count:
            return False
        check_limits(rows, columns)
        what = self.what(stream.words)
        shared = threads if count >= SERIAL_BELOW else 1
        boxes = _parts(runs(rows), runs(columns), shared)
        if memory.across:
            boxes = (part for box in boxes for part in _cut(box, *BLOCK))
        in_turn(lambda box: write(memory.place(*box) + what), boxes, shared)
        return True

    def writer(self, dtype: str, count: int) -> Write | None:
        """The kernel for ``count`` numbers of this dtype; None where the specification is to draw."""
        if self.law is None or is_portable():
            return None
        kind = self.law, dtype
        if kind in _loaded:
            return _loaded[kind]
        _asked[kind] = _asked.get(kind, 0) + count + CALL
        return None if _asked[kind] < LOADING_PAYS else _load(self, self.law, dtype)

    def loaded(self, dtype: str | None) -> Write | None:
        """The kernel for this dtype, if it has been made."""
        return _loaded.get((self.law, dtype)) if self.law and dtype else None

    def what(self, words: tuple[int, int, int, int]) -> bytes:
        """The fields of a kernel's job that say which numbers."""
        return pack_words(*words) + self.packed

    @cached_property
    def packed(self) -> bytes:
        """The numbers."""
        return _pack_numbers(*self.numbers)


def is_portable() -> bool:
    """Whether the environment keeps to the specification."""
    return os.environ.get(PORTABLE, "0") not in ("", "0")


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


def _parts(rows: list[Run], columns: list[Run], threads: int) -> Iterator[Box]:
    """Boxes that cover the grid: whole runs, or smaller ones where several threads share them."""
    boxes = product(rows, columns)
    if threads == 1:
        return boxes
    total = sum(height for *_, height in rows) * sum(width for *_, width in columns)
    size = max(SERIAL_BELOW, total // (PARTS * threads))
    return (part for box in boxes for part in _split(box, size))


def _split(box: Box, size: int) -> Iterator[Box]:
    """Boxes of about ``size`` elements."""
    width = box[1][2]
    return _cut(box, max(1, size // width), max(RUN, size // RUN * RUN))


def _cut(box: Box, down: int, across: int) -> Iterator[Box]:
    """Boxes of so many rows and columns; cut at multiples of ``across``, so that no tile is drawn twice."""
    (i, row, height), (j, column, width) = box
    begin = (column // across + 1) * across
    cuts = [column, *range(begin, column + width, across), column + width]
    for r in range(0, height, down):
        for low, high in pairwise(cuts):
            yield (i + r, row + r, min(down, height - r)), (j + low - column, low, high - low)


def in_turn(work: Callable[[T], None], boxes: Iterator[T], threads: int) -> None:
    """Work on every box; threads take the next one when they are done, and none waits in memory."""
    lock = Lock()

    def turns() -> None:
        while True:
            with lock:
                box = next(boxes, None)
            if box is None:
                return
            work(box)

    others = [_pool(threads - 1, os.getpid()).submit(turns) for _ in range(threads - 1)]
    turns()
    for other in others:
        if not other.cancel():  # one that a busy machine has not let begin is not waited for
            other.result()


@lru_cache(maxsize=1)
def _pool(threads: int, _: int) -> ThreadPoolExecutor:
    """Threads to write with; of this process, since a fork leaves its parent's behind."""
    return ThreadPoolExecutor(threads, thread_name_prefix="fanin")


def _load(draw: Draw, law: str, dtype: str) -> Write | None:
    with _loading:
        if (law, dtype) not in _loaded:
            _loaded[law, dtype] = _made(draw, law, dtype)
    return _loaded[law, dtype]


def _made(draw: Draw, law: str, dtype: str) -> Write | None:
    try:
        from .kernels import kernel  # noqa: PLC0415 - it imports llvmlite
    except (ImportError, OSError):
        return None
    try:
        write = kernel(law, dtype)
    except (OSError, RuntimeError) as error:
        why = str(error)
    else:
        if _agrees(write, draw, dtype):
            return write
        why = "it drew other bits than the specification"
    warnings.warn(
        f"the kernel {law} for {dtype} does not work here ({why}), so numpy draws instead: the "
        "same numbers, more slowly.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _agrees(write: Write, draw: Draw, dtype: str) -> bool:
    """Whether a new kernel gives the specification's bits: a processor may be one never tried."""
    rows, columns = (0, 0, 2), (0, 5, 203)
    stream = Stream("")
    elements = Elements(stream, np.arange(2), np.arange(5, 208))
    with np.errstate(over="ignore"):
        expected = draw.portable(elements)
    expected = ROUNDED.get(dtype, np.asarray)(expected)
    found: Array = np.empty_like(expected)
    size = found.itemsize
    memory = Memory(found.ctypes.data, found.strides[0], dtype, size, size)
    write(memory.place(rows, columns) + draw.what(stream.words))
    return found.tobytes() == expected.tobytes()
