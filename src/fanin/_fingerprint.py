"""The checksum of the part of a tensor that lives here: 64 bits that add up over the parts."""

from __future__ import annotations

import math

import numpy as np
import torch

from ._rng.checksum import checksum
from ._shards import Index, Shard

WORD = 4  # bytes
PIECE = 2**22  # elements copied at a time where they do not lie side by side on the CPU


def fingerprint(shard: Shard) -> int:
    """The sum over the shard's elements of a mix of their bits and their places in the whole.

    Equal for any split of the whole into shards once it is summed over them, modulo 2^64.

    >>> whole = torch.arange(6.0).reshape(2, 3)
    >>> top = Shard(whole[:1], (range(1), range(3)), (2, 3))
    >>> rest = Shard(whole[1:], (range(1, 2), range(3)), (2, 3))
    >>> everything = Shard(whole, (range(2), range(3)), (2, 3))
    >>> fingerprint(everything) == (fingerprint(top) + fingerprint(rest)) % 2**64
    True
    """
    local = shard.local.detach()
    if not local.numel():
        return 0
    rows, columns = shard.rows, shard.columns
    width = math.prod(shard.shape[1:]) if len(shard.shape) > 1 else math.prod(shard.shape)
    words = max(1, local.element_size() // WORD)
    columns_of_words = _words(columns, words)
    grid = local if local.dim() > 1 else local.reshape(1, -1)
    if local.is_cpu and local.is_contiguous():
        return checksum(_bits(grid, len(rows)), rows, columns_of_words, width * words)
    high = max(1, PIECE // max(1, len(columns)))
    total = 0
    for r in range(0, len(rows), high):
        piece = grid[r : r + high].contiguous().cpu()
        part = rows[r : r + high]
        total += checksum(_bits(piece, len(part)), part, columns_of_words, width * words)
    return total % 2**64


def _bits(grid: torch.Tensor, rows: int) -> np.ndarray:
    """The words of contiguous memory, row by row."""
    if grid.is_complex():
        grid = torch.view_as_real(grid.resolve_conj())
    size = min(grid.element_size(), WORD)
    return grid.resolve_neg().reshape(rows, -1).view(torch.uint8).numpy().view(f"u{size}")


def _words(columns: Index, words: int) -> Index:
    """Which words of a row the elements at these columns are."""
    if words == 1:
        return columns
    if isinstance(columns, range) and columns.step == 1:
        return range(columns.start * words, columns.stop * words)
    return (np.asarray(columns)[:, None] * words + np.arange(words)).reshape(-1)
