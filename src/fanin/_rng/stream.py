"""A stream: the seed and the name that say which random numbers a tensor gets."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

from .._errors import InvalidValueError

ENGINE = "fanin-1"
_PERSON = ENGINE.encode()
_UNPACK = struct.Struct("<4I").unpack


Words = tuple[int, int, int, int]


def words_of(key: str, seed: int) -> Words:
    """`Stream.words`, of arguments that are known to be fit."""
    digest = hashlib.blake2b(
        key.encode("utf-8", "surrogatepass"),
        key=seed.to_bytes(8, "little"),
        digest_size=16,
        person=_PERSON,
    ).digest()
    k0, k1, s2, s3 = _UNPACK(digest)
    return k0, k1, s2, s3 & 0x7FFFFFFF


@dataclass(frozen=True)
class Stream:
    """One of 2^127 independent tables of words, indexed by (row, column).

    The four words are the BLAKE2b hash of the name, keyed by the seed. Streams of different names
    or seeds share no counter, save by a collision of 127-bit hashes.

    Args:
        key: the name, normally a parameter's fully qualified name; any text.
        seed: an integer in [0, 2^64).

    Raises:
        InvalidValueError: the key is not text, or the seed is not such an integer.

    >>> [f"{word:08x}" for word in Stream("layer.weight", seed=7).words]
    ['1faef07b', '5512df60', '4da2d2d4', '723b81cb']

    Source: Saarinen & Aumasson, RFC 7693 (BLAKE2).
    """

    key: str
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.key, str):
            raise InvalidValueError(
                f"key must be text, normally the parameter's name; got {self.key!r}."
            )
        whole = type(self.seed) is int or (
            isinstance(self.seed, Integral) and not isinstance(self.seed, bool)
        )
        if not whole or not 0 <= self.seed < 2**64:
            raise InvalidValueError(
                f"seed must be an integer in [0, 2**64); got {self.seed!r}. "
                "Take a negative or larger one modulo 2**64."
            )
        object.__setattr__(self, "seed", int(self.seed))

    @cached_property
    def words(self) -> Words:
        """(k0, k1, s2, s3): Philox's key and upper counter words; the top bit of s3 is clear."""
        return words_of(self.key, self.seed)

    def child(self, label: str) -> Stream:
        """A further stream of the same tensor, for a second decision per element.

        >>> Stream("w").child("mask")
        Stream(key='w/mask', seed=0)
        """
        return Stream(f"{self.key}/{label}", self.seed)
