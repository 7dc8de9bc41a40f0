"""Which tokens of a padded batch are real, and how to compute with those alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._errors import InvalidValueError


@dataclass(frozen=True)
class Padding:
    """The real tokens of a batch of (B, T).

    Args:
        index: (N,) flat positions of the real tokens, in order.
        batch: B.
        length: T.
    """

    index: Tensor
    batch: int
    length: int

    @staticmethod
    def of(padded: Tensor) -> Padding:
        """From a key padding mask (B, T), True = padding."""
        index = torch.nonzero(~padded.reshape(-1)).squeeze(-1)
        return Padding(index, *padded.shape)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...): the real tokens."""
        return x.flatten(0, 1).index_select(0, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...): zeros where there is padding."""
        whole = x.new_zeros(self.batch * self.length, *x.shape[1:])
        return whole.index_copy(0, self.index, x).unflatten(0, (self.batch, self.length))


def checked(padding: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A key padding mask (..., S) of bools, as torch.nn has it: True = ignore.

    Raises:
        InvalidValueError: another dtype or shape.
    """
    if padding.dtype != torch.bool:
        raise InvalidValueError(
            f"key_padding_mask must be bool, True = ignore this key, got {padding.dtype}. "
            "Of a mask with 1 for real tokens pass mask == 0."
        )
    if tuple(padding.shape) != tuple(shape):
        raise InvalidValueError(
            f"key_padding_mask must have shape {list(shape)}, one entry per key; got {list(padding.shape)}."
        )
    return padding
