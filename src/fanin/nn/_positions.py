"""Where a token stands: sinusoids, a learned table, rotary embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import InvalidValueError, one_of
from .._fans import Fan
from .._layouts import Spec, register_module
from ..distributions import Normal
from . import _exporting
from ._base import Block, positive

LAYOUTS = ("interleaved", "half")


class _Tables(nn.Module):
    """A module whose buffers are computed from its arguments, in float64, and rounded once to float32.

    They hold real numbers on the meta device too, stay float32 when the model is cast, come back after
    `to_empty`, and are no part of the state dict.
    """

    def tables(self) -> dict[str, Tensor]:
        """Every buffer by name, on the CPU."""
        raise NotImplementedError

    def recompute_buffers(self, device: torch.device | str | None = None) -> None:
        """Write the buffers anew, on ``device`` or where they are."""
        for name, table in self.tables().items():
            old = self._buffers.get(name)
            place = device or (old.device if old is not None else "cpu")
            place = "cpu" if torch.device(place).type == "meta" else place
            self.register_buffer(name, table.to(place), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        moved = next((b.device for b in self._buffers.values() if b is not None), None)
        if any(new is not before[name] for name, new in self._buffers.items()):
            self.recompute_buffers(moved)
        return self


class SinusoidalPositions(_Tables):
    """x + P, P[t, 2i] = sin(t / 10000^(2i/d)), P[t, 2i+1] = cos(t / 10000^(2i/d)).

    (..., T, d_model) -> (..., T, d_model). Odd d_model ends with a sine.

    Args:
        d_model: size of the last axis.
        max_len: how many positions there are.
        base: 10000 in the paper.

    Raises:
        InvalidValueError: sizes that are no positive integers; at the call, a sequence too long.

    Source: Vaswani et al. 2017, section 3.5.

    Example:
        >>> import torch
        >>> SinusoidalPositions(5)(torch.zeros(2, 3, 5))[0, 0]
        tensor([0., 1., 0., 1., 0.])
    """

    table: Tensor

    def __init__(self, d_model: int, max_len: int = 5000, *, base: float = 10000.0) -> None:
        super().__init__()
        positive(d_model=d_model, max_len=max_len)
        self.d_model, self.max_len, self.base = d_model, max_len, base
        self.recompute_buffers()

    def tables(self) -> dict[str, Tensor]:
        even = torch.arange(0, self.d_model, 2, dtype=torch.float64, device="cpu")
        angles = _angles(self.max_len, self.base ** (-even / self.d_model))
        table = torch.empty(self.max_len, self.d_model, dtype=torch.float32, device="cpu")
        table[:, 0::2] = angles.sin()
        table[:, 1::2] = angles.cos()[:, : self.d_model // 2]
        return {"table": table}

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """``positions``: int64, broadcasts against (..., T); 0, 1, ... if None."""
        rows = _rows((self.table,), x, positions, self.max_len)[0]
        return x + rows.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.d_model}, max_len={self.max_len}"


class LearnedPositions(Block):
    """x + W[positions]: (..., T, d_model) -> (..., T, d_model), with W (max_len, d_model).

    Args:
        d_model: size of the last axis.
        max_len: how many positions there are.
        device, dtype: as in torch.nn.

    Raises:
        InvalidValueError: sizes that are no positive integers; at the call, a sequence too long.

    Source: Gehring et al. 2017, section 3.1; Devlin et al. 2019.

    Example:
        >>> import torch
        >>> LearnedPositions(4, max_len=10)(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        d_model: int,
        max_len: int = 512,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(d_model=d_model, max_len=max_len)
        self.max_len = max_len
        self.weight = nn.Parameter(torch.empty(max_len, d_model, device=device, dtype=dtype))

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """``positions``: int64, broadcasts against (..., T); 0, 1, ... if None."""
        return x + _rows((self.weight,), x, positions, self.max_len)[0]

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, max_len={self.max_len}"


@register_module(LearnedPositions)
def _learned(m: LearnedPositions) -> dict[str, Spec]:
    return {"weight": Spec("pos", Fan(1, m.weight.shape[1]), default=Normal(1.0))}


class RotaryEmbedding(_Tables):
    """Turns pairs of features of queries and keys by an angle that grows with the position.

    Pair i of position t turns by t theta^(-2i/d), so that q . k depends on the distance alone.

    Args:
        d: size of the last axis of what is turned: of one head, even.
        theta: wavelength of the slowest pair, over 2 pi.
        max_len: how many positions there are.
        layout: which features are a pair: ``interleaved`` (2i, 2i+1), as in the paper and CS336;
            ``half`` (i, i + d/2), as in transformers. Weights of one are wrong for the other.

    Raises:
        InvalidValueError: an odd or otherwise impossible size; at the call, positions beyond max_len.

    Source: Su et al. 2021, equation 34.

    Example:
        >>> import torch
        >>> rope = RotaryEmbedding(4, max_len=8)
        >>> rope(torch.ones(1, 3, 4), torch.tensor([0, 1, 2]))[0, 0]
        tensor([1., 1., 1., 1.])
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        d: int,
        theta: float = 10000.0,
        max_len: int = 2048,
        layout: Literal["interleaved", "half"] = "interleaved",
    ) -> None:
        super().__init__()
        positive(d=d, max_len=max_len)
        if d % 2:
            raise InvalidValueError(f"d must be even, for features turn in pairs; got {d}.")
        if not theta > 0:
            raise InvalidValueError(f"theta must be positive, got {theta!r}.")
        self.d, self.theta, self.max_len = d, float(theta), max_len
        self.layout = one_of("layout", layout, LAYOUTS)
        self.recompute_buffers()

    def tables(self) -> dict[str, Tensor]:
        even = torch.arange(0, self.d, 2, dtype=torch.float64, device="cpu")
        angles = _angles(self.max_len, self.theta ** (-even / self.d))
        return {"cos": angles.cos().float(), "sin": angles.sin().float()}

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Turn ``x``.

        Args:
            x: (..., T, d).
            positions: int64, broadcasts against (..., T); 0, 1, ... if None.
        """
        if x.shape[-1] != self.d:
            raise InvalidValueError(
                f"this RotaryEmbedding turns vectors of {self.d}, got shape {list(x.shape)}."
            )
        if _exporting.native() and x.dim() == 4:
            return _exporting.rotary(
                x, self.cos, self.sin, positions, interleaved=self.layout == "interleaved"
            )
        cos, sin = _rows((self.cos, self.sin), x, positions, self.max_len)
        turned = _TURN[self.layout](x.to(torch.promote_types(x.dtype, cos.dtype)), cos, sin)
        return turned.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.d}, theta={self.theta:g}, max_len={self.max_len}, layout={self.layout!r}"


