"""A tensor without numbers: shape, strides and dtype, and which value of the graph it holds.

It says that it lies on the CPU, whatever the model lies on, so that the model's own checks of
devices agree and what it makes on that device can be really computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Look(NamedTuple):
    """Where a view looks in memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype


class Memory:
    """What several tensors look at: a view reads it, an in-place op on one writes it for all.

    Args:
        shape: sizes of the whole.
        strides: of the whole.
        offset: of its first element in the storage.
        index: the graph's value that it held before the writes in ``written``.

    Attributes:
        version: how many writes there were.
        written: writes through views that nothing has read yet: (view, index of its value).
    """

    __slots__ = ("index", "offset", "shape", "strides", "version", "written")

    def __init__(
        self, shape: Sequence[int], strides: Sequence[int], offset: int, index: int
    ) -> None:
        self.shape, self.strides, self.offset = tuple(shape), tuple(strides), offset
        self.index, self.version = index, 0
        self.written: list[tuple[Look, int]] = []


class Standin(Tensor):
    """A tensor without numbers.

    Attributes:
        index: of the graph's value that it held when it was made, or last read or written.
        memory: what it shares with its views; None while it has none.
        version: that of ``memory`` which ``index`` belongs to.
        draw: gives a tensor with numbers, for Python that must have some.
    """

    index: int
    memory: Memory | None
    version: int
    draw: Callable[[Standin], Tensor]

    # What a model calls on it goes straight to the dispatcher.
    __torch_function__ = torch._C._disabled_torch_function_impl  # noqa: SLF001 - as torch's docs say

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Reached only when the capture is over: someone kept the tensor."""
        raise RuntimeError(
            f"{func} was called with a tensor that fanin's capture of a model left behind. "
            "It has no numbers: the model keeps results of its forward pass outside of itself."
        )

    @property
    def look(self) -> Look:
        """Where it looks in memory."""
        return Look(tuple(self.shape), self.stride(), self.storage_offset(), self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Standin({list(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return memo.setdefault(id(self), self.clone())

    # Conversions that torch refuses for subclasses of Tensor.

    def tolist(self) -> Any:
        """Numbers drawn at random."""
        return self.draw(self).tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Numbers drawn at random."""
        return self.draw(self).numpy(force=force)

    def __array__(self, dtype: Any = None) -> Any:
        """Numbers drawn at random."""
        return self.draw(self).__array__(dtype)


_make = torch.Tensor._make_wrapper_subclass  # noqa: SLF001 - the documented way to make such tensors


def fresh(shape: Sequence[int], dtype: torch.dtype, index: int, draw: Any) -> Standin:
    """A contiguous stand-in with memory of its own."""
    made = _make(Standin, shape, dtype=dtype)
    made.index, made.memory, made.version, made.draw = index, None, 0, draw
    return made


def strided(
    shape: Sequence[int], strides: Sequence[int], offset: int, dtype: torch.dtype, draw: Any
) -> Standin:
    """A stand-in with given strides; the caller says what it holds."""
    made = _make(Standin, shape, strides=strides, storage_offset=offset, dtype=dtype)
    made.index, made.memory, made.version, made.draw = -1, None, 0, draw
    return made
