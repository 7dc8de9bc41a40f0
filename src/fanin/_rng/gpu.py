"""Draws straight into the memory of a GPU, by Triton: which tensors, and how they are cut up.

The kernel gives the bits of the specification. Where it cannot be had (no triton, nothing to compile
with) `into` says so, and the specification draws on the CPU. Triton is imported once a tensor lies on
a GPU.
"""

from __future__ import annotations

import os
import struct
import warnings
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backend import NUMBERS, PORTABLE, Box, Draw, Index, Memory, runs
from .philox import Elements, check_limits
from .stream import Stream

OLDEST = (3, 6)  # before, Triton's square roots and divisions took denormals for zero
OPTIONS = {"enable_fp_fusion": False, "num_warps": 4}
TWO_WORDS = {"uniform_64", "normal_64", "window_32", "window_64"}
RUNS_BELOW = 2**31  # columns: the kernel divides by the length of runs in 32 bits
# Rows and tiles of a program, 512 blocks each.
FEW_ROWS, USUAL, NARROW = (1, 32), (8, 4), (32, 1)
COMPARED = 4, 256  # rows and columns of the first tensor that a kernel fills

_trusted: dict[tuple[torch.device, str, str], bool] = {}


def reaches(tensor: Tensor) -> bool:
    """Whether the tensor lies where a GPU kernel can write."""
    return tensor.is_cuda


def into(
    tensor: Tensor, memory: Memory, draw: Draw, stream: Stream, *, rows: Index, columns: Index
) -> bool:
    """Write the values into a tensor on a GPU; False where there is no kernel and nothing stays done.

    Args:
        tensor: R x C elements, the columns in any number of dims.
        memory: where they lie.
        draw: the law.
        stream: seed and name.
        rows: R indices.
        columns: C indices.
    """
    kind = tensor.device, draw.law or "", memory.dtype
    portable = os.environ.get(PORTABLE, "0") not in ("", "0")
    if draw.law is None or portable or not _trusted.get(kind, True):
        return False
    if (memory.run and len(columns) >= RUNS_BELOW) or (kernel := _kernel()) is None:
        return False
    check_limits(rows, columns)
    try:
        with torch.cuda.device_of(tensor):
            for box in product(runs(rows), runs(columns)):
                grid, arguments, constants = launch(tensor, memory, box, draw, stream)
                kernel[grid](*arguments, **constants, **OPTIONS)
        why = "" if kind in _trusted else _disagreement(tensor, draw, stream, rows, columns)
    except Exception as error:
        if kind in _trusted:
            raise
        why = f"{type(error).__name__}: {error}"
    _trusted[kind] = not why
    if why:
        warnings.warn(
            f"no GPU kernel for {draw.law} in {memory.dtype} on {tensor.device}, so numbers are drawn "
            f"on the CPU and copied: the same bits, later. {why}",
            stacklevel=2,
        )
    return not why


def launch(
    tensor: Tensor, memory: Memory, box: Box, draw: Draw, stream: Stream
) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]]:
    """(grid, arguments, constants) with which the kernel writes one run of rows and columns."""
    (i, row, height), (j, column, width) = box
    tile, skip = column >> 6, column & 63
    end = skip + width
    lines, tiles = _shape(height, end, memory)
    across = -(-end // (64 * tiles))
    size = memory.itemsize
    words = struct.unpack("=4i", struct.pack("=4I", *stream.words))
    numbers = struct.unpack(f"={NUMBERS}q", struct.pack(f"={NUMBERS}d", *draw.numbers))
    arguments = (
        *(tensor[i:] if i else tensor, memory.stride // size, memory.step // size),
        *(memory.run, memory.run_step // size),
        *words,
        *numbers,
        *(row, height, j - skip, tile, across, skip, end),
    )
    constants = {
        "LAW": draw.law,
        "LOW": draw.law in TWO_WORDS,
        "FOLDED": memory.run > 0,
        "LINES": lines,
        "TILES": tiles,
    }
    return (-(-height // lines) * across,), arguments, constants


def _shape(height: int, width: int, memory: Memory) -> tuple[int, int]:
    """Rows and tiles of a program: many of what lies together in memory, few beyond the ends."""
    if width <= 64 * USUAL[1] // 2 or (memory.across and height >= NARROW[0]):
        return NARROW
    return FEW_ROWS if height < USUAL[0] else USUAL


def _disagreement(tensor: Tensor, draw: Draw, stream: Stream, rows: Index, columns: Index) -> str:
    """What is wrong with the first values: a compiler may fuse or flush where it was told not to."""
    height, width = (
        min(n, most) for n, most in zip((len(rows), len(columns)), COMPARED, strict=True)
    )
    r, c = np.asarray(rows[:height]), np.asarray(columns[:width])
    expected = torch.from_numpy(draw.portable(Elements(stream, r, c))).to(tensor.dtype)
    grid = tensor[:height] if tensor.dim() > 1 else tensor.reshape(1, -1)
    found = grid.flatten(1)[:, :width].cpu()
    if torch.equal(found.contiguous().view(torch.uint8), expected.view(torch.uint8)):
        return ""
    return f"It drew {found[found != expected][:3].tolist()} for {expected[found != expected][:3].tolist()}."


@cache
def _kernel() -> Any:
    """The kernel, or None where Triton is missing or too old."""
    try:
        import triton  # noqa: PLC0415 - an extra, and slow to import

        if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
            return None
        from .gpu_kernels import fill  # noqa: PLC0415
    except ImportError:
        return None
    return fill
