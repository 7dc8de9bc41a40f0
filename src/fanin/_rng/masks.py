"""Which elements a mask keeps: 32 random bits an element, eight elements to a block of Philox.

Element e of a tensor, counted in logical (row-major) order, lies in tile t = e >> 7, half h = (e >> 6) & 1.
Its upper 16 bits are half h of the engine's word at (row = step, column = t << 6 | e & 63), its lower 16
bits those of the low word there. It is kept if the 32 bits, as an integer, are below the threshold. Only
where the upper 16 equal the threshold's does the rest matter: once in 65 536 elements.

Axes: T tiles of 128 elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .philox import LOW_WORDS, rounds, schedule
from .stream import Words, words_of

TILE = 128  # elements of 16 blocks
ELEMENT_LIMIT = 2**35
STREAM = "dropout"  # the label of a layer's stream: its weights have others

_BLOCKS = 16  # of a tile
_HALF = 16  # bits


def stream_words(name: str, seed: int) -> Words:
    """The stream of a layer's masks; the arguments are known to be fit."""
    return words_of(f"{name}/{STREAM}", seed)


def threshold(p: float) -> int:
    """Of 2^32 values how many keep an element: P(kept) = 1 - p to within 2^-33 (2^-32 at p < 2^-33).

    >>> threshold(0.5) / 2**32, threshold(1.0), threshold(0.1) / 2**32
    (0.5, 0, 0.8999999999068677)
    """
    return min(round((1.0 - p) * 2.0**32), 2**32 - 1)


def keep(words: Words, step: int, tiles: Any, threshold: int, xp: Any = np) -> Any:
    """The law of masks.

    Args:
        words: of the stream.
        step: which mask of the stream.
        tiles: T numbers of tiles: an array of uint64, or a tensor of int64 on any device.
        threshold: kept are the numbers below.
        xp: numpy, or torch for tensors.

    Returns:
        T x 128 booleans.

    Source: docs/engine.md.
    """
    upper = halves(words, step, tiles, 0, xp)
    kept, tied = upper < threshold >> _HALF, upper == threshold >> _HALF
    open_ = tied.any(1)
    if open_.any():
        lower = halves(words, step, tiles[open_], LOW_WORDS, xp)
        kept[open_] |= tied[open_] & (lower < (threshold & 0xFFFF))
    return kept


def halves(words: Words, step: int, tiles: Any, flag: int = 0, xp: Any = np) -> Any:
    """T x 128 numbers of 16 bits: upper ones, or lower ones if ``flag`` is `LOW_WORDS`."""
    k0, k1, s2, s3 = words
    block = xp.arange(_BLOCKS, dtype=tiles.dtype)
    if xp is not np:
        block = block.to(tiles.device)
    block = tiles[:, None] * _BLOCKS + block
    rest = [xp.full_like(block, number) for number in (step, s2, s3 | flag)]
    lanes = rounds((block, *rest), schedule(np.uint64(k0), np.uint64(k1)))
    word = xp.concatenate(lanes, 1)
    return xp.concatenate([word & 0xFFFF, (word >> _HALF) & 0xFFFF], 1)