def _turn_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _turn_interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A pair as one complex number, times e^(i angle): a single pass over memory."""
    pairs = x.unflatten(-1, (-1, 2))
    if _exporting.active() or torch.compiler.is_compiling():
        a, b = pairs.unbind(-1)
        return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    turn = torch.complex(cos.to(x.dtype), sin.to(x.dtype))
    return torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn).flatten(-2)


_TURN = {"interleaved": _turn_interleaved, "half": _turn_half}


def _angles(positions: int, frequencies: Tensor) -> Tensor:
    """(positions, frequencies), float64: exact to 1e-10 at position 131071."""
    return torch.outer(torch.arange(positions, dtype=torch.float64, device="cpu"), frequencies)


def _rows(
    tables: tuple[Tensor, ...], x: Tensor, positions: Tensor | None, max_len: int
) -> tuple[Tensor, ...]:
    """The rows of ``tables`` for ``positions``, or for as many as ``x`` has."""
    if positions is None:
        length = x.shape[-2]
        if length > max_len:
            raise InvalidValueError(
                f"a sequence of {length} is longer than max_len={max_len}; build the module with a larger one."
            )
        return tuple(t[:length].to(x.device) for t in tables)
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise InvalidValueError(f"positions must be integers, got {positions.dtype}.")
    try:
        return tuple(F.embedding(positions, t.to(x.device)) for t in tables)
    except IndexError as error:
        raise InvalidValueError(
            f"positions must be at least 0 and below max_len={max_len}; {error}."
        ) from None
