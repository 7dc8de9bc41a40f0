"""A row of a plan: how one parameter, and each slice of it, starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ._fans import Fan
from .distributions import Distribution, distribution_from_dict


@dataclass(frozen=True)
class Packed:
    """A slice ``start:stop`` along ``dim`` that is drawn on its own, from its own stream.

    Args:
        name: ``q``, ``k``, ``v``, a gate's letter, or ``padding``; the stream is ``FQN:name``.
        fan_in: the slice's fan, None where the notion does not apply.
        distribution: what the slice is filled with.
        std: realised standard deviation of one element.
    """

    name: str
    dim: int
    start: int
    stop: int
    fan_in: float | None
    fan_out: float | None
    distribution: Distribution
    std: float

    def shape_in(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The slice's shape inside a tensor of ``shape``."""
        return (*shape[: self.dim], self.stop - self.start, *shape[self.dim + 1 :])


@dataclass(frozen=True)
class Row:
    """How one parameter starts.

    Args:
        name: canonical FQN.
        aliases: further names of the same tensor (tied weights).
        shape: logical shape.
        dtype: ``float32``, ``bfloat16``, ...
        role: what the parameter is for.
        fan_in: connections summed by one output unit, None where that has no meaning.
        fan_out: output units reached by one input unit.
        nonlinearity: the function that follows, None if unknown or none.
        branch_depth: residual branches of the model, 0 if none were found.
        distribution: of the tensor; where `packed` slices differ, of the first one.
        std: realised standard deviation of one element over the whole tensor.
        reasons: why, in order; the last one is the newest change.
        packed: slices that are drawn on their own.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    role: str
    fan_in: float | None
    fan_out: float | None
    nonlinearity: str | None
    branch_depth: int
    distribution: Distribution
    std: float
    reasons: tuple[str, ...] = ()
    packed: tuple[Packed, ...] = ()

    def with_distribution(
        self, choose: Callable[[Distribution, Fan | None], Distribution], why: str
    ) -> Row:
        """A new row; ``choose(old, fan)`` gives the distribution of the row and of each slice.

        A slice that holds a constant (a padding row, a forget gate's bias) keeps it.
        """
        distribution = choose(self.distribution, _fan(self.fan_in, self.fan_out))
        packed = tuple(_changed(part, choose, self.shape) for part in self.packed)
        if tiles(packed, self.shape):
            distribution = packed[0].distribution
        return replace(
            self,
            distribution=distribution,
            packed=packed,
            std=realised_std(self.shape, distribution, packed),
            reasons=(*self.reasons, why),
        )


def _changed(
    part: Packed, choose: Callable[[Distribution, Fan | None], Distribution], shape: tuple[int, ...]
) -> Packed:
    if part.std == 0.0:
        return part
    new = choose(part.distribution, _fan(part.fan_in, part.fan_out))
    return replace(part, distribution=new, std=new.std_for(part.shape_in(shape)))


def _fan(fan_in: float | None, fan_out: float | None) -> Fan | None:
    return None if fan_in is None or fan_out is None else Fan(fan_in, fan_out)


def tiles(packed: tuple[Packed, ...], shape: tuple[int, ...]) -> bool:
    """Whether the slices leave nothing of the tensor to its own distribution."""
    return bool(packed) and sum(p.stop - p.start for p in packed) == shape[packed[0].dim]


def realised_std(shape: tuple[int, ...], base: Distribution, packed: tuple[Packed, ...]) -> float:
    """Standard deviation of an element drawn at random from the whole tensor.

    Slices contribute by their size: variance of a mixture = mean of second moments - mean^2.
    """
    if not packed:
        return base.std_for(shape)
    extent = max(shape[packed[0].dim], 1)
    pieces = [(p.stop - p.start, p.distribution, p.shape_in(shape)) for p in packed]
    rest = extent - sum(n for n, _, _ in pieces)
    if rest:
        pieces.append((rest, base, shape))
    first = sum(n * d.mean_for(s) for n, d, s in pieces) / extent
    second = sum(n * (d.std_for(s) ** 2 + d.mean_for(s) ** 2) for n, d, s in pieces) / extent
    return math.sqrt(max(0.0, second - first**2))


def content_of(row: Row) -> dict[str, Any]:
    """Everything about a row but its reasons, as plain data."""
    return {
        "name": row.name,
        "aliases": list(row.aliases),
        "shape": list(row.shape),
        "dtype": row.dtype,
        "role": row.role,
        "fan_in": row.fan_in,
        "fan_out": row.fan_out,
        "nonlinearity": row.nonlinearity,
        "branch_depth": row.branch_depth,
        "distribution": row.distribution.to_dict(),
        "std": row.std,
        "packed": [{**vars(p), "distribution": p.distribution.to_dict()} for p in row.packed],
    }


def row_from_dict(data: dict[str, Any]) -> Row:
    """The inverse of `content_of`, with the reasons."""
    packed = tuple(
        Packed(**{**p, "distribution": distribution_from_dict(p["distribution"])})
        for p in data["packed"]
    )
    return Row(
        **{
            **data,
            "aliases": tuple(data["aliases"]),
            "shape": tuple(data["shape"]),
            "reasons": tuple(data["reasons"]),
            "distribution": distribution_from_dict(data["distribution"]),
            "packed": packed,
        }
    )
