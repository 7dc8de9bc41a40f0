"""What `randomness.py` examines: fanin's engine, and bad ones that it has to find out.

A control draws poor words and turns them into numbers exactly as the specification does, so that
nothing else differs. R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from _goodness import Array
from scipy import special

from fanin import fill_
from fanin._rng import Elements, Stream, single
from fanin._rng.philox import words as philox_words
from fanin.distributions import Distribution, Normal, TruncatedNormal, Uniform

Words = Callable[[Stream, Array, Array], Array]

PHILOX = ((0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85))  # multipliers, Weyl's steps
LCG = (1664525, 1013904223)  # Numerical Recipes
WORD, MASK = np.uint64(32), np.uint64(0xFFFFFFFF)


class Generator(Protocol):
    """Numbers by name, seed, row and column."""

    @property
    def name(self) -> str:
        """What it is called."""

    def words(self, stream: Stream, rows: Array, columns: Array) -> Array:
        """R x C words, uint32."""

    def values(
        self, law: Distribution, stream: Stream, shape: tuple[int, int], real: type
    ) -> Array:
        """The R x C numbers of a tensor."""


@dataclass(frozen=True)
class Fanin:
    """The engine, as `fanin.fill_` draws: by kernels where there is enough to draw."""

    name: str = "fanin-1"

    def words(self, stream: Stream, rows: Array, columns: Array) -> Array:
        return whole(stream, rows, columns)

    def values(
        self, law: Distribution, stream: Stream, shape: tuple[int, int], real: type
    ) -> Array:
        tensor = torch.empty(shape, dtype=torch.float64 if real is np.float64 else torch.float32)
        return fill_(tensor, law, key=stream.key, seed=stream.seed).numpy()


@dataclass(frozen=True)
class Control:
    """A bad generator.

    Args:
        name: what to ask for.
        fault: what is wrong with it.
        draw: the words.
        scale: what values are multiplied by.
    """

    name: str
    fault: str
    draw: Words
    scale: float = 1.0

    def words(self, stream: Stream, rows: Array, columns: Array) -> Array:
        return self.draw(stream, rows, columns)

    def values(
        self, law: Distribution, stream: Stream, shape: tuple[int, int], real: type
    ) -> Array:
        if real is not np.float32:
            raise ValueError("controls draw float32 only")
        rows, columns = map(np.arange, shape)
        return from_words(law, self.draw(stream, rows, columns)) * np.float32(self.scale)


def from_words(law: Distribution, words: Array) -> Array:
    """The specification's 32-bit transforms, on rows of whole tiles: lanes of 16 columns in pairs."""
    rows, columns = words.shape
    lanes = words.reshape(rows, columns // 32, 2, 16)
    match law:
        case Normal():
            pairs = single.box_muller(lanes[:, :, 0], lanes[:, :, 1])
            return np.stack(pairs, axis=2).reshape(rows, columns)
        case Uniform():
            return np.minimum(
                single.signed_uniform(words), np.nextafter(np.float32(1), np.float32(0))
            )
        case TruncatedNormal(cut=cut):
            outside = 2 * float(special.ndtr(-cut))
            z = single.truncated(words, cut, 1 - outside, outside)
            return np.clip(z, -np.float32(cut), np.float32(cut))
    raise ValueError(f"no transform for {law}")


def whole(stream: Stream, rows: Array, columns: Array) -> Array:
    """The engine's own words."""
    return philox_words(Elements(stream, rows, columns))


def nameless(_: Stream, rows: Array, columns: Array) -> Array:
    """One table of words for all names and seeds."""
    return whole(Stream(""), rows, columns)


def coarse(stream: Stream, rows: Array, columns: Array) -> Array:
    """Words whose lower half is clear."""
    return whole(stream, rows, columns) & np.uint32(0xFFFF0000)


def philox(counter: list[Array], key: tuple[int, int], rounds: int) -> list[Array]:
    """Philox4x32 with any number of rounds (Salmon et al. 2011)."""
    (m0, m1), (w0, w1) = PHILOX
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * np.uint64(m0), c2 * np.uint64(m1)
        c0, c1 = (p1 >> WORD) ^ c1 ^ np.uint64(k0), p1 & MASK
        c2, c3 = (p0 >> WORD) ^ c3 ^ np.uint64(k1), p0 & MASK
        k0, k1 = (k0 + w0) & 0xFFFFFFFF, (k1 + w1) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def philox_of(rounds: int) -> Words:
    """The engine's words with so many rounds, each element's block computed on its own."""

    def draw(stream: Stream, rows: Array, columns: Array) -> Array:
        k0, k1, s2, s3 = stream.words
        block = ((columns >> 6) << 4) | (columns & 15)
        shape = (rows.size, columns.size)
        counter = [block[None, :], rows[:, None], np.array([[s2]]), np.array([[s3]])]
        full = [np.broadcast_to(c.astype(np.uint64), shape) for c in counter]
        lane = np.broadcast_to((columns >> 4) & 3, shape)
        return np.choose(lane, philox(full, (k0, k1), rounds)).astype(np.uint32)

    return draw


def congruential(stream: Stream, rows: Array, columns: Array) -> Array:
    """The sequence x -> a x + c modulo 2^32 along rows of 2^16, from a start of each stream's own."""
    index = (rows[:, None].astype(np.uint64) << np.uint64(16)) + columns[None, :].astype(np.uint64)
    factor, summand = (np.uint32(n) for n in LCG)
    x = np.full(index.shape, stream.words[0], np.uint32)
    with np.errstate(over="ignore"):
        for bit in range(math.ceil(math.log2(int(index.max()) + 2))):
            step = (index >> np.uint64(bit)) & np.uint64(1) == 1
            x = np.where(step, x * factor + summand, x)
            factor, summand = factor * factor, summand * (factor + np.uint32(1))
    return x


CONTROLS = {
    control.name: control
    for control in (
        Control("lcg", "a linear congruential generator modulo 2^32", congruential),
        Control("philox-2", "Philox with 2 rounds instead of 10", philox_of(2)),
        Control("philox-6", "Philox with 6 rounds instead of 10", philox_of(6)),
        Control("nameless", "all names and seeds draw the same", nameless),
        Control("coarse", "16 random bits a word", coarse),
        Control("wide", "values 1 % too large", whole, 1.01),
    )
}
